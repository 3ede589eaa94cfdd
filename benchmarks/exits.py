"""Exits to Python and back in: how many a second, and how long one takes.

A bare-metal guest reads a register of the UART in a loop. Each read leaves generated code, finds its window on the bus,
goes through the device's door (`@entry`, with its lock), register decoding and `_sync()`, and goes back in.

  LSR  line status: `_sync()` left the answer ready, the read itself drives nothing
  RBR  a received character, in loopback: the read changes state, so `_sync()` runs and sets the interrupt line

Rates are taken by the guest's clock over a loop of nothing but reads. Latency is taken in the guest too: time is read
(rdtime, 100 ns a tick) before and behind each access, so nothing is added to the path. Percentiles are interpolated
within a tick; what reading time itself costs is reported, and is in the figures.

Beside it: nothing; a second hart that does the same, to the same UART or to the clock (a device of its own); an I/O
thread that is never done ("saturated": each completion goes through a device's door and posts the next one); or a
thread that computes in Python and never waits, which this monitor must not have.

The thread switch interval is what `sys.setswitchinterval` sets: how long a thread of a build with a GIL waits before it
asks the one that runs Python for it. Free-threaded builds have none.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.guests import TICK_S, Assembly, file_of, pythons
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from benchmarks.workers import Worker, serve
from vmm.bql import Policy
from vmm.locks import Locking
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome
from vmm.machine.software import SoftwareHarts
from vmm.machine.virt import RAM_BASE, RTC, UART, Board
from vmm.vcpu.thread import SWITCH_INTERVAL_S

BOUND: Final = 250_000
CPYTHON_INTERVAL: Final = 5e-3
INTERVALS: Final = (CPYTHON_INTERVAL, 1e-3, 1e-4, 5e-5)
COMPLETIONS: Final = 32
"""Completions in flight: as many callbacks run in one turn of the I/O thread."""
WARM_UP: Final = 2_000
LOOK: Final = 8
"""Accesses between two looks at whether the time is over."""
APART: Final = 100
"""us. At 10,000 exits a second a hart is outside of Python most of the time: others take the GIL meanwhile."""
TICK_NS: Final = 100
TICK_US: Final = TICK_NS / 1e3
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

PLOTS: Final = {
    "A read of LSR, one after the other": "LSR, (.*)",
    f"A read of LSR every {APART} µs": "LSR apart, ((?:one hart|two harts), (?:idle|I/O saturated))",
    f"A read of LSR every {APART} µs beside a computing thread": (
        "LSR apart, one hart, beside a computing thread,? ?(.*)"
    ),
}
"""Title -> names of conditions; what is in parentheses names the line."""

_CONTROL, _SAMPLES = RAM_BASE + (1 << 20), RAM_BASE + (2 << 20)
# offsets from _CONTROL; the first word counts the harts that have arrived
_FIRST, _LAST, _COUNTS = 8, 16, 24
_T0, _T1, _T2, _DEVICE, _AT, _HART, _END, _STEP, _COUNT, _SLOT, _BEGAN, _UNTIL = 5, 6, 7, 8, 9, 10, *range(18, 24)
_TIME = 0xC01
_MCR, _LOOP = 4, 0x10
OWN: Final = 0x1001_0000
"""Where a benchmark's own device is, if it has one: beyond the board's."""
_ACCESSES = {
    "LSR": (UART.base, "lbu", 5),
    "RBR": (UART.base, "lbu", 0),
    "RTC": (RTC.base, "lw", 0),
    "own": (OWN, "lw", 0),
    "time": None,
}


@dataclass(frozen=True)
class Cell:
    """One condition to measure under.

    `beside` is what a second hart reads ("own": a device that `prepare` mapped), `apart` the us that each hart computes
    between accesses, `load` what another thread does ("completions", "computing"), `interval` the thread switch
    interval, s, where it is not to be the machine's own. It ends after so many accesses, or so many seconds.
    """

    register: str = "LSR"
    timed: bool = False
    beside: str = ""
    apart: int = 0
    load: str = ""
    interval: float | None = None
    accesses: int = 200_000
    seconds: float = 0.5
    locking: Policy = "device"


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
    a.li(_UNTIL, int(cell.seconds / TICK_S))
    a("csrrs", rd=_BEGAN, rs1=0, imm=_TIME)
    a("add", rd=_UNTIL, rs1=_UNTIL, rs2=_BEGAN)
    _loop(a, "loop", cell.register, cell)
    a.label("loop: over")
    a("csrrs", rd=_T1, rs1=0, imm=_TIME)
    a("sd", rs1=_SLOT, rs2=_BEGAN, imm=_FIRST)
    a("sd", rs1=_SLOT, rs2=_T1, imm=_LAST)
    a.li(_T0, 0x10_0000)
    a.li(_T1, 0x5555)
    a("sw", rs1=_T0, rs2=_T1, imm=0)
    a.label("off")
    a("jal", to="off", rd=0)
    a.label("beside")
    a("addi", rd=_STEP, rs1=0, imm=0)
    a("addi", rd=_UNTIL, rs1=0, imm=-1)
    _loop(a, "beside loop", cell.beside or "LSR", cell)
    a.label("beside loop: over")
    return a.code()


def _address(a: Assembly, rd: int, address: int) -> None:
    """An address in RAM: `lui` would extend its sign."""
    a("addi", rd=rd, rs1=0, imm=1)
    a("slli", rd=rd, rs1=rd, imm=31)
    a.li(_T2 if rd != _T2 else _T1, address - RAM_BASE)
    a("add", rd=rd, rs1=rd, rs2=_T2 if rd != _T2 else _T1)


def _loop(a: Assembly, label: str, register: str, cell: Cell) -> None:
    access, timed = _ACCESSES[register], cell.timed
    if access:
        a.li(_DEVICE, access[0])
    a.label(label)
    if cell.apart:
        a("csrrs", rd=_T2, rs1=0, imm=_TIME)
        a("addi", rd=_T2, rs1=_T2, imm=cell.apart * 1000 // TICK_NS)
        a.label(f"{label}: apart")
        a("csrrs", rd=_T1, rs1=0, imm=_TIME)
        a("bltu", to=f"{label}: apart", rs1=_T1, rs2=_T2)
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
    a("andi", rd=_T1, rs1=_COUNT, imm=LOOK - 1)
    a("bne", to=f"{label}: on", rs1=_T1, rs2=0)
    a("csrrs", rd=_T1, rs1=0, imm=_TIME)
    a("bgeu", to=f"{label}: over", rs1=_T1, rs2=_UNTIL)
    a.label(f"{label}: on")
    a("bne", to=label, rs1=_AT, rs2=_END)


# -- one measurement, in whatever Python this is -----------------------------------------------------------------------


class Load:
    """What else the process does meanwhile."""

    def __init__(self, board: Board, kind: str) -> None:
        self._post, self._door, self._now = board.io.call_soon, board.rtc.alarm_due, board.clock.now
        self._going = True
        self._times: list[int] = []
        if kind == "completions":
            for _ in range(COMPLETIONS):
                self._post(self._complete)
        elif kind == "computing":
            threading.Thread(target=self._compute, daemon=True).start()

    def stop(self) -> None:
        self._going = False

    def completions(self, first: int, last: int) -> int:
        """How many there were between two readings of the guest's clock."""
        return sum(first * TICK_NS <= time < last * TICK_NS for time in self._times)

    def _complete(self) -> None:
        self._door()
        self._times.append(self._now())
        if self._going:
            self._post(self._complete)

    def _compute(self) -> None:
        turns = 0
        while self._going:
            turns += 1


