"""Schedules a second of the seeded scheduler (`vmm.testing.schedule`): three threads of about 50 points each.

The threads call doors of devices: to take a lock is a point, and to have let it go. A schedule builds the devices anew,
its OS threads are those of the one before, and the process is on one CPU, where a turn is handed over in 6 us instead
of 35. `checked` is a program of 150 steps as well, whose lock rules and races are checked under every schedule.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.guests import pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from benchmarks.workers import Worker, serve
from vmm.locks import Device, Locking, entry
from vmm.state import DeviceState
from vmm.testing.schedule import Scheduler, explore

SCHEDULES: Final = 500
THREADS: Final = 3
LEAST: Final = {"pct": 500, "random": 200}
"""Schedules a second on CPython 3.11."""


@dataclass(frozen=True)
class Cell:
    """Schedules by one strategy, of devices in one variant."""

    strategy: str
    checked: bool = False
    schedules: int = SCHEDULES


@dataclass(slots=True)
class CounterState(DeviceState):
    value: int = 0


class Counter(Device):
    """A register that counts."""

    State = CounterState

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._state = self.State()

    @entry
    def add(self) -> None:
        self._state.value += 1


def program(s: Scheduler, *, checked: bool) -> None:
    """Two points a call; when checked three more, the accesses to state."""
    locking = s.locking(checked=checked)
    counters = [locking.make(Counter, f"counter{index}") for index in range(THREADS)]
    calls = 10 if checked else 25

    def use(first: int) -> None:
        for call in range(calls):
            counters[(first + call) % THREADS].add()

    for index in range(THREADS):
        s.spawn(f"vcpu{index}", use, index)


def measure(cell: Cell) -> list[float]:
    """Schedules a second, and steps of one schedule."""
    began = time.perf_counter()
    result = explore(partial(program, checked=cell.checked), strategy=cell.strategy, schedules=cell.schedules)
    if result.failure:
        raise SystemExit(str(result.failure))
    return [cell.schedules / (time.perf_counter() - began), result.steps / cell.schedules]


def main() -> int:
    options_parser = parser(__doc__, rounds=11)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(measure, Cell)
    report = Report("Locks: seeded schedules", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    cells = {f"{s}{', checked' * checked}": Cell(s, checked) for s in LEAST for checked in (False, True)}
    with ExitStack() as stack:
        sides = {}
        for python in builds:
            worker = stack.enter_context(Worker(python, "benchmarks.locks.schedules"))
            for name, cell in cells.items():
                sides[f"{name}, {python.name}"] = partial(worker.measure, cell)
        samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    report.facts["steps of a schedule"] = {side: round(of[0][1]) for side, of in samples.items()}
    for python in builds:
        rates = {name: [rate for rate, _ in samples[f"{name}, {python.name}"]] for name in cells}
        figure = Figure(f"schedules, {python.name}", "1/s", rates)
        if "free-threaded" not in python.build:
            reached = {name: figure.medians[name] for name in LEAST}
            bound = ", ".join(f"{name} {rate:.0f}, at least {LEAST[name]}" for name, rate in reached.items())
            met = all(rate >= LEAST[name] for name, rate in reached.items())
            figure = Figure(figure.name, figure.unit, rates, bound, met)
        report.add(figure)
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
