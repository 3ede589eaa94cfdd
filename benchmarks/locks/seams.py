"""What the seams of the lock checkers cost a boot: off, and with each of them on.

The stock kernel boots to its report and powers off. The sides run in turn:

  without        this tree, its seams taken out while its classes are made (`benchmarks.locks.seamless`)
  off            this tree as it is, with nothing switched on
  --lock-stat    all locks measured
  --trace        a timeline of all threads, into a file
  --check-locks  locks, waits and devices checked

Each is compared with the boot without seams of its own round. Time is the guest's own, as its kernel says it when it
powers off: taking the seams out happens while the process starts, and would count against that side. The interval holds
the median with a confidence of 95 % (bootstrap: 10,000 draws of rounds).
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.guests import ROOT, Broken, Python, debian, pythons, running
from benchmarks.locks.seamless import without_seams
from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser

BOUND: Final = 1.05
DRAWS: Final = 10_000
WITHOUT, OFF = "without", "off"
MARK: Final = "guest's time to power-off"
_POWER_OFF: Final = re.compile(r"\[ *([0-9.]+)\] reboot: Power down")


def modes(folder: Path) -> dict[str, tuple[str, ...]]:
    """The options of each side."""
    return {
        WITHOUT: (),
        OFF: (),
        "--lock-stat": ("--lock-stat", str(folder / "locks.json")),
        "--trace": ("--trace", str(folder / "trace.json")),
        "--check-locks": ("--check-locks",),
    }


def boot(python: Python, caches: Path, mode: str, options: Sequence[str]) -> float:
    """Seconds that the guest counts until it powers off."""
    which = "without" if mode == WITHOUT else "with"
    argv = [str(python.path), "-m", "benchmarks.locks.seamless", which, *options]
    with running(argv, env={**os.environ, "PYTHONPYCACHEPREFIX": str(caches / which)}) as run:
        run.ended(600)
        said = _POWER_OFF.search(run.text)
    if said is None:
        raise Broken(f"{mode}: the guest did not power off")
    return float(said[1])


def seams() -> int:
    """How many places say something to a `Progress`."""
    return sum(without_seams(path.read_bytes(), str(path))[1] for path in (ROOT / "vmm").rglob("*.py"))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of the median, with a confidence of 95 %. The draws are the same each time."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return medians[DRAWS // 40], medians[-1 - DRAWS // 40]


def ratios(samples: dict[str, list[float]], side: str, base: str) -> list[float]:
    return [own / other for own, other in zip(samples[side], samples[base], strict=True)]


def add(report: Report, python: str, samples: dict[str, list[float]]) -> None:
    """`samples` of one interpreter, by mode."""
    report.add(Figure(f"{MARK}, {python}", "s", samples))
    compared = {mode: ratios(samples, mode, WITHOUT) for mode in samples if mode != WITHOUT}
    found = {mode: (statistics.median(each), *interval(each)) for mode, each in compared.items()}
    text = "; ".join(f"{mode} {middle:.3f} ({low:.3f} to {high:.3f})" for mode, (middle, low, high) in found.items())
    median = found[OFF][0]
    report.add(
        Figure(
            f"{MARK}, in that without seams, {python}",
            "ratio",
            compared,
            bound=f"{text}; off at most {BOUND}",
            met=median <= BOUND,
        )
    )


def main() -> int:
    options_parser = parser(__doc__, rounds=10)
    options_parser.add_argument("--smp", type=int, default=2, metavar="N", help="harts (default %(default)s)")
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python")
    options = options_parser.parse_args()
    report = Report("Seams: what the checkers of locks cost a boot", __doc__ or "")
    quiet = Quiet(options.patience)
    guest = debian()
    builds = pythons(options.python)
    report.facts["pythons"] = {python.name: python.build for python in builds}
    report.facts["kernel"] = f"Debian {guest.version}"
    report.facts["seams taken out"] = f"{seams()} uses of a Progress, those of each door, and that of a lock's `with`"
    load = ["--smp", str(options.smp), "--mem", "512M", "--kernel", str(guest.kernel), "--initrd", str(guest.initrd)]
    load += ["--append", guest.report_append]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides: dict[str, Callable[[], float]] = {
            f"{mode}, {python.name}": partial(boot, python, folder, mode, [*load, *more])
            for python in builds
            for mode, more in modes(folder).items()
        }
        for side in sides.values():
            side()  # files are read, and what was compiled is cached
        samples = alternate(sides, options.rounds, quiet)
        modes_of = list(modes(folder))
    report.facts["conditions"] = str(quiet)
    for python in builds:
        add(report, python.name, {mode: samples[f"{mode}, {python.name}"] for mode in modes_of})
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