def measure(cell: Cell, prepare: Callable[[Board], None] = lambda board: None) -> dict[str, Any]:
    """Rates in 1/s. Latency in us: percentiles, and the share of accesses that took longer than so much.

    `prepare` may add to the board before it starts.
    """
    ended = threading.Event()
    outcomes: list[Outcome] = []

    def end(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    with file_of(program(cell)) as bios:
        config = Config(bios=bios, smp=2 if cell.beside else 1, mem=64 << 20, locking=cell.locking)
        board = Board(
            config, locking=Locking(config.locking), make_harts=SoftwareHarts, ended=end, restart=ended.set, commands={}
        )
    gc.collect()
    try:
        prepare(board)
        load = Load(board, cell.load)
        board.start()
        if cell.interval:
            sys.setswitchinterval(cell.interval)
        if not ended.wait(120) or outcomes[0].report:
            raise SystemExit(f"{cell}: {outcomes or 'did not end'}")
        load.stop()
        control = board.ram.view[_CONTROL - RAM_BASE :][:64].cast("Q").tolist()
        room = 4 * cell.accesses if cell.timed else 0
        samples = board.ram.view[_SAMPLES - RAM_BASE :][:room].cast("I").tolist()
    finally:
        sys.setswitchinterval(CPYTHON_INTERVAL)  # the next machine sets its own
        board.stop()
    first, last = control[_FIRST // 8], control[_LAST // 8]
    seconds = (last - first) * TICK_S
    own, other = control[_COUNTS // 8], control[_COUNTS // 8 + 1]
    result: dict[str, Any] = {"rate": own / seconds, "total": (own + other) / seconds}
    result["completions"] = load.completions(first, last) / seconds
    if cell.timed:
        result |= distribution(samples[min(WARM_UP, own // 10) : own])
    return result


def distribution(times: list[int], unit: float = TICK_US) -> dict[str, Any]:
    """Of whole times of so many us: mean, percentiles and maximum, us, and points (us, share of the times that are
    longer)."""
    counts, total = sorted(Counter(times).items()), len(times)
    shares = [10 ** (-k / 6) for k in range(1, 31) if 10 ** (-k / 6) * total >= 1]
    return {
        "mean": sum(times) / total * unit,
        **{name: quantile(counts, total, q) * unit for name, q in QUANTILES.items()},
        "max": counts[-1][0] * unit,
        "curve": [(round(quantile(counts, total, 1 - share) * unit, 3), share) for share in shares],
    }


def quantile(counts: list[tuple[int, int]], total: int, q: float) -> float:
    """A time of n counts as spread evenly over n - 0.5 to n + 0.5."""
    wanted, below = q * total, 0
    for time, count in counts:
        if below + count >= wanted:
            return time - 0.5 + (wanted - below) / count
        below += count
    return counts[-1][0]


# -- on several Pythons ------------------------------------------------------------------------------------------------


def cells(free_threaded: bool) -> dict[str, Cell]:
    """What is measured on one build, by name."""
    alone, timed = Cell(), Cell(timed=True, accesses=100_000)
    named = {
        "rate, one hart, nothing else": alone,
        "rate, beside a hart on the same UART": replace(alone, beside="LSR"),
        "rate, beside a hart on another device": replace(alone, beside="RTC"),
        "rate, beside a saturated I/O thread": replace(alone, load="completions"),
        "reading time alone": replace(timed, register="time"),
    }
    for register in ("LSR", "RBR"):
        for load, loaded in {"idle": "", "I/O saturated": "completions"}.items():
            cell = replace(timed, register=register, load=loaded)
            apart = replace(cell, apart=APART, accesses=5_000)
            named |= {
                f"{register}, one hart, {load}": cell,
                f"{register}, two harts, {load}": replace(cell, beside=register),
                f"{register} apart, one hart, {load}": apart,
                f"{register} apart, two harts, {load}": replace(apart, beside=register),
            }
    apart = replace(timed, apart=APART, accesses=5_000)
    if free_threaded:
        return {**named, "LSR apart, one hart, beside a computing thread": replace(apart, load="computing")}
    for seconds in INTERVALS:
        at = f"at {seconds * 1e3:g} ms"
        slow = replace(apart, load="computing", accesses=min(5_000, int(1.5 / seconds)))
        named |= {
            f"LSR apart, one hart, beside a computing thread, {at}": replace(slow, interval=seconds),
            f"LSR apart, one hart, I/O saturated, {at}": replace(apart, load="completions", interval=seconds),
            f"LSR apart, two harts, I/O saturated, {at}": replace(
                apart, beside="LSR", load="completions", interval=seconds
            ),
            f"rate, beside a hart on the same UART, {at}": replace(alone, beside="LSR", interval=seconds),
            f"rate, beside a saturated I/O thread, {at}": replace(alone, load="completions", interval=seconds),
        }
    return named


def main() -> int:
    options_parser = parser(__doc__, rounds=5)
    options_parser.add_argument(
        "--python", type=Path, action="append", metavar="PATH", help="measure on this Python (again for more of them)"
    )
    options_parser.add_argument("--only", default="", metavar="TEXT", help="conditions with this in their names")
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(measure, Cell)
    report = Report("Exits: a locked device register, read by a guest", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    report.facts["thread switch interval"] = f"{SWITCH_INTERVAL_S * 1e3:g} ms unless said otherwise"
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(python, "benchmarks.exits")) for python in builds]
        sides: dict[str, Callable[[], dict[str, Any]]] = {}
        plan: dict[str, dict[str, str]] = {}
        for worker in workers:
            for name, cell in cells(worker.python.free_threaded).items():
                if options.only in name:
                    side = f"{name}, {worker.python.name}"
                    sides[side] = lambda worker=worker, cell=cell: worker.measure(cell)  # type: ignore[misc]
                    plan.setdefault(name, {})[worker.python.name] = side
        sides = {side: sides[side] for name in plan for side in plan[name].values()}
        samples = alternate(sides, options.rounds, quiet)
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
    for title, pattern in PLOTS.items():
        if match := re.fullmatch(pattern, name):
            for python, taken in results.items():
                middle = sorted(taken, key=lambda result: float(result["p99"]))[len(taken) // 2]
                report.curves.setdefault(title, {})[f"{match[1] or 'no interval'}, {python}"] = middle["curve"]


if __name__ == "__main__":
    raise SystemExit(main())
