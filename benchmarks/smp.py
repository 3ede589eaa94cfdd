"""Two busy harts against one: how much more they get done together, beside what the host gives to two processes.

tests/programs/speed/smp does the same private work on one hart, then on two at once, then adds to one shared word and
takes one spinlock from both. The host's own measure, in the same round: a spinning process alone, and two of them. A
machine whose second processor is busy or shared gives less than 2 to either.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.guests import build_programs, lines, pythons, qemu, qemu_version, vmm_run
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser

BOUND: Final = 0.95
HARTS: Final = 2
NATIVE: Final = "two processes"
SPIN: Final = """
def spin(n):
    while n:
        n -= 1
spin(30_000_000)
"""
Scales = dict[str, float]


def spin(python: Path, processes: int) -> float:
    """Seconds until so many processes are all through the same loop."""
    began = time.perf_counter()
    spinning = [subprocess.Popen([python, "-S", "-E", "-c", SPIN]) for _ in range(processes)]
    for process in spinning:
        process.wait()
    return time.perf_counter() - began


def native(python: Path) -> Scales:
    return {"work": HARTS * spin(python, 1) / spin(python, HARTS)}


def guest(argv: list[str]) -> Scales:
    """How many times as much each part gets done by all harts together."""
    said = lines(argv)
    parts = {name.removesuffix("-1") for name in said if name.endswith("-1")}
    return {part: said[f"{part}-1"].each / said[f"{part}-{HARTS}"].each for part in parts}


def main() -> int:
    options_parser = parser(__doc__, rounds=7)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="run ours on this Python")
    options = options_parser.parse_args()
    report = Report("SMP: two busy harts against one", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts |= {"pythons": {python.name: python.build for python in builds}, "QEMU": qemu_version()}
    bios = build_programs() / "smp.elf"
    sides: dict[str, Callable[[], Scales]] = {NATIVE: lambda: native(builds[0].path)}
    for python in builds:
        argv = vmm_run(python, "--bios", bios, "--smp", str(HARTS))
        sides[f"ours, {python.name}"] = lambda argv=argv: guest(argv)  # type: ignore[misc]
    sides["QEMU"] = lambda: guest(qemu("-bios", bios, "-smp", str(HARTS), "-m", "256"))
    samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    work = {side: [scales["work"] for scales in taken] for side, taken in samples.items()}
    report.add(Figure("work of two at once", "times that of one", work))
    against = {
        side: [scale / of_host for scale, of_host in zip(work[side], work[NATIVE], strict=True)]
        for side in work
        if side != NATIVE
    }
    figure = Figure("the same, as a share of what two processes get", "ratio", against)
    first = next(iter(against))
    bound = f"{first}: {figure.medians[first]:.2f}; at least {BOUND}"
    report.add(Figure(figure.name, figure.unit, against, bound, figure.medians[first] >= BOUND))
    for part, title in {"amoadd": "adding to one shared word", "spinlock": "taking one spinlock"}.items():
        shared = {side: [scales[part] for scales in taken] for side, taken in samples.items() if side != NATIVE}
        report.add(Figure(f"{title}, both at once", "times what one does", shared))
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
