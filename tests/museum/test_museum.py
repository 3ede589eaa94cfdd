"""Every exhibit's checker finds the planted mistake, and says nothing of the correct code beside it."""

from __future__ import annotations

import pytest

from tests.museum import m15_ring_order
from tests.museum.catalogue import EXHIBITS, SCHEDULED, mutant, twin
from tests.museum.exhibit import CheckerOff, Exhibit, Stage, lock_report
from tests.museum.m15_ring_order import StructIndex
from tests.museum.m19_two_streams import LooksTwice, fuzz
from tests.museum.plain import stress
from tests.museum.schedules import SCHEDULES, first_failure
from vmm.lockreport import Kind
from vmm.locks import Locking
from vmm.testing.schedule.trace import load_program, program_name

each = pytest.mark.parametrize("exhibit", EXHIBITS, ids=[exhibit.id for exhibit in EXHIBITS])
scheduled = pytest.mark.parametrize("exhibit", SCHEDULED, ids=[exhibit.id for exhibit in SCHEDULED])


def test_every_entry_of_the_catalogue_is_shown_once() -> None:
    assert [exhibit.id for exhibit in EXHIBITS] == [*(f"M{n}" for n in range(1, 23)), *(f"S{n}" for n in range(1, 5))]


@each
def test_the_checker_finds_the_mutant(exhibit: Exhibit) -> None:
    assert exhibit.check(exhibit.mutant), f"{exhibit.checker} did not find: {exhibit.title}"


@each
def test_the_checker_is_silent_on_the_twin(exhibit: Exhibit) -> None:
    assert exhibit.check(exhibit.twin) is None


@scheduled
@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_schedules_find_the_mutant_and_nothing_in_the_twin(exhibit: Exhibit, strategy: str) -> None:
    assert first_failure(exhibit.threads("mutant"), strategy, schedules=SCHEDULES)
    assert first_failure(exhibit.threads("twin"), strategy) is None


@pytest.mark.slow
@scheduled
@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_a_thousand_schedules_find_nothing_in_the_twin(exhibit: Exhibit, strategy: str) -> None:
    assert first_failure(exhibit.threads("twin"), strategy, schedules=SCHEDULES) is None


def test_one_stream_of_accesses_finds_nothing_in_the_uart_that_looks_twice() -> None:
    assert fuzz(LooksTwice, 1) is None


@each
def test_an_exhibit_says_what_it_shows(exhibit: Exhibit) -> None:
    assert exhibit.story
    assert exhibit.mutant.__doc__
    assert exhibit.twin.__doc__
    assert exhibit.mutant is not exhibit.twin


def test_the_lint_finds_a_queue_that_unpacks_its_indices_from_memory() -> None:
    assert m15_ring_order.check(StructIndex) == "StructIndex uses unpack_from on guest memory"


def test_stress_says_in_which_run_and_how_a_program_failed() -> None:
    runs = iter(range(10))

    def program(s: Stage) -> None:
        number = next(runs)
        s.spawn("vcpu0", lambda: None)
        s.check(lambda: number < 3)

    assert stress(program, 3) == (3, None)
    assert stress(program, 3) == (1, "a check at the end does not hold")


@scheduled
def test_a_program_has_the_name_by_which_it_is_found_again(exhibit: Exhibit) -> None:
    for side, held in (("mutant", mutant), ("twin", twin)):
        found = getattr(held, exhibit.id)
        assert program_name(found) == f"tests.museum.catalogue:{side}.{exhibit.id}"
        assert load_program(program_name(found)) is found


def test_a_checker_that_was_switched_off_says_so() -> None:
    with pytest.raises(CheckerOff):
        lock_report(Kind.CYCLE, lambda locking: None, Locking())
