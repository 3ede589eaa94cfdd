"""New cases from a seed, under schedules and on threads of their own, for as long as `--stress-seconds` says."""

from __future__ import annotations

import random
import time

import pytest

from tests.fuzz.cases import Maker, check, corpus, run_on_threads
from tests.fuzz.rigs import RIGS


@pytest.mark.stress
@pytest.mark.parametrize("way", ["scheduled", "threads"])
@pytest.mark.parametrize("rig", RIGS)
def test_two_streams_break_nothing(rig: str, way: str, seed: int, seconds: float, say: list[str]) -> None:
    """Each takes a tenth of the time that a test of the stress suite does: there are many."""
    rng = random.Random(seed)
    maker = Maker(rig, rng, corpus(rig))
    until, count = time.monotonic() + seconds / 10, 0
    situations: set[tuple[object, ...]] = set()
    while time.monotonic() < until:
        case = maker.case()
        try:
            if way == "threads":
                run_on_threads(case)
            elif not (met := check(case)) <= situations:
                situations |= met
                maker.add(case)
        except BaseException as error:
            error.add_note(f"case {count} of --seed {seed}: {case.text()}")
            raise
        count += 1
    assert count
    say.append(f"{rig}, {way}: {count} cases" + (f", {len(situations)} situations" if situations else ""))
