"""Bare-metal programs on one hart, here and in QEMU (TCG), in turn.

The programs are those of tests/programs/speed: hot loops (alu, branches, copy), floating point (fpmatrix), what
embedded programs do (mix: lists, matrices, a state machine, CRC, as CoreMark has them), and branchy code of 69 KB and
685 KB that touches most of itself. Each reads the guest's clock around its work, so neither monitor's start counts,
while decoding and translating do. QEMU's time divided by ours: above 1 is faster than QEMU. Ours is measured with the
baseline tier, as it runs unless told otherwise, and with the interpreter alone (--jit off).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.guests import Broken, Python, build_programs, lines, pythons, qemu, qemu_version, vmm_run
from benchmarks.progress import say
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from vmm.locks import Locking
from vmm.machine.config import Config
from vmm.machine.software import SoftwareHarts
from vmm.machine.virt import Board

GROUPS: Final = {
    "hot loops": (("alu", "branches", "copy"), 0.25),
    "the mix": (("mix",), 0.6),
    "other programs": (("fpmatrix", "branchy69k", "branchy685k"), None),
}
PROGRAMS: Final = tuple(name for names, _ in GROUPS.values() for name in names)
MEMORY: Final = 128
INTERPRETER, BASELINE, QEMU = "ours, interpreting", "ours", "QEMU"


def instructions(bios: Path) -> int:
    """How many instructions a program takes from reset to power-off."""
    ended = threading.Event()
    board = Board(
        Config(bios=bios, mem=MEMORY << 20),
        locking=Locking(),
        make_harts=SoftwareHarts,
        ended=lambda outcome: ended.set(),
        restart=ended.set,
        commands={},
    )
    try:
        board.start()
        if not ended.wait(120):
            raise Broken(f"{bios.name} did not end")
        hart = board.harts.statistics()["vcpu0"]
        assert isinstance(hart, dict)
        return int(hart["retired"])
    finally:
        board.stop()


def seconds(argv: list[str]) -> float:
    return sum(line.seconds for line in lines(argv).values())


def sides(python: Python, bios: Path) -> dict[str, Callable[[], float]]:
    theirs = qemu("-bios", bios, "-m", str(MEMORY))

    def ours(tier: str) -> Callable[[], float]:
        argv = vmm_run(python, "--bios", bios, "--mem", f"{MEMORY}M", "--jit", tier)
        return lambda: seconds(argv)

    return {INTERPRETER: ours("off"), BASELINE: ours("baseline"), QEMU: lambda: seconds(theirs)}


def ratio(
    title: str, taken: dict[str, dict[str, list[float]]], tier: str, names: Sequence[str], least: float | None
) -> Figure | None:
    """QEMU's time by that of a tier, round by round, of those of these programs that ran."""
    ratios = {
        name: [theirs / ours for ours, theirs in zip(taken[name][tier], taken[name][QEMU], strict=True)]
        for name in names
        if name in taken
    }
    if not ratios:
        return None
    figure = Figure(title, "ratio", ratios)
    if least is None:
        return figure
    lowest = min(figure.medians, key=lambda name: figure.medians[name])
    bound = f"the lowest, {lowest}: {figure.medians[lowest]:.2f}; at least {least}"
    return Figure(title, "ratio", ratios, bound, figure.medians[lowest] >= least)


def main() -> int:
    options_parser = parser(__doc__, rounds=5)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="run ours on this Python")
    options_parser.add_argument("--only", choices=PROGRAMS, action="append", help="this program (again for more)")
    options = options_parser.parse_args()
    report = Report("CPU: bare-metal programs on one hart", __doc__ or "")
    quiet = Quiet(options.patience)
    python = pythons(options.python)[0]
    report.facts |= {"ours on": python.build, "QEMU": qemu_version()}
    build = build_programs()
    taken: dict[str, dict[str, list[float]]] = {}
    counts: dict[str, int] = {}
    for name in options.only or PROGRAMS:
        say(name)
        counts[name] = instructions(build / f"{name}.elf")
        taken[name] = alternate(sides(python, build / f"{name}.elf"), options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    for tier in (INTERPRETER, BASELINE):
        for group, (names, least) in GROUPS.items():
            figure = ratio(f"{group}, QEMU's time / {tier}", taken, tier, names, least if tier is INTERPRETER else None)
            if figure is not None:
                report.add(figure)
    for side in (INTERPRETER, BASELINE, QEMU):
        speeds = {name: [counts[name] / each / 1e6 for each in taken[name][side]] for name in taken}
        report.add(Figure(f"speed, {side}", "million instructions/s", speeds))
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
