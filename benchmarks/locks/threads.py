"""One to eight threads on one to eight devices: throughput, latency and fairness under both policies.

Each thread reads a register of a real device, found on the bus, as fast as it can: what any thread does that comes in
by a device's door (a VCPU's exit, a timer, a completion, a monitor), and nothing of what is around it, which
`benchmarks/locks/headline.py` measures with real guests. Under `device` each device has its own lock; under `bql` all
have one. Thread t reads device t, modulo their number.

  UART     line status, 8 bits
  RTC      the low half of the time, 32 bits
  rng      interrupt status of a virtio device, 32 bits, through virtio-mmio
  balloon  the same of another one

Rates come from loops of nothing but reads. Percentiles come from loops that read the clock before and behind each
access, which adds to it: 0.05 to 0.1 us. Fairness is Jain's index of the threads' rates: 1 when all get the same, 1/n
when one gets all.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from benchmarks.guests import pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Chart, Figure, Report, alternate, parser
from benchmarks.workers import Worker, serve
from vmm.bql import POLICIES, Policy
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.devices.uart16550 import Uart16550
from vmm.devices.virtio.balloon import VirtioBalloon
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.mmio import VirtioMmio
from vmm.devices.virtio.rng import VirtioRng
from vmm.fabric.bus import Bus, Target
from vmm.fabric.clock import Clock
from vmm.fabric.dma import Dma
from vmm.fabric.doorbell import Doorbell
from vmm.fabric.ram import Ram
from vmm.locks import Locking
from vmm.machine.virt import RAM_BASE, UART_CLOCK_HZ
from vmm.testing.fakes import FakeIoThread, FakeLine, FakeWire
from vmm.vcpu.thread import SWITCH_INTERVAL_S

R = TypeVar("R")
Result = dict[str, Any]
Samples = dict[str, list[Result]]
UART, RTC, RNG, BALLOON = "UART", "RTC", "rng", "balloon"
REGISTERS: Final = {UART: (5, 1), RTC: (0x00, 4), RNG: (0x60, 4), BALLOON: (0x60, 4)}
"""Offset and size of what is read."""
MOST: Final = 8
SECONDS, QUICK_SECONDS = 0.3, 0.1
LOOK: Final = 64
"""Accesses between two looks at whether the time is over."""
TIMED_SHARE: Final = 0.5
PAGE: Final = 0x1000
RATIO_BOUND, SCALING_BOUND, ONE_THREAD_BOUND = 2.0, 1.8, 0.05


@dataclass(frozen=True)
class Cell:
    """So many threads over devices of these kinds, for so many seconds."""

    policy: Policy
    threads: int
    kinds: Sequence[str]
    seconds: float = SECONDS

    @property
    def name(self) -> str:
        """As "4 threads on 2 UARTs"."""
        count = len(self.kinds)
        kind = f"{count} {self.kinds[0]}s" if len(set(self.kinds)) < count else " and ".join(self.kinds)
        return f"{self.threads} thread{'s' * (self.threads > 1)} on {kind}"


GRID: Final = (
    *((n, (UART,) * n) for n in (1, 2, 3, 4, 6, MOST)),
    *((n, (UART,)) for n in (2, 4, MOST)),
    *((n, (UART, UART)) for n in (4, MOST)),
    (1, (RTC,)),
    (2, (UART, RTC)),
    (4, (UART, RTC, RNG, BALLOON)),
)
"""Threads, and the devices that they are on."""


# -- one measurement, in whatever Python this is -----------------------------------------------------------------------


class Devices:
    """A bus with one device of each kind, all of one machine."""

    def __init__(self, policy: Policy, kinds: Sequence[str]) -> None:
        self._kinds = kinds
        self._make = Locking(policy).make
        self._io = FakeIoThread()
        self._clock = Clock(self._io, start=1)
        self._clock.resume()
        self._ram = Ram(RAM_BASE, 1 << 20, minimum=1 << 20)
        self._doorbells: list[Doorbell] = []
        self._bus = Bus()
        for index, kind in enumerate(kinds):
            self._bus.map(PAGE * index, PAGE, self._device(kind, f"{kind}{index}"), kind)

    def close(self) -> None:
        for doorbell in self._doorbells:
            doorbell.close()
        self._ram.close()

    def _device(self, kind: str, name: str) -> Target:
        if kind == UART:
            return self._make(
                Uart16550, name, wire=FakeWire(), clock=self._clock, line=FakeLine(), input_hz=UART_CLOCK_HZ
            )
        if kind == RTC:
            return self._make(GoldfishRtc, name, wire=FakeWire(), clock=self._clock)
        dma, wire = Dma(self._ram), FakeWire()
        device: VirtioDevice = (
            self._make(VirtioRng, name, dma=dma, wire=wire, home=self._io, entropy=bytes)
            if kind == RNG
            else self._make(VirtioBalloon, name, dma=dma, wire=wire, home=self._io)
        )
        self._doorbells += device.doorbells
        return VirtioMmio(device)

    def register(self, thread: int) -> tuple[Callable[[int, int], int], int, int]:
        """How a thread reads the register of its device: the window's `read`, offset and size."""
        index = thread % len(self._kinds)
        window = self._bus.snapshot.find(PAGE * index)
        assert window is not None
        return (window.read, *REGISTERS[self._kinds[index]])


