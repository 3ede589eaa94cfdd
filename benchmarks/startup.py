"""What a run costs before and beside the guest: time to its first instruction, memory, and processor time when idle.

first instruction   from the start of the process to a byte on standard output that the guest's third instruction sends
                    to the UART. Warm: code and files were used before. Once with a program of a few bytes, and once
                    with a kernel and an initramfs of Debian's sizes.
memory              of the process at the guest's shell prompt: what is resident (RSS) less what is resident of guest
                    RAM, the one mapping that is as large as the machine's memory (/proc/PID/smaps).
idle                processor time of all its threads over some seconds, a shell waiting for input on each console, in
                    percent of one processor (/proc/PID/task/*/schedstat).
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.guests import Assembly, debian, file_of, pythons, qemu, qemu_version, running, vmm_run
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from vmm.guests.debian import DebianGuest
from vmm.machine.virt import UART

FIRST_S: Final = 0.5
BEYOND_MB: Final = 200
IDLE_PERCENT: Final = 3.0
IDLE_HARTS: Final = 4
MEMORY: Final = 512
PROMPT: Final = b"~ # "
SETTLE_S: Final = 5.0
_T0, _T1 = 5, 6
_HEADER = struct.Struct("<4s4xQQQI12x8s4s4x")  # code, text offset, image size, flags, version, magic, magic 2


def hello() -> bytes:
    """Sends one byte and sleeps, in whatever mode it is started."""
    a = Assembly()
    a("lui", rd=_T0, imm=UART.base >> 12)
    a("addi", rd=_T1, rs1=0, imm=ord("!"))
    a("sb", rs1=_T0, rs2=_T1, imm=0)
    a.label("sleep")
    a("wfi")
    a("jal", to="sleep", rd=0)
    return a.code()


def kernel(like: Path) -> bytes:
    """The same behind the header of a kernel, in a file as large as `like` (Linux, riscv/boot-image-header.rst)."""
    jump = Assembly()
    jump("jal", rd=0, imm=_HEADER.size)
    size = like.stat().st_size
    header = _HEADER.pack(jump.code(), 2 << 20, size, 0, 2, b"RISCV", b"RSC\x05")
    return (header + hello()).ljust(size, b"\xff")


def first_instruction(argv: list[str]) -> float:
    with running(argv) as run:
        return run.until(b"!")


def beyond_mb(argv: list[str]) -> float:
    """Resident memory that is not the guest's, MB, at its prompt."""
    with running(argv) as run:
        run.until(PROMPT)
        time.sleep(1.0)
        smaps = Path(f"/proc/{run.pid}/smaps").read_text()
    total = guest = 0
    for size, rss in re.findall(r"^Size: +(\d+) kB\n(?:.*\n)*?Rss: +(\d+) kB$", smaps, re.MULTILINE):
        total += int(rss)
        guest += int(rss) if int(size) == MEMORY << 10 else 0
    return (total - guest) * 1024 / 1e6


def threads(pid: int) -> dict[str, float]:
    """Processor time of each thread so far, s, by name."""
    spent: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        spent[name] = spent.get(name, 0.0) + int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


def idle(argv: list[str], seconds: float) -> dict[str, float]:
    """Percent of one processor that each thread takes while the guest waits at its prompt."""
    with running(argv) as run:
        run.until(PROMPT)
        time.sleep(SETTLE_S)
        before, began = threads(run.pid), time.perf_counter()
        time.sleep(seconds)
        after, ended = threads(run.pid), time.perf_counter()
    return {name: 100 * (spent - before.get(name, 0.0)) / (ended - began) for name, spent in after.items()}


def linux(guest: DebianGuest) -> tuple[list[str | Path], list[str | Path]]:
    """How to boot it to a shell: options here, options of QEMU."""
    return (
        ["--kernel", guest.kernel, "--initrd", guest.initrd, "--append", guest.default_append, "--mem", f"{MEMORY}M"],
        ["-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.default_append, "-m", str(MEMORY)],
    )


def main() -> int:
    options_parser = parser(__doc__, rounds=9)
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="run ours on this Python")
    options_parser.add_argument(
        "--idle", type=float, default=10.0, metavar="SECONDS", help="how long to watch an idle guest (default 10)"
    )
    options = options_parser.parse_args()
    report = Report("Start-up, memory, and an idle guest", __doc__ or "")
    quiet = Quiet(options.patience)
    builds = pythons(options.python)
    guest = debian()
    report.facts |= {"pythons": {python.name: python.build for python in builds}, "QEMU": qemu_version()}
    few = max(1, options.rounds // 3)
    ours, theirs = linux(guest)
    with ExitStack() as files:
        small = files.enter_context(file_of(hello()))
        large = files.enter_context(file_of(kernel(guest.kernel)))
        loads: tuple[tuple[str, list[str | Path], list[str | Path]], ...] = (
            ("to the first instruction of a small program", ["--bios", small], ["-bios", small]),
            (
                "to the first instruction of a kernel with an initramfs",
                ["--kernel", large, "--initrd", guest.initrd],
                ["-bios", "none", "-kernel", large, "-initrd", guest.initrd],
            ),
        )
        for title, mine, qemus in loads:
            sides = {f"ours, {python.name}": timed(vmm_run(python, *mine)) for python in builds}
            sides["QEMU"] = timed(qemu(*qemus))
            for side in sides.values():
                side()
            report.add(at_most(Figure(title, "s", alternate(sides, options.rounds, quiet)), FIRST_S))
    sides = {
        f"ours, {python.name}": lambda python=python: beyond_mb(vmm_run(python, *ours, "--smp", "2"))  # type: ignore[misc]
        for python in builds
    }
    sides["QEMU"] = lambda: beyond_mb(qemu(*theirs, "-smp", "2"))
    report.add(at_most(Figure("memory beyond the guest's, 2 harts", "MB", alternate(sides, few, quiet)), BEYOND_MB))
    watch: dict[str, Callable[[], dict[str, float]]] = {
        f"ours, {python.name}": lambda python=python: idle(  # type: ignore[misc]
            vmm_run(python, *ours, "--smp", str(IDLE_HARTS)), options.idle
        )
        for python in builds
    }
    watch["QEMU"] = lambda: idle(qemu(*theirs, "-smp", str(IDLE_HARTS)), options.idle)
    taken = alternate(watch, few, quiet)
    report.facts["conditions"] = str(quiet)
    totals = {side: [sum(shares.values()) for shares in watched] for side, watched in taken.items()}
    report.add(at_most(Figure(f"idle guest, {IDLE_HARTS} harts", "% of one processor", totals), IDLE_PERCENT))
    first = next(iter(taken))
    by_thread = {name: [shares.get(name, 0.0) for shares in taken[first]] for name in sorted(taken[first][0])}
    report.add(Figure(f"idle guest, threads of {first}", "% of one processor", by_thread))
    return report.finish(options)


def timed(argv: list[str]) -> Callable[[], float]:
    return lambda: first_instruction(argv)


def at_most(figure: Figure, most: float) -> Figure:
    """The figure with the bound that the first side is held to."""
    first = next(iter(figure.samples))
    value = figure.medians[first]
    bound = f"{first}: {value:.3g} {figure.unit}; at most {most:g}"
    return Figure(figure.name, figure.unit, figure.samples, bound, value <= most)


if __name__ == "__main__":
    raise SystemExit(main())
