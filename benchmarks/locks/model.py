"""Beyond this machine: a discrete-event model of both policies, to 64 processors. None of it is a measurement of those.

It follows threads of the free-threaded build, each on a UART, as `benchmarks/locks/threads.py` measures them:

  access    time outside the lock, and time with it held
  lock      that of CPython: whoever finds it free takes it, also past those that wait; whoever finds it taken sleeps
  release   a system call while others wait, dearer when it wakes one, and dearer still where that one finds no idle
            processor and takes a busy one's; it tries again after the time to wake
  line      what threads share but do not lock (reference counts) moves from processor to processor, one at a time
  processor threads that are ready take turns, a slice each, and may lose the processor with the lock held

The parameters are fitted to measured points of one to three threads. All other points, those of four to eight threads
on two processors, are held out and say how far off the model is. What it takes to move a cache line
to another processor is not known for machines that are not here, so it is swept, and the projection is a band. A third
line says what one reference count would cost that all threads' accesses share.

A build with a GIL needs no model: all its threads together do what one does, under either policy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import simpy

from benchmarks.locks.threads import GRID, UART, Cell, jain
from benchmarks.page import RESULTS, result_name
from benchmarks.report import Chart, Figure, Report, parser
from vmm.bql import POLICIES, Policy

LINE_NS: Final = 100.0
"""What moving a cache line is taken to cost on the machine that was measured."""
BAND_NS: Final = (50.0, 100.0, 400.0)
"""Swept: within a chip's cluster, between clusters, between sockets."""
PROCESSORS: Final = 64
SLICE_NS: Final = 3e6
JITTER: Final = 0.1
FIT_NS, CHECK_NS, PROJECT_NS = 4e6, 60e6, 1.5e6
"""Simulated time of one run."""
SWEEPS, QUICK_SWEEPS = 4, 2
"""Passes of the fit over all parameters."""
MODULE: Final = "locks.threads"


@dataclass(frozen=True)
class Load:
    """So many threads, each on the lock of its number modulo `locks`, on so many processors."""

    threads: int
    locks: int
    processors: int


@dataclass(frozen=True)
class Parameters:
    """Times in ns."""

    alone: float
    """One access, where nobody else is."""
    held: float = 0.7
    """The share of it with the lock held."""
    call: float = 600.0
    """What a release costs more while others wait."""
    wake: float = 2_000.0
    """What it costs more than that when it wakes one of them."""
    latency: float = 30_000.0
    """From being woken to trying again."""
    crowd: float = 2_000.0
    """What it costs more when all processors are busy: the scheduler makes room for the one that was woken."""
    handover: float = 100.0
    """What taking a lock costs more when another thread had it last."""
    shared: float = 0.0
    """Cache lines an access moves that every thread's accesses move."""
    line: float = LINE_NS
    """What moving one takes, and for how long nobody else can have it."""


FITTED: Final[Mapping[str, tuple[float, float]]] = {
    "held": (0.3, 0.95),
    "call": (50.0, 5_000.0),
    "wake": (100.0, 30_000.0),
    "latency": (1_000.0, 200_000.0),
    "crowd": (100.0, 30_000.0),
    "handover": (10.0, 3_000.0),
    "shared": (0.001, 1.0),
}
"""The parameters that the fit may move, and their bounds."""
STEPS: Final = (0.5, 0.8, 1.25, 2.0)


# -- the model ---------------------------------------------------------------------------------------------------------


class _Lock:
    def __init__(self) -> None:
        self.taken = False
        self.last: int | None = None
        self.waiting = 0
        self.asleep: deque[simpy.Event] = deque()


@dataclass(frozen=True)
class _Turn:
    """A thread's processor, and until when others leave it to that thread."""

    processor: simpy.resources.resource.Request
    until: float