def count(read: Callable[[int, int], int], offset: int, size: int, seconds: float) -> float:
    """Accesses a second."""
    now = partial(time.perf_counter_ns)  # the thread's own: the function itself would have all threads count on it
    accesses, began = 0, now()
    until = began + int(seconds * 1e9)
    while (ended := now()) < until:
        for _ in itertools.repeat(None, LOOK):
            read(offset, size)
        accesses += LOOK
    return accesses * 1e9 / (ended - began)


def timings(read: Callable[[int, int], int], offset: int, size: int, seconds: float) -> list[int]:
    """What each access took, ns."""
    now = partial(time.perf_counter_ns)
    taken: list[int] = []
    ended = now()
    until = ended + int(seconds * 1e9)
    while ended < until:
        began = now()
        read(offset, size)
        ended = now()
        taken.append(ended - began)
    return taken


def at_once(work: Callable[[int], R], threads: int) -> list[R]:
    """What `work` returns on each of so many threads, which all begin together."""
    results: dict[int, R] = {}
    start = threading.Barrier(threads)

    def run(thread: int) -> None:
        start.wait()
        results[thread] = work(thread)

    running = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if len(results) < threads:
        raise SystemExit("a measuring thread died")
    return [results[thread] for thread in range(threads)]


def measure(cell: Cell) -> Result:
    """Each thread's rate, 1/s, and over all threads' accesses the percentiles, us."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    devices = Devices(cell.policy, cell.kinds)
    gc.collect()
    gc.disable()
    try:
        rates = at_once(lambda thread: count(*devices.register(thread), cell.seconds), cell.threads)
        taken = at_once(lambda thread: timings(*devices.register(thread), cell.seconds * TIMED_SHARE), cell.threads)
    finally:
        gc.enable()
        devices.close()
    times = sorted(itertools.chain.from_iterable(taken))
    return {"rates": rates, "p50": percentile(times, 0.5) / 1e3, "p99": percentile(times, 0.99) / 1e3}


# -- statistics --------------------------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float], q: float) -> float:
    """The least of the `ordered` values that a share of `q` of them does not exceed."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one of n has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def scaling(together: Sequence[float], alone: Sequence[float]) -> float:
    """How many times as much all do together as one does alone: each thread's rate over that which its device gives
    to one thread alone, summed, so that a cheap register does not hide a dear one."""
    return sum(rate / single for rate, single in zip(together, alone, strict=True))


# -- the report --------------------------------------------------------------------------------------------------------


