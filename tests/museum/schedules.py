"""How the museum asks the seeded scheduler."""

from __future__ import annotations

from tests.museum.exhibit import Program
from vmm.testing.schedule import Result, explore

SEED = 1
SCHEDULES = 1000
"""Within so many the scheduler must find what is planted."""
QUICK = 100
"""How many a quick test runs; the slow ones run all."""
DEPTH = 3
"""Of PCT: a wake-up that is lost needs two switches at the right places."""


def search(program: Program, strategy: str, seed: int = SEED, schedules: int = SCHEDULES) -> Result:
    """Schedules until one fails. `Result.schedules` is how many that took, the calm one among them."""
    return explore(program, strategy=strategy, depth=DEPTH, seed=seed, schedules=schedules, shrink=False)


def first_failure(program: Program, strategy: str = "pct", seed: int = SEED, schedules: int = QUICK) -> str | None:
    """How the first schedule that fails does so, on one line."""
    failure = search(program, strategy, seed, schedules).failure
    if failure is None:
        return None
    first, *more = failure.report.splitlines()
    return f"{first.partition(' raised ')[0]}: {more[-1]}" if first.endswith(":") else first
