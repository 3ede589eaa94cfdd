"""The cost of a door: the same method bare, with a hand-written `with self._lock:`, with @entry, and checked."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.guests import pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from benchmarks.workers import Worker, serve
from vmm.locks import Device, Locking, Rank, entry, lockfree

CALLS: Final = 200_000
CHECKED_CALLS: Final = 20_000
PLAIN_BOUND: Final = 1.2
CHECKED_BOUND_NS: Final = 6_000


@dataclass(frozen=True)
class Cell:
    """One of `KINDS`, called so often."""

    kind: str
    calls: int = CALLS


class Registers(Device):
    """One register behind each kind of door."""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._rlock = threading.RLock()
        self._value = 7

    @lockfree("the body alone, to compare with")
    def read_bare(self, offset: int, size: int) -> int:
        return self._value

    @lockfree("takes the lock by hand, to compare with")
    def read_with(self, offset: int, size: int) -> int:
        with self._rlock:
            return self._value

    @entry
    def read(self, offset: int, size: int) -> int:
        return self._value

    @entry(posts=True)
    def read_posting(self, offset: int, size: int) -> int:
        return self._value


WITH, PLAIN, CHECKED = "with RLock, by hand", "@entry", "@entry, checked"
NESTED = "@entry, checked, inside another"
KINDS: Final[dict[str, Callable[[Registers], Callable[[int, int], int]]]] = {
    "no lock": lambda device: device.read_bare,
    WITH: lambda device: device.read_with,
    PLAIN: lambda device: device.read,
    "@entry(posts=True)": lambda device: device.read_posting,
    CHECKED: lambda device: device.read,
    NESTED: lambda device: device.read,
}


def measure(cell: Cell) -> float:
    """Time of one call, ns, without that of the loop around it."""
    locking = Locking(checked=cell.kind in (CHECKED, NESTED))
    device = locking.make(Registers, "registers")
    read = KINDS[cell.kind](device)
    turns = range(cell.calls)
    with locking.lock("outer", rank=Rank.BUS) if cell.kind == NESTED else nullcontext():
        started = time.perf_counter_ns()
        for _ in turns:
            pass
        empty = time.perf_counter_ns()
        for _ in turns:
            read(0, 1)
        return (time.perf_counter_ns() - empty - (empty - started)) / cell.calls


def main() -> int:
    options_parser = parser(__doc__, rounds=15)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(measure, Cell)
    report = Report("Locks: one call of a device's public method", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    with ExitStack() as stack:
        sides: dict[str, Callable[[], float]] = {}
        for python in builds:
            worker = stack.enter_context(Worker(python, "benchmarks.locks.entry"))
            for kind in KINDS:
                cell = Cell(kind, CHECKED_CALLS if kind in (CHECKED, NESTED) else CALLS)
                sides[f"{kind}, {python.name}"] = partial(worker.measure, cell)
        samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    for python in builds:
        own = {kind: samples[f"{kind}, {python.name}"] for kind in KINDS}
        medians = Figure("", "ns", own).medians
        ratio = medians[PLAIN] / medians[WITH]
        bound = f"@entry costs {ratio:.2f} times the hand-written lock; at most {PLAIN_BOUND}"
        report.add(Figure(f"a call, uncontended, {python.name}", "ns", own, bound, ratio <= PLAIN_BOUND))
        checked = {kind: own[kind] for kind in (CHECKED, NESTED)}
        most = max(medians[kind] for kind in checked)
        bound = f"{most / 1e3:.2f} us; at most {CHECKED_BOUND_NS / 1e3:g}"
        met = most <= CHECKED_BOUND_NS
        report.add(Figure(f"a checked acquisition, {python.name}", "ns", checked, bound, met))
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
