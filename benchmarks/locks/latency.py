"""How late timers fire and completions arrive on the I/O thread, while VCPUs load the devices.

Two real harts read the UART's line status and the clock as fast as they can, or one does, or they compute and touch no
device. Meanwhile the machine's I/O thread serves a device of this benchmark:

  timer       armed for 2 ms later whenever it fires (in whole milliseconds: the thread sleeps no finer); how long after
              that its door has been entered, with the lock that it takes
  completion  posted by a thread of the host every 2 ms, as a worker does that has read from a disk; how long after the
              post its door has been entered

The host's scheduler is in all figures alike: two harts and the I/O thread share its processors.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import exits
from benchmarks.guests import pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from benchmarks.workers import Worker, serve
from vmm.bql import POLICIES, Policy
from vmm.fabric.clock import Clock
from vmm.locks import Device, Locking, entry
from vmm.machine.virt import Board

PERIOD_NS: Final = 2_000_000
SECONDS, QUICK_SECONDS = 2.0, 0.5
MANY: Final = 50_000_000
"""Accesses: the time ends a measurement."""
LOADS: Final = {
    "harts compute": ("time", "time"),
    "one hart on a device": ("LSR", ""),
    "two harts on devices": ("LSR", "RTC"),
}
"""What the harts read."""
EVENTS: Final = ("timer", "completion")


@dataclass(frozen=True)
class Cell:
    policy: Policy
    load: str
    seconds: float = SECONDS


class Probe(Device):
    """Notes when its doors are entered."""

    def __init__(self, name: str, locking: Locking, *, clock: Clock, host_ns: Callable[[], int]) -> None:
        super().__init__(name, locking)
        self._clock = clock
        self._host_ns = host_ns
        self._timer = clock.timer(self.due, f"{name} period")
        self._due_at = 0  # guest time, ns
        self._late: dict[str, list[int]] = {event: [] for event in EVENTS}

    @entry
    def begin(self) -> None:
        self._arm()

    @entry
    def due(self) -> None:
        """The timer's door."""
        self._late["timer"].append(self._clock.now() - self._due_at)
        self._arm()

    @entry
    def complete(self, posted: int) -> None:
        """A completion's door; `posted` is of the host's clock, ns."""
        self._late["completion"].append(self._host_ns() - posted)

    @entry
    def late(self) -> dict[str, list[int]]:
        """By event, ns."""
        return {event: list(times) for event, times in self._late.items()}

    def _arm(self) -> None:
        self._due_at = self._clock.now() + PERIOD_NS
        self._timer.arm(self._due_at)


def measure(cell: Cell) -> dict[str, Any]:
    """By event, the distribution of how late it was, us; and the accesses of all harts a second."""
    probes: list[Probe] = []
    over = threading.Event()

    def complete(board: Board, probe: Probe) -> None:
        while not over.wait(PERIOD_NS / 1e9):
            board.io.call_soon(probe.complete, time.monotonic_ns())

    def prepare(board: Board) -> None:
        probe = board.locking.make(Probe, "probe", clock=board.clock, host_ns=time.monotonic_ns)
        probes.append(probe)
        probe.begin()
        threading.Thread(target=complete, args=(board, probe), daemon=True).start()

    register, beside = LOADS[cell.load]
    guest = exits.Cell(register=register, beside=beside, accesses=MANY, seconds=cell.seconds, locking=cell.policy)
    try:
        result = exits.measure(guest, prepare)
    finally:
        over.set()
    late = probes[0].late()
    return {"rate": result["total"], **{event: exits.distribution(late[event], 1e-3) for event in EVENTS}}


def main() -> int:
    options_parser = parser(__doc__, rounds=5)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(measure, Cell)
    report = Report("The I/O thread while VCPUs load the devices", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with ExitStack() as stack:
        sides: dict[str, Callable[[], dict[str, Any]]] = {}
        for python in builds:
            worker = stack.enter_context(Worker(python, "benchmarks.locks.latency"))
            for policy in POLICIES:
                for load in LOADS:
                    cell = Cell(policy, load, seconds)
                    sides[f"{load}, {policy}, {python.name}"] = partial(worker.measure, cell)
        samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    columns = [f"{policy}, {python.name}" for python in builds for policy in POLICIES]
    for event in EVENTS:
        for load in LOADS:
            for what in ("p50", "p99", "max"):
                late = {column: [r[event][what] for r in samples[f"{load}, {column}"]] for column in columns}
                report.add(Figure(f"{event}, {load}, {what}", "us", late))
        for column in columns:
            taken = samples[f"two harts on devices, {column}"]
            middle = sorted(taken, key=lambda result: float(result[event]["p99"]))[len(taken) // 2]
            report.curves.setdefault(f"A {event}, two harts on devices", {})[column] = middle[event]["curve"]
    for load, registers in LOADS.items():
        if "time" not in registers:
            rates = {column: [r["rate"] for r in samples[f"{load}, {column}"]] for column in columns}
            report.add(Figure(f"the harts' accesses, {load}", "1/s", rates))
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
