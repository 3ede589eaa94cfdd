"""The museum's page shows what the catalogue and the results say, and the results are those of this tree."""

from __future__ import annotations

import json

import pytest

from benchmarks.locks.museum import RESULTS, SEEDS, STRATEGIES, seeded
from tests.museum.catalogue import SCHEDULED
from tests.museum.exhibit import Exhibit
from tests.museum.schedules import DEPTH, SCHEDULES
from tools.docs_museum import page
from tools.pages import DOCS

AGAIN = "python -m benchmarks.locks.museum --only seeded, then make docs"
scheduled = pytest.mark.parametrize("exhibit", SCHEDULED, ids=[exhibit.id for exhibit in SCHEDULED])


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "museum.md").read_text() == page(), "make docs"


def _same(exhibit: Exhibit, seeds: int) -> None:
    results = json.loads(RESULTS.read_text())
    assert (results["depth"], results["schedules"], results["seeds"]) == (DEPTH, SCHEDULES, list(SEEDS)), AGAIN
    for strategy in STRATEGIES:
        known = results["seeded"][exhibit.id][strategy]
        assert [seeded(exhibit, strategy, seed) for seed in SEEDS[:seeds]] == known[:seeds], AGAIN


@scheduled
def test_a_seed_needs_as_many_schedules_as_the_page_says(exhibit: Exhibit) -> None:
    _same(exhibit, 3)


@pytest.mark.slow
@scheduled
def test_all_seeds_need_as_many_schedules_as_the_page_says(exhibit: Exhibit) -> None:
    _same(exhibit, len(SEEDS))


@scheduled
def test_pct_finds_each_planted_mistake_within_a_thousand_schedules(exhibit: Exhibit) -> None:
    assert SCHEDULES == 1000
    assert all(json.loads(RESULTS.read_text())["seeded"][exhibit.id]["pct"])
