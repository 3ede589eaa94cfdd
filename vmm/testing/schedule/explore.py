"""Many schedules of one program, until one fails; and then the simplest schedule that fails the same way."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from vmm.errors import ConfigError
from vmm.testing.schedule.core import STEPS, Scheduler, Strategy, Switch
from vmm.testing.schedule.crew import Crew
from vmm.testing.schedule.exhaustive import Search
from vmm.testing.schedule.failures import Failed, Kind
from vmm.testing.schedule.strategies import Pct, Planned, Uniform
from vmm.testing.schedule.trace import Program, Trace, program_name, steps_digest, switches_text, version

STRATEGIES: Final = ("random", "pct", "exhaustive")
DEPTHS: Final = (1, 2, 3)
_SHRINKING: Final = 400
"""Schedules that the search for a simpler one may take."""


@dataclass(frozen=True)
class Failure:
    """A schedule that failed, and how to see it again."""

    kind: Kind
    report: str
    seed: int
    strategy: str
    trace: Trace
    """Of the simplest schedule found that fails in the same way."""
    found: Trace
    """Of the schedule that was found first."""

    @property
    def replay(self) -> str:
        """The command that runs it again."""
        return (
            f"python -m vmm.testing.schedule replay {self.trace.program}"
            f" --switches {self.trace.version}:{switches_text(self.trace.switches)}"
        )

    def __str__(self) -> str:
        before, after = len(self.found.switches), len(self.trace.switches)
        return "\n".join(
            [
                f"{self.trace.program}: {self.kind.value} under {self.strategy}, seed {self.seed}",
                f"simplest schedule: {after} switches (found with {before})",
                f"replay: {self.replay}",
                self.report,
            ]
        )


@dataclass(frozen=True)
class Result:
    """What a search has done."""

    program: str
    strategy: str
    schedules: int
    steps: int
    failures: tuple[Failure, ...] = ()
    exhausted: bool = False
    """Every schedule within the bound has been run, or one that amounts to it."""
    redundant: int = 0
    """Schedules, among those run, that only swapped operations that commute: what the reduction failed to avoid."""
    ends: frozenset[object] = field(default_factory=frozenset)
    """The `Scheduler.result`s of the schedules that did not fail."""

    @property
    def failure(self) -> Failure | None:
        return self.failures[0] if self.failures else None

    def __str__(self) -> str:
        how = ", all there are" if self.exhausted else ""
        return f"{self.program}: {self.schedules} schedules under {self.strategy}{how}, {len(self.failures)} failed"


class ScheduleError(AssertionError):
    """A program does not hold under some schedule; the message is the whole report."""


def explore(
    program: Program,
    *,
    strategy: str = "pct",
    depth: int = 2,
    seed: int = 1,
    schedules: int = 1000,
    preemptions: int | None = None,
    reduce: bool = True,
    limit: int = STEPS,
    keep_going: bool = False,
    shrink: bool = True,
) -> Result:
    """Run schedules of `program` until one fails, or `schedules` have run, or there are no more.

    `program(scheduler)` builds fresh devices of that kit and spawns threads. `random` and `pct` (of `depth` 1 to 3)
    run the calm schedule first, as seed 0, and then those of `seed`, `seed` + 1, ... `exhaustive` runs all schedules
    of at most `preemptions` preemptions; with `reduce`, only those that differ by more than operations that commute.
    `limit` is the number of steps after which a schedule is said to make no progress. With `keep_going` failures are
    collected; ones of the same kind and report count once. Raises ConfigError for a strategy, depth or seed that cannot
    be.
    """
    check_strategy(strategy, depth)
    if seed < 0:
        raise ConfigError(f"seed {seed} is none: give 0 or more")
    with _crew() as crew:
        run = _Runner(program, crew, limit)
        title = f"pct of depth {depth}" if strategy == "pct" else strategy
        if strategy == "exhaustive":
            title += " without reduction" if not reduce else ""
            title += "" if preemptions is None else f", at most {preemptions} preemptions"
        found: dict[tuple[Kind, str], tuple[int, Failed, Scheduler]] = {}
        ends: set[object] = set()
        count = steps = redundant = 0
        exhausted = False
        search = Search(preemptions, reduce) if strategy == "exhaustive" else None
        while count < schedules:
            if search is not None:
                plan: Strategy = search
                search.begin()
                number = count
            else:
                number = seed + count - 1 if count else 0
                plan = made_strategy(strategy, depth, number, run.calm_steps) if count else Planned()
            failed, scheduler = run(plan)
            count += 1
            steps += len(scheduler.trace)
            if count == 1:
                run.calm_steps = len(scheduler.trace)
            if failed is None:
                ends.add(scheduler.result)
            elif (failed.kind, failed.report) not in found:
                found[failed.kind, failed.report] = number, failed, scheduler
            if search is not None:
                redundant += search.redundant
                if not search.end(scheduler):
                    exhausted = True
                    break
            if failed and not keep_going:
                break
        failures = [run.failure(*one, title, shrink) for one in found.values()]
    return Result(program_name(program), title, count, steps, tuple(failures), exhausted, redundant, frozenset(ends))


def replay(program: Program, trace: Trace, *, limit: int = STEPS) -> Result:
    """Run the schedule of `trace` again. Raises ConfigError when it is of another program or version."""
    trace.check(program)
    with _crew() as crew:
        run = _Runner(program, crew, limit)
        failed, scheduler = run(Planned(trace.switches))
        failures = [run.failure(trace.seed, failed, scheduler, trace.strategy, False)] if failed else []
    return Result(program_name(program), f"{trace.strategy}, replayed", 1, len(scheduler.trace), tuple(failures))


def assert_holds(program: Program, **options: object) -> Result:
    """`explore`, for tests: raises ScheduleError with the whole report when a schedule fails."""
    result = explore(program, **options)  # type: ignore[arg-type]
    if result.failures:
        raise ScheduleError("\n\n".join(map(str, result.failures)))
    return result


def check_strategy(strategy: str, depth: int) -> None:
    """Raises ConfigError."""
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if depth not in DEPTHS:
        raise ConfigError(f"a depth of {depth} is none of {', '.join(map(str, DEPTHS))}")


def made_strategy(strategy: str, depth: int, seed: int, steps: int) -> Strategy:
    """The strategy of one schedule; `steps` is how many the calm one took."""
    if seed == 0:
        return Planned()
    return Uniform(seed) if strategy == "random" else Pct(seed, depth, steps)


class _Runner:
    """Runs schedules of one program."""

    def __init__(self, program: Program, crew: Crew, limit: int) -> None:
        self._program = program
        self._crew = crew
        self._limit = limit
        self.calm_steps = 0

    def __call__(self, strategy: Strategy) -> tuple[Failed | None, Scheduler]:
        scheduler = Scheduler(strategy, self._crew, limit=self._limit)
        return scheduler.run(self._program), scheduler

    def failure(self, seed: int, failed: Failed, scheduler: Scheduler, strategy: str, shrink: bool) -> Failure:
        found = trace = self._trace(seed, failed, scheduler, strategy)
        if shrink and scheduler.switches:
            simplest, again = self._simplest(failed, scheduler)
            if again is not None:
                failed = again
                trace = self._trace(seed, failed, simplest, strategy)
        return Failure(failed.kind, failed.report, seed, strategy, trace, found)

    def _trace(self, seed: int, failed: Failed, scheduler: Scheduler, strategy: str) -> Trace:
        return Trace(
            program=program_name(self._program),
            version=version(self._program),
            strategy=strategy,
            seed=seed,
            kind=failed.kind.value,
            switches=tuple(scheduler.switches),
            digest=steps_digest(scheduler.trace),
        )

    def _simplest(self, failed: Failed, scheduler: Scheduler) -> tuple[Scheduler, Failed | None]:
        """Fewest switches that still fail in the same way, by delta debugging (Zeller, Hildebrandt, TSE 2002)."""
        best, best_failed = scheduler, None
        switches: list[Switch] = list(scheduler.switches)
        parts = 2
        left = _SHRINKING
        while switches and left > 0:
            size = max(1, len(switches) // parts)
            for start in range(0, len(switches), size):
                fewer = switches[:start] + switches[start + size :]
                left -= 1
                again, one = self(Planned(fewer))
                if again and (again.kind, again.error) == (failed.kind, failed.error):
                    best, best_failed = one, again
                    switches = list(one.switches) if len(one.switches) <= len(fewer) else fewer
                    parts = max(2, parts - 1)
                    break
                if not left:
                    break
            else:
                if size == 1:
                    break
                parts = min(len(switches), parts * 2)
        return best, best_failed


@contextmanager
def _crew() -> Iterator[Crew]:
    """Threads for schedules, all on the CPU that the caller is on now: to hand a turn over within one costs 6 us,
    and from one to the other 35."""
    allowed = os.sched_getaffinity(0)
    here: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
    cpu = here()
    os.sched_setaffinity(0, {cpu if cpu in allowed else min(allowed)})
    crew = Crew()
    try:
        yield crew
    finally:
        crew.close()
        os.sched_setaffinity(0, allowed)
