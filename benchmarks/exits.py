"""Exits to Python and back in: how many a second, and how long one takes.

A bare-metal guest reads a register of the UART in a loop. Each read leaves generated code, finds its window on the bus,
goes through the device's door (`@entry`, with its lock), register decoding and `_sync()`, and goes back in.

  LSR  line status: `_sync()` left the answer ready, the read itself drives nothing
  RBR  a received character, in loopback: the read changes state, so `_sync()` runs and sets the interrupt line

Rates are taken by the guest's clock over a loop of nothing but reads. Latency is taken in the guest too: time is read
(rdtime, 100 ns a tick) before and behind each access, so nothing is added to the path. Percentiles are interpolated
within a tick; what reading time itself costs is reported, and is in the figures.

Beside it: nothing; a second hart that does the same, to the same UART or to the clock (a device of its own); or an I/O
thread that is never done: each completion goes through a device's door and posts the next one.

The thread switch interval is what `sys.setswitchinterval` sets: how long a thread of a build with a GIL waits before it
asks the one that runs Python for it. Free-threaded builds have none.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.guests import ROOT, Assembly, Python, file_of, pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, gil_came_back, parser, say
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome
from vmm.machine.software import SoftwareHarts
from vmm.machine.virt import RAM_BASE, RTC, UART, Board

BOUND: Final = 250_000
CPYTHON_INTERVAL: Final = 5e-3
INTERVALS: Final = (CPYTHON_INTERVAL, 1e-3, 1e-4, 5e-5)
COMPLETIONS: Final = 32
"""Completions in flight: as many callbacks run in one turn of the I/O thread."""
WARM_UP: Final = 2_000
TICK_US: Final = 0.1
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

_CONTROL, _SAMPLES = RAM_BASE + (1 << 20), RAM_BASE + (2 << 20)
_TICKS, _COUNTS = 8, 16  # offsets from _CONTROL; the first word counts the harts that have arrived
_T0, _T1, _T2, _DEVICE, _AT, _HART, _END, _STEP, _COUNT, _SLOT, _BEGAN = 5, 6, 7, 8, 9, 10, 18, 19, 20, 21, 22
_TIME = 0xC01
_MCR, _LOOP = 4, 0x10
_ACCESSES = {"LSR": (UART.base, "lbu", 5), "RBR": (UART.base, "lbu", 0), "RTC": (RTC.base, "lw", 0), "time": None}


@dataclass(frozen=True)
class Cell:
    """One condition to measure under. `beside` is what a second hart reads, `interval` is in seconds."""

    register: str = "LSR"
    timed: bool = False
    beside: str = ""
    saturated: bool = False
    interval: float = CPYTHON_INTERVAL
    accesses: int = 200_000


# -- the guest ---------------------------------------------------------------------------------------------------------


def program(cell: Cell) -> bytes:
    """Harts meet; hart 0 makes its accesses and powers off, a second one makes its own until then."""
    a = Assembly()
    a.li(_DEVICE, UART.base)
    a("addi", rd=_T0, rs1=0, imm=_LOOP)
    a("sb", rs1=_DEVICE, rs2=_T0, imm=_MCR)
    _address(a, _T0, _CONTROL)
    a("addi", rd=_T1, rs1=0, imm=1)
    a("amoadd.w", rd=0, rs1=_T0, rs2=_T1)
    a("addi", rd=_T2, rs1=0, imm=2 if cell.beside else 1)
    a.label("meet")
    a("lw", rd=_T1, rs1=_T0, imm=0)
    a("bne", to="meet", rs1=_T1, rs2=_T2)
    _address(a, _AT, _SAMPLES)
    a("slli", rd=_SLOT, rs1=_HART, imm=3)
    a("add", rd=_SLOT, rs1=_SLOT, rs2=_T0)
    a("bne", to="beside", rs1=_HART, rs2=0)
    a.li(_T1, 4 * cell.accesses)
    a("add", rd=_END, rs1=_AT, rs2=_T1)
    a("addi", rd=_STEP, rs1=0, imm=4)
    a("csrrs", rd=_BEGAN, rs1=0, imm=_TIME)
    _loop(a, "loop", cell.register, cell.timed)
    a("csrrs", rd=_T1, rs1=0, imm=_TIME)
    a("sub", rd=_T1, rs1=_T1, rs2=_BEGAN)
    _address(a, _T0, _CONTROL)
    a("sd", rs1=_T0, rs2=_T1, imm=_TICKS)
    a.li(_T0, 0x10_0000)
    a.li(_T1, 0x5555)
    a("sw", rs1=_T0, rs2=_T1, imm=0)
    a.label("off")
    a("jal", to="off", rd=0)
    a.label("beside")
    a("addi", rd=_STEP, rs1=0, imm=0)
    _loop(a, "beside loop", cell.beside or "LSR", cell.timed)
    return a.code()


def _address(a: Assembly, rd: int, address: int) -> None:
    """An address in RAM: `lui` would extend its sign."""
    a("addi", rd=rd, rs1=0, imm=1)
    a("slli", rd=rd, rs1=rd, imm=31)
    a.li(_T2 if rd != _T2 else _T1, address - RAM_BASE)
    a("add", rd=rd, rs1=rd, rs2=_T2 if rd != _T2 else _T1)


def _loop(a: Assembly, label: str, register: str, timed: bool) -> None:
    access = _ACCESSES[register]
    if access:
        a.li(_DEVICE, access[0])
    a.label(label)
    if register == "RBR":
        a("sb", rs1=_DEVICE, rs2=0, imm=0)  # loopback: what is sent is received
    if timed:
        a("csrrs", rd=_T0, rs1=0, imm=_TIME)
    if access:
        a(access[1], rd=_T2, rs1=_DEVICE, imm=access[2])
    if timed:
        a("csrrs", rd=_T1, rs1=0, imm=_TIME)
        a("sub", rd=_T1, rs1=_T1, rs2=_T0)
        a("sw", rs1=_AT, rs2=_T1, imm=0)
    a("addi", rd=_COUNT, rs1=_COUNT, imm=1)
    a("sd", rs1=_SLOT, rs2=_COUNT, imm=_COUNTS)
    a("add", rd=_AT, rs1=_AT, rs2=_STEP)
    a("bne", to=label, rs1=_AT, rs2=_END)


# -- one measurement, in whatever Python this is -----------------------------------------------------------------------


class Completions:
    """Keeps an I/O thread busy between `start` and `stop`."""

    def __init__(self, board: Board) -> None:
        self._post, self._door = board.io.call_soon, board.rtc.alarm_due
        self._going = True
        self.done = 0

    def start(self) -> None:
        for _ in range(COMPLETIONS):
            self._post(self._complete)

    def stop(self) -> None:
        self._going = False

    def _complete(self) -> None:
        self._door()
        self.done += 1
        if self._going:
            self._post(self._complete)


def measure(cell: Cell) -> dict[str, Any]:
    """Rates in 1/s. Latency in us: percentiles, and the share of accesses that took longer than so much."""
    ended = threading.Event()
    outcomes: list[Outcome] = []

    def end(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    with file_of(program(cell)) as bios:
        config = Config(bios=bios, smp=2 if cell.beside else 1, mem=64 << 20)
        board = Board(config, make_harts=SoftwareHarts, ended=end, restart=ended.set, commands={})
    before = sys.getswitchinterval()
    sys.setswitchinterval(cell.interval)
    gc.collect()
    try:
        completions = Completions(board)
        if cell.saturated:
            completions.start()
        board.start()
        if not ended.wait(120) or outcomes[0].report:
            raise SystemExit(f"{cell}: {outcomes or 'did not end'}")
        completions.stop()
        control = board.ram.view[_CONTROL - RAM_BASE :][:64].cast("Q").tolist()
        samples = board.ram.view[_SAMPLES - RAM_BASE :][: 4 * cell.accesses].cast("I")[WARM_UP:].tolist()
    finally:
        sys.setswitchinterval(before)
        board.stop()
    seconds = control[_TICKS // 8] * 100e-9
    own, other = control[_COUNTS // 8], control[_COUNTS // 8 + 1]
    result: dict[str, Any] = {"rate": own / seconds, "total": (own + other) / seconds}
    result["completions"] = completions.done / seconds
    if cell.timed:
        result |= distribution(samples)
    return result


def distribution(ticks: list[int]) -> dict[str, Any]:
    """Of times in ticks: mean, percentiles and maximum, us, and points (us, share of the times that are longer)."""
    counts, total = sorted(Counter(ticks).items()), len(ticks)
    shares = [10 ** (-k / 6) for k in range(1, 31) if 10 ** (-k / 6) * total >= 1]
    return {
        "mean": sum(ticks) / total * TICK_US,
        **{name: quantile(counts, total, q) for name, q in QUANTILES.items()},
        "max": counts[-1][0] * TICK_US,
        "curve": [(round(quantile(counts, total, 1 - share), 3), share) for share in shares],
    }


def quantile(counts: list[tuple[int, int]], total: int, q: float) -> float:
    """us. A time of n ticks counts as spread evenly over n - 0.5 to n + 0.5."""
    wanted, below = q * total, 0
    for ticks, count in counts:
        if below + count >= wanted:
            return (ticks - 0.5 + (wanted - below) / count) * TICK_US
        below += count
    return counts[-1][0] * TICK_US


# -- on several Pythons ------------------------------------------------------------------------------------------------


class Worker:
    """A process of one Python that measures what it is told, so that builds can take turns."""

    def __init__(self, python: Python) -> None:
        self.python = python
        self._process = subprocess.Popen(
            [python.path, "-m", "benchmarks.exits", "--worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, cell: Cell) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(asdict(cell)), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.python.name}: the measuring process ended with {self._process.wait()}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        self._process.communicate()


def work() -> int:
    """Measures the cells that come in, as JSON, on standard input."""
    for line in sys.stdin:
        result = measure(Cell(**json.loads(line)))
        if gil_came_back():
            raise SystemExit("an import has brought the GIL back")
        print(json.dumps(result), flush=True)
    return 0


def cells(interval: float, free_threaded: bool) -> dict[str, Cell]:
    """What is measured on one build, by name."""
    rate, latency = Cell(interval=interval), Cell(timed=True, accesses=100_000, interval=interval)
    busy = replace(latency, saturated=True, accesses=30_000)
    named = {
        "rate, one hart, nothing else": rate,
        "rate, beside a hart on the same UART": replace(rate, beside="LSR"),
        "rate, beside a hart on another device": replace(rate, beside="RTC"),
        "rate, beside a saturated I/O thread": replace(rate, saturated=True, accesses=50_000),
        "reading time alone": replace(latency, register="time"),
    }
    for register in ("LSR", "RBR"):
        named |= {
            f"{register}, one hart, idle": replace(latency, register=register),
            f"{register}, two harts, idle": replace(latency, register=register, beside=register),
            f"{register}, one hart, I/O saturated": replace(busy, register=register),
            f"{register}, two harts, I/O saturated": replace(busy, register=register, beside=register),
        }
    if not free_threaded:
        for seconds in INTERVALS:
            name = f"at {seconds * 1e3:g} ms"
            named[f"{name}, rate, beside a saturated I/O thread"] = replace(
                rate, saturated=True, accesses=50_000, interval=seconds
            )
            named[f"{name}, rate, beside a hart on the same UART"] = replace(rate, beside="LSR", interval=seconds)
            named[f"{name}, LSR, one hart, I/O saturated"] = replace(busy, interval=seconds)
            named[f"{name}, LSR, two harts, idle"] = replace(latency, beside="LSR", interval=seconds)
    return named


def main() -> int:
    options_parser = parser(__doc__, rounds=5)
    options_parser.add_argument(
        "--python", type=Path, action="append", metavar="PATH", help="measure on this Python (again for more of them)"
    )
    options_parser.add_argument(
        "--interval", type=float, default=sys.getswitchinterval(), metavar="SECONDS", help="thread switch interval"
    )
    options_parser.add_argument("--only", default="", metavar="TEXT", help="conditions with this in their names")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return work()
    report = Report("Exits: a locked device register, read by a guest", __doc__ or "")
    quiet = Quiet(options.patience)
    workers = [Worker(python) for python in pythons(options.python)]
    report.facts["pythons"] = {worker.python.name: worker.python.build for worker in workers}
    report.facts["switch interval"] = f"{options.interval * 1e3:g} ms"
    try:
        sides: dict[str, Callable[[], dict[str, Any]]] = {}
        plan: dict[str, dict[str, str]] = {}
        for worker in workers:
            for name, cell in cells(options.interval, "t" in worker.python.name.split()[-1]).items():
                if options.only in name:
                    side = f"{name}, {worker.python.name}"
                    sides[side] = lambda worker=worker, cell=cell: worker.measure(cell)  # type: ignore[misc]
                    plan.setdefault(name, {})[worker.python.name] = side
        sides = {side: sides[side] for name in plan for side in plan[name].values()}
        samples = alternate(sides, options.rounds, quiet)
    finally:
        for worker in workers:
            worker.close()
    say("")
    report.facts["conditions"] = str(quiet)
    for name, by_python in plan.items():
        results = {python: samples[side] for python, side in by_python.items()}
        if "curve" not in next(iter(results.values()))[0]:
            _add_rate(report, name, results)
        else:
            _add_latency(report, name, results)
    return report.finish(options)


def _add_rate(report: Report, name: str, results: dict[str, list[dict[str, Any]]]) -> None:
    columns = {python: [result["rate"] for result in taken] for python, taken in results.items()}
    if "hart on" in name:
        columns |= {f"{python}, both harts": [r["total"] for r in taken] for python, taken in results.items()}
    if "I/O" in name:
        columns |= {f"{python}, completions": [r["completions"] for r in taken] for python, taken in results.items()}
    figure = Figure(name, "exits/s", columns)
    gil = [python for python in results if not python.endswith("t")]
    if name == "rate, one hart, nothing else" and gil:
        bound = f"{gil[0]} at least {BOUND:,} a second"
        figure = Figure(name, "exits/s", columns, bound, figure.medians[gil[0]] >= BOUND)
    report.add(figure)


def _add_latency(report: Report, name: str, results: dict[str, list[dict[str, Any]]]) -> None:
    columns = {
        f"{python} {what}": [result[what] for result in taken]
        for python, taken in results.items()
        for what in ("mean", *QUANTILES, "max")
    }
    report.add(Figure(f"latency, {name}", "us", columns))
    curves = report.curves.setdefault("latency", {})
    for python, taken in results.items():
        middle = sorted(taken, key=lambda result: float(result["p99"]))[len(taken) // 2]
        curves[f"{name}, {python}"] = middle["curve"]


if __name__ == "__main__":
    raise SystemExit(main())
