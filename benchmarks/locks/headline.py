"""Two real guests' harts on a device each, against one: do device models scale?

One bare-metal program (tests/programs/speed/devices.c) for every monitor: hart 0 reads the clock (goldfish RTC), hart 1
the UART's line status, each alone for half a second and then both at once. Every read leaves the guest, and here goes
through Python and the device's lock; what native code answers (PLIC, ACLINT, lock-free registers) takes no part.

The scale is what both get done together over what one does alone, the mean of the two. Under `--locking device` the two
share no lock. Under `--locking bql` and in QEMU, whose devices of this board are under its big lock, they share one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.guests import Line, build_programs, lines, pythons, qemu, qemu_version, vmm_run
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from vmm.bql import POLICIES

BOUND: Final = 1.7
DEVICES: Final = ("rtc", "uart")
HARTS: Final = len(DEVICES)
Lines = dict[str, Line]


def alone(said: Lines) -> float:
    """Accesses a second of one hart, the mean of both devices."""
    return sum(1 / said[f"{device}-1"].each for device in DEVICES) / HARTS


def together(said: Lines) -> float:
    """Accesses a second of both harts."""
    return sum(1 / said[f"{device}-{HARTS}"].each for device in DEVICES)


def scale(said: Lines) -> float:
    return together(said) / alone(said)


def main() -> int:
    options_parser = parser(__doc__, rounds=9)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="run ours on this Python")
    options = options_parser.parse_args()
    report = Report("Real guests: two harts on a device each", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    report.facts |= {"pythons": {python.name: python.build for python in builds}, "QEMU": qemu_version()}
    bios = build_programs() / "devices.elf"
    sides: dict[str, Callable[[], Lines]] = {}
    for python in builds:
        for policy in POLICIES:
            argv = vmm_run(python, "--bios", bios, "--smp", str(HARTS), "--locking", policy)
            sides[f"{policy}, {python.name}"] = partial(lines, argv)
    sides["QEMU"] = partial(lines, qemu("-bios", bios, "-smp", str(HARTS), "-m", "256"))
    samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    scales = {side: [scale(said) for said in taken] for side, taken in samples.items()}
    figure = Figure("two harts on a device each", "times what one does", scales)
    held = [f"device, {python.name}" for python in builds if python.free_threaded]
    if held:
        bound = f"{held[0]}: {figure.medians[held[0]]:.2f}; at least {BOUND}"
        figure = Figure(figure.name, figure.unit, scales, bound, figure.medians[held[0]] >= BOUND)
    report.add(figure)
    for title, rate in {"one hart": alone, "both harts together": together}.items():
        rates = {side: [rate(said) for said in taken] for side, taken in samples.items()}
        report.add(Figure(f"accesses of {title}", "1/s", rates))
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
