"""The reduced search comes to the same ends as the search of everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.schedules import examples
from vmm.testing.schedule import Result, explore

ALL = 1_000_000


def ends(result: Result) -> set[object]:
    """Final states, and the ways in which schedules failed, without the lines of code."""
    failures = {(failure.kind, failure.report.split("is at:")[0]) for failure in result.failures}
    return {*result.ends, *failures}


@pytest.mark.parametrize("preemptions", [None, 0, 1, 2], ids=lambda bound: f"bound {bound}")
@pytest.mark.parametrize(
    "program",
    [
        examples.unlocked_count,
        examples.two_orders,
        examples.readers,
        examples.handshake,
        examples.early_look,
    ],
)
def test_reduced_and_unreduced_search_come_to_the_same_ends(
    program: Callable[..., None], preemptions: int | None
) -> None:
    options = {"strategy": "exhaustive", "preemptions": preemptions, "keep_going": True, "schedules": ALL}
    whole = explore(program, reduce=False, shrink=False, **options)  # type: ignore[arg-type]
    reduced = explore(program, shrink=False, **options)  # type: ignore[arg-type]
    assert whole.exhausted
    assert reduced.exhausted
    assert ends(reduced) == ends(whole)
    assert reduced.schedules <= whole.schedules


def test_three_threads_with_two_locks_and_a_word_come_to_all_ends(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"strategy": "exhaustive", "keep_going": True, "schedules": ALL, "shrink": False}
    whole = explore(examples.mixed, reduce=False, **options)  # type: ignore[arg-type]
    reduced = explore(examples.mixed, **options)  # type: ignore[arg-type]
    with capsys.disabled():
        print(
            f"\nmixed: {whole.schedules} schedules in all, {reduced.schedules} after reduction"
            f" ({reduced.redundant} of them redundant); {len(whole.ends)} final states and"
            f" {len(whole.failures)} deadlocks, {len(reduced.ends)} and {len(reduced.failures)} after reduction"
        )
    assert whole.exhausted
    assert reduced.exhausted
    assert ends(reduced) == ends(whole)
    assert len(whole.ends) == 6  # each of three letters may come first, second or third
    assert len(whole.failures) == 1
    assert reduced.schedules * 100 < whole.schedules


def test_the_search_of_everything_counts_what_combinatorics_do() -> None:
    """Three threads of three steps each (to begin, to read, to write): 9! / (3!)^3 orders."""
    result = explore(
        examples.unlocked_count, strategy="exhaustive", reduce=False, keep_going=True, shrink=False, schedules=ALL
    )
    assert result.schedules == 1680


def test_a_bound_of_no_preemption_leaves_the_orders_of_the_threads() -> None:
    result = explore(examples.unlocked_count, strategy="exhaustive", reduce=False, preemptions=0, schedules=ALL)
    assert result.schedules == 6
    assert result.exhausted
    assert not result.failures
