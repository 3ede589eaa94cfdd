"""Every exhibit's checker finds the planted mistake, and says nothing of the correct code beside it."""

from __future__ import annotations

import pytest

from tests.museum.catalogue import EXHIBITS
from tests.museum.exhibit import CheckerOff, Exhibit, lock_report
from vmm.locks import Locking

each = pytest.mark.parametrize("exhibit", EXHIBITS, ids=[exhibit.id for exhibit in EXHIBITS])


@each
def test_the_checker_finds_the_mutant(exhibit: Exhibit) -> None:
    assert exhibit.check(exhibit.mutant), f"{exhibit.checker} did not find: {exhibit.title}"


@each
def test_the_checker_is_silent_on_the_twin(exhibit: Exhibit) -> None:
    assert exhibit.check(exhibit.twin) is None


@each
def test_an_exhibit_says_what_it_shows(exhibit: Exhibit) -> None:
    assert exhibit.story
    assert exhibit.mutant.__doc__
    assert exhibit.twin.__doc__
    assert exhibit.mutant is not exhibit.twin


def test_a_checker_that_was_switched_off_says_so() -> None:
    with pytest.raises(CheckerOff):
        lock_report(lambda locking: None, Locking())