def main() -> int:
    options_parser = parser(__doc__, rounds=5)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(measure, Cell)
    report = Report("Threads on devices", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with ExitStack() as stack:
        sides: dict[str, Callable[[], Result]] = {}
        workers = {python.name: stack.enter_context(Worker(python, "benchmarks.locks.threads")) for python in builds}
        for (threads, kinds), (name, worker), policy in itertools.product(GRID, workers.items(), POLICIES):
            cell = Cell(policy, threads, kinds, seconds)
            sides[side(cell, name)] = partial(worker.measure, cell)
        samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    names = list(workers)
    for python in builds:
        if python.free_threaded:
            _add_bounds(report, samples, python.name)
    _add_tables(report, samples, names)
    _add_charts(report, samples, names)
    return report.finish(options)


def side(cell: Cell, python: str) -> str:
    return f"{cell.name}, {cell.policy}, {python}"


def _taken(samples: Samples, threads: int, kinds: Sequence[str], policy: Policy, python: str) -> list[Result]:
    return samples[side(Cell(policy, threads, kinds), python)]


def _add_bounds(report: Report, samples: Samples, python: str) -> None:
    """The figures that the project promises for a build without a GIL."""
    for kinds in ((UART, RTC), (UART, UART)):
        both = {policy: _taken(samples, 2, kinds, policy, python) for policy in POLICIES}
        ratios = [sum(own["rates"]) / sum(big["rates"]) for own, big in zip(both["device"], both["bql"], strict=True)]
        alone = [_taken(samples, 1, (kind,), "device", python) for kind in kinds]
        scales = [
            scaling(result["rates"], [single["rates"][0] for single in singles])
            for result, *singles in zip(both["device"], *alone, strict=True)
        ]
        name = Cell("device", 2, kinds).name
        _add_at_least(report, f"{name}, `device` over `bql`, {python}", "ratio", ratios, RATIO_BOUND)
        _add_at_least(report, f"{name}, `device`, {python}", "times what one does", scales, SCALING_BOUND)
    one = {policy: _taken(samples, 1, (UART,), policy, python) for policy in POLICIES}
    ratios = [big["rates"][0] / own["rates"][0] for own, big in zip(one["device"], one["bql"], strict=True)]
    median = statistics.median(ratios)
    bound = f"{median:.3f}; within {ONE_THREAD_BOUND:.0%} of 1"
    name = f"{Cell('bql', 1, (UART,)).name}, `bql` over `device`, {python}"
    report.add(Figure(name, "ratio", {name: ratios}, bound, abs(median - 1) <= ONE_THREAD_BOUND))


def _add_at_least(report: Report, name: str, unit: str, values: list[float], least: float) -> None:
    median = statistics.median(values)
    report.add(Figure(name, unit, {name: values}, f"{median:.2f}; at least {least:g}", median >= least))


TABLES: Final[dict[str, tuple[str, Callable[[Result], float]]]] = {
    "all threads together": ("accesses/s", lambda result: sum(result["rates"])),
    "p50": ("us", lambda result: result["p50"]),
    "p99": ("us", lambda result: result["p99"]),
    "fairness": ("Jain's index", lambda result: jain(result["rates"])),
}


def _add_tables(report: Report, samples: Samples, pythons: Sequence[str]) -> None:
    for what, (unit, value) in TABLES.items():
        for threads, kinds in GRID:
            if what == "fairness" and (threads == 1 or len(set(kinds)) > 1):
                continue
            columns = {
                f"{policy}, {python}": [value(result) for result in _taken(samples, threads, kinds, policy, python)]
                for python in pythons
                for policy in POLICIES
            }
            name = Cell("device", threads, kinds).name
            report.add(Figure(name if unit == "accesses/s" else f"{what}, {name}", unit, columns))


def _add_charts(report: Report, samples: Samples, pythons: Sequence[str]) -> None:
    counts = [threads for threads, kinds in GRID if kinds == (UART,) * threads]
    lines: dict[str, list[tuple[float, ...]]] = {
        f"{policy}, {python}": [
            (n, statistics.median(sum(r["rates"]) for r in _taken(samples, n, (UART,) * n, policy, python)))
            for n in counts
        ]
        for python in pythons
        for policy in POLICIES
    }
    caption = "threads, each on a UART of its own; upwards: accesses a second, all together"
    report.charts.append(Chart("Throughput of threads on devices of their own", caption, lines))


if __name__ == "__main__":
    raise SystemExit(main())