class Model:
    """One run of it. `counts` are the accesses of each thread."""

    def __init__(self, load: Load, parameters: Parameters, seed: int = 1) -> None:
        self._p = parameters
        self._env = simpy.Environment()
        self._processors = simpy.Resource(self._env, min(load.processors, load.threads))
        self._locks = [_Lock() for _ in range(load.locks)]
        self._line_free_at = 0.0
        self._line_at: int | None = None
        self._random = random.Random(seed)
        self.counts = [0] * load.threads
        for index in range(load.threads):
            self._env.process(self._thread(index, self._locks[index % load.locks]))

    def run(self, duration: float) -> list[float]:
        """The threads' rates, 1/s, over so many ns."""
        self._env.run(duration)
        return [count * 1e9 / duration for count in self.counts]

    def _spend(self, ns: float) -> simpy.Event:
        return self._env.timeout(ns * self._random.uniform(1 - JITTER, 1 + JITTER))

    def _thread(self, index: int, lock: _Lock) -> Generator[simpy.Event, None, None]:
        p = self._p
        inside = p.alone * p.held
        outside = p.alone - inside
        turn = yield from self._ready()
        while True:
            yield self._spend(outside + self._line(index))
            turn = yield from self._slice(turn)
            if lock.taken:
                lock.waiting += 1
                while lock.taken:
                    woken = self._env.event()
                    lock.asleep.append(woken)
                    self._processors.release(turn.processor)
                    yield woken
                    yield self._spend(p.latency)
                    turn = yield from self._ready()
                lock.waiting -= 1
            lock.taken = True
            yield self._spend(inside + (p.handover * p.line / LINE_NS if lock.last not in (None, index) else 0.0))
            turn = yield from self._slice(turn)
            lock.taken, lock.last = False, index
            self.counts[index] += 1
            if lock.asleep:
                lock.asleep.popleft().succeed()
                busy = self._processors.count == self._processors.capacity
                yield self._spend(p.call + p.wake + p.crowd * busy)
            elif lock.waiting:
                yield self._spend(p.call)

    def _ready(self) -> Generator[simpy.Event, None, _Turn]:
        """Wait for a processor."""
        processor = self._processors.request()
        yield processor
        return _Turn(processor, self._env.now + SLICE_NS)

    def _slice(self, turn: _Turn) -> Generator[simpy.Event, None, _Turn]:
        """Go on, or wait for another turn where this one is over and others are ready, whatever lock is held."""
        if self._env.now < turn.until:
            return turn
        if not self._processors.queue:
            return _Turn(turn.processor, self._env.now + SLICE_NS)
        self._processors.release(turn.processor)
        return (yield from self._ready())

    def _line(self, index: int) -> float:
        """How long this access waits for, and moves, what all threads share."""
        now = self._env.now
        cost = self._p.shared * self._p.line if self._line_at not in (None, index) else 0.0
        start = max(now, self._line_free_at)
        self._line_at, self._line_free_at = index, start + cost
        return start + cost - now


def rates(load: Load, parameters: Parameters, duration: float) -> list[float]:
    return Model(load, parameters).run(duration)


# -- fit and check -----------------------------------------------------------------------------------------------------

Point = tuple[Policy, int, int]
"""Policy, threads, devices."""


def load_of(point: Point, processors: int) -> Load:
    policy, threads, devices = point
    return Load(threads, 1 if policy == "bql" else devices, processors)


def is_fitted(point: Point) -> bool:
    """Whether the fit may see it; the others are held out."""
    return point[1] <= 3


def error(predicted: float, measured: float) -> float:
    """0.1 for 10 % off, whether above or below."""
    return abs(math.log(predicted / measured))


def fit(measured: Mapping[Point, float], processors: int, sweeps: int) -> Parameters:
    """Parameters with which the model comes close to the measured rates, 1/s, by coordinate search."""
    alone = [rate for (_, threads, _), rate in measured.items() if threads == 1]
    best = Parameters(alone=1e9 / statistics.mean(alone))

    def off(parameters: Parameters) -> float:
        return sum(
            error(sum(rates(load_of(point, processors), parameters, FIT_NS)), rate) ** 2
            for point, rate in measured.items()
            if point[1] > 1
        )

    least = off(best := replace(best, shared=FITTED["shared"][0]))
    for _ in range(sweeps):
        for name, (low, high) in FITTED.items():
            for step in STEPS:
                value = min(high, max(low, getattr(best, name) * step))
                tried = replace(best, **{name: value})
                if (now := off(tried)) < least:
                    best, least = tried, now
    return best


