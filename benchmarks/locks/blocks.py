"""A blocks, B runs: what a device that makes its reader wait does to the users of another one.

Two real harts. One reads the UART's line status every 100 us and takes the time of each read (B). The other does
nothing but read a register of a device of this benchmark (A), whose every access waits 5 ms with the device's lock
held, as a model would that reads a slow disk itself. Under `device` that lock is A's own; under `bql` it is
everybody's, so B's reader waits too. Beside it, B alone: a machine with one hart.
"""

from __future__ import annotations

import argparse
import statistics
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import exits
from benchmarks.exits import APART, OWN, QUANTILES
from benchmarks.guests import pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from benchmarks.workers import Worker, serve
from vmm.bql import POLICIES, Policy
from vmm.locks import Device, Locking, entry
from vmm.machine.virt import Board

BLOCK_S: Final = 5e-3
SECONDS, QUICK_SECONDS = 2.0, 0.6
RATIO_BOUND: Final = 20
ABOVE_US: Final = 300
ALONE, BLOCKED = "B alone", "B while A blocks"
BESIDE: Final = {ALONE: "", BLOCKED: "own"}
"""What the second hart reads, if there is one."""


@dataclass(frozen=True)
class Cell:
    policy: Policy
    condition: str
    seconds: float = SECONDS


class Slow(Device):
    """Device A: each access takes `BLOCK_S`."""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._never = threading.Event()

    @entry
    def read(self, offset: int, size: int) -> int:
        self._never.wait(BLOCK_S)
        return 0

    @entry
    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing to write."""


def measure(cell: Cell) -> dict[str, Any]:
    """The distribution of B's latency, us."""

    def prepare(board: Board) -> None:
        board.bus.map(OWN, 0x1000, board.locking.make(Slow, "slow"), "slow")

    accesses = int(cell.seconds * 1e6 / APART)
    guest = exits.Cell(
        timed=True,
        beside=BESIDE[cell.condition],
        apart=APART,
        accesses=accesses,
        seconds=cell.seconds,
        locking=cell.policy,
    )
    return exits.measure(guest, prepare)


def main() -> int:
    options_parser = parser(__doc__, rounds=5)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(measure, Cell)
    report = Report("A blocks, B runs", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with ExitStack() as stack:
        sides: dict[str, Callable[[], dict[str, Any]]] = {}
        for python in builds:
            worker = stack.enter_context(Worker(python, "benchmarks.locks.blocks"))
            for policy in POLICIES:
                for condition in BESIDE:
                    cell = Cell(policy, condition, seconds)
                    sides[f"{condition}, {policy}, {python.name}"] = partial(worker.measure, cell)
        samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    for python in builds:
        p99 = {
            policy: {c: [taken["p99"] for taken in samples[f"{c}, {policy}, {python.name}"]] for c in BESIDE}
            for policy in POLICIES
        }
        ratios = [big / own for big, own in zip(p99["bql"][BLOCKED], p99["device"][BLOCKED], strict=True)]
        ratio = statistics.median(ratios)
        bound = f"{ratio:.0f}; at least {RATIO_BOUND}"
        name = f"B's p99 while A blocks, `bql` over `device`, {python.name}"
        report.add(Figure(name, "ratio", {name: ratios}, bound, ratio >= RATIO_BOUND))
        above = [own - alone for own, alone in zip(p99["device"][BLOCKED], p99["device"][ALONE], strict=True)]
        median = statistics.median(above)
        bound = f"{median:.0f} us; at most {ABOVE_US}"
        name = f"B's p99 under `device`, above B alone, {python.name}"
        report.add(Figure(name, "us", {name: above}, bound, median <= ABOVE_US))
    for condition in BESIDE:
        for what in (*QUANTILES, "max"):
            columns = {
                f"{policy}, {python.name}": [r[what] for r in samples[f"{condition}, {policy}, {python.name}"]]
                for python in builds
                for policy in POLICIES
            }
            report.add(Figure(f"a read of {condition}, {what}", "us", columns))
    for side, taken in samples.items():
        middle = sorted(taken, key=lambda result: float(result["p99"]))[len(taken) // 2]
        report.curves.setdefault("A read of device B", {})[side] = middle["curve"]
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
