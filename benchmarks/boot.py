"""Boot of Debian's stock kernel, ours and QEMU's (TCG, a thread for each hart), in turn.

Both run the same kernel and initramfs with the same number of harts and as much memory, and start as processes of their
own. Time is taken from the start of the process to "vmm: init reached" on its serial port, and to its end: the guest
prints a report of itself and powers off.

With --bios both go through that firmware (Debian's package opensbi has one) instead of the machine's built-in SBI,
which QEMU replaces by the OpenSBI that it ships.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Final

import fdt

from benchmarks.guests import QEMU, debian, file_of, pythons, qemu, qemu_version, running, vmm_run
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser

INIT: Final = b"vmm: init reached"
BOUND: Final = 1.5
Times = dict[str, float]


def boot(argv: list[str]) -> Times:
    with running(argv) as run:
        return {"init": run.until(INIT), "power-off": run.ended()}


def isa(dump: Callable[[Path], list[str]]) -> str:
    """The ISA string of hart 0 in a device tree that a command dumps."""
    with file_of(b"", ".dtb") as path:
        subprocess.run(dump(path), check=True, capture_output=True)
        tree = fdt.parse_dtb(path.read_bytes())
    return str(tree.get_property("riscv,isa", "/cpus/cpu@0").value)


def digest(path: Path) -> str:
    content = path.read_bytes()
    return f"{len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()[:16]}"


def main() -> int:
    options_parser = parser(__doc__, rounds=7)
    options_parser.add_argument("--smp", type=int, default=2, metavar="N", help="harts (default %(default)s)")
    options_parser.add_argument("--mem", type=int, default=512, metavar="MIB", help="memory (default %(default)s)")
    options_parser.add_argument("--bios", type=Path, metavar="FILE", help="firmware for both")
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="run ours on this Python")
    options = options_parser.parse_args()
    report = Report("Boot: the stock kernel to init and to power-off", __doc__ or "")
    quiet = Quiet(options.patience)
    guest = debian()
    load: dict[str, str | Path] = {"-kernel": guest.kernel, "-initrd": guest.initrd, "-append": guest.report_append}
    if options.bios:
        load["-bios"] = options.bios
    theirs = qemu("-smp", str(options.smp), "-m", str(options.mem), *chain(*load.items()))
    ours: list[str | Path] = ["--smp", str(options.smp), "--mem", f"{options.mem}M"]
    ours += chain(*((f"-{name}", value) for name, value in load.items()))
    builds = pythons(options.python)
    sides: dict[str, Callable[[], Times]] = {
        f"ours, {python.name}": lambda python=python: boot(vmm_run(python, *ours))  # type: ignore[misc]
        for python in builds
    }
    sides["QEMU"] = lambda: boot(theirs)
    report.facts |= {
        "pythons": {python.name: python.build for python in builds},
        "QEMU": qemu_version(),
        "kernel": f"Debian {guest.version}, {digest(guest.kernel)}",
        "initramfs": digest(guest.initrd),
        "firmware": f"{options.bios} for both" if options.bios else "ours: built-in SBI; QEMU: the OpenSBI it ships",
        "harts and memory": f"{options.smp}, {options.mem} MiB",
        "command line": guest.report_append,
        "QEMU's flags": " ".join([*theirs[1:8], *load]),
        "ISA here": isa(lambda path: vmm_run(builds[0], *ours, "--dump-dtb", path)),
        "ISA of QEMU": isa(lambda path: [QEMU, "-M", f"virt,dumpdtb={path}"]),
    }
    for side in sides.values():
        side()  # files are read from the disk, and native code is generated if it was not yet
    samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    for mark in ("init", "power-off"):
        add(report, mark, samples)
    return report.finish(options)


def add(report: Report, mark: str, samples: dict[str, list[Times]]) -> None:
    taken = {side: [times[mark] for times in all_times] for side, all_times in samples.items()}
    medians = report.add(Figure(f"to {mark}", "s", taken)).medians
    ratios = {
        side: [own / other for own, other in zip(taken[side], taken["QEMU"], strict=True)]
        for side in taken
        if side != "QEMU"
    }
    figure = Figure(f"to {mark}, in QEMU's time of the same round", "ratio", ratios)
    if mark == "init":
        first = next(iter(ratios))
        ratio = medians[first] / medians["QEMU"]
        bound = f"{first}: {ratio:.2f} times QEMU's time by the medians; at most {BOUND}"
        figure = Figure(figure.name, figure.unit, ratios, bound, ratio <= BOUND)
    report.add(figure)


if __name__ == "__main__":
    raise SystemExit(main())