def points(path: Path) -> tuple[str, dict[Point, float]]:
    """A free-threaded build's name, and its medians of all threads' accesses a second."""
    try:
        figures = json.loads(path.read_text())["figures"]
    except OSError as e:
        raise SystemExit(f"--points {path}: {e.strerror}: run `python -m benchmarks.{MODULE} --json FILE` first") from e
    except (ValueError, KeyError) as e:
        raise SystemExit(f"--points {path}: no result of benchmarks.{MODULE}") from e
    by_name = {figure["name"]: figure["medians"] for figure in figures if figure["unit"] == "accesses/s"}
    columns = [column for medians in by_name.values() for column in medians if column.endswith("t")]
    if not columns:
        raise SystemExit(f"--points {path}: nothing was measured on a free-threaded build")
    python = columns[0].rpartition(", ")[2]
    return python, {
        (policy, threads, len(kinds)): by_name[Cell(policy, threads, kinds).name][f"{policy}, {python}"]
        for threads, kinds in GRID
        for policy in POLICIES
        if set(kinds) == {UART}
    }


# -- the report --------------------------------------------------------------------------------------------------------


def main() -> int:
    options_parser = parser(__doc__, rounds=1)
    options_parser.add_argument(
        "--python", type=Path, action="append", help=argparse.SUPPRESS
    )  # what it models is given
    options_parser.add_argument(
        "--points", type=Path, metavar="FILE", help=f"result of benchmarks.{MODULE} (default: beside --json)"
    )
    options = options_parser.parse_args()
    folder = options.json.parent if options.json else RESULTS
    python, measured = points(options.points or folder / f"{result_name(MODULE)}.json")
    report = Report("Both policies beyond this machine (model)", __doc__ or "")
    processors = len(os.sched_getaffinity(0))
    seen = {point: rate for point, rate in measured.items() if is_fitted(point)}
    found = fit(seen, processors, QUICK_SWEEPS if options.quick else SWEEPS)
    report.facts["fitted to"] = f"{python}, {processors} processors, {len(seen)} of {len(measured)} points"
    report.facts["parameters"] = ", ".join(f"{name} {getattr(found, name):.3g}" for name in ("alone", *FITTED))
    _add_check(report, measured, found, processors)
    _add_projection(report, found)
    return report.finish(options)


def _add_check(report: Report, measured: Mapping[Point, float], found: Parameters, processors: int) -> None:
    errors = []
    for point, rate in measured.items():
        predicted = sum(rates(load_of(point, processors), found, CHECK_NS))
        policy, threads, devices = point
        if not is_fitted(point):
            errors.append(error(predicted, rate))
        kind = "fitted" if is_fitted(point) else "held out"
        name = f"{Cell(policy, threads, (UART,) * devices).name}, {policy} ({kind})"
        report.add(Figure(name, "accesses/s", {"measured": [rate], "model": [predicted]}))
    off = [100 * (math.exp(value) - 1) for value in errors]
    report.add(Figure("the model against held-out points", "% off", {f"{len(off)} held-out points": off}))


def _add_projection(report: Report, found: Parameters) -> None:
    counts = [2**power for power in range(int(math.log2(PROCESSORS)) + 1)]
    lines: dict[str, list[tuple[float, ...]]] = {}
    most: dict[str, list[float]] = {}
    fairness: dict[str, list[float]] = {}
    shared = replace(found, shared=1.0)
    variants: dict[str, tuple[Policy, Parameters]] = {
        "device": ("device", found),
        "device, if each access moved one shared line": ("device", shared),
        "bql": ("bql", found),
    }
    for name, (policy, parameters) in variants.items():
        for threads in counts:
            load = load_of((policy, threads, threads), PROCESSORS)
            swept = [rates(load, replace(parameters, line=line), PROJECT_NS) for line in BAND_NS]
            totals = sorted(map(sum, swept))
            lines.setdefault(name, []).append((threads, statistics.median(totals), totals[0], totals[-1]))
            most[name] = [total / 1e6 for total in totals]
            fairness[name] = [jain(each) for each in swept]
    title = f"Model: throughput up to {PROCESSORS} processors"
    caption = "threads, each on a device and a processor of its own; upwards: accesses a second (model)"
    report.charts.append(Chart(title, caption, lines, bands=True))
    report.add(Figure(f"{PROCESSORS} threads on {PROCESSORS} devices (model)", "M accesses/s over the band", most))
    report.add(Figure(f"fairness of {PROCESSORS} threads (model)", "Jain's index over the band", fairness))


if __name__ == "__main__":
    raise SystemExit(main())
