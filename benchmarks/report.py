"""What every benchmark shares: its options, alternating rounds, medians, a table and JSON.

A benchmark measures its sides in turn and compares medians, so that a machine that slows down for a while slows all
sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.progress import done, say
from benchmarks.quiet import Quiet

T = TypeVar("T")
QUICK_ROUNDS = 3


def python_build() -> str:
    """The interpreter that runs, by name, version and whether it has a GIL."""
    gil = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with the GIL"
    return f"{platform.python_implementation()} {platform.python_version()}, {gil}, {platform.python_compiler()}"


def gil_came_back() -> bool:
    """Whether this is a free-threaded build in which an import has switched the GIL on."""
    free = sysconfig.get_config_var("Py_GIL_DISABLED")
    return bool(free and sys._is_gil_enabled())  # type: ignore[attr-defined]


def machine() -> str:
    """The host's processors and how busy they were, since figures mean little without."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    load = os.getloadavg()[0]
    processors = f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}"
    share = [line.rpartition(" ")[2] for line in _lines("/proc/self/autogroup")]
    raised = f", this session at nice {share[0]} against others" if share not in ([], ["0"]) else ""
    return f"{processors}, {platform.system()} {platform.release()}, load {load:.2f}{raised}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def alternate(sides: Mapping[str, Callable[[], T]], rounds: int, quiet: Quiet | None = None) -> dict[str, list[T]]:
    """What each side returned in each round. The sides run in turn, in the opposite order every other round."""
    samples: dict[str, list[T]] = {name: [] for name in sides}
    for index in range(rounds):
        names = list(sides)
        for name in reversed(names) if index % 2 else names:
            if quiet is None:
                samples[name].append(sides[name]())
            else:
                say(f"round {index + 1} of {rounds}: {name}")
                samples[name].append(quiet.sample(sides[name]))
    done()
    return samples


@dataclass(frozen=True)
class Figure:
    """One thing measured on several sides, and the bound that the project promises for it, if any."""

    name: str
    unit: str
    samples: dict[str, list[float]]
    bound: str = ""  # as text, such as "plain <= 1.2 x with"
    met: bool | None = None
    medians: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        medians = {side: statistics.median(values) for side, values in self.samples.items()}
        object.__setattr__(self, "medians", medians)


@dataclass(frozen=True)
class Chart:
    """A plot of something over a count: points are (count, value), with `bands` (count, value, least, most)."""

    title: str
    caption: str
    lines: dict[str, list[tuple[float, ...]]]
    bands: bool = False


class Report:
    """The figures of one benchmark. Made after all imports, since some of them could bring the GIL back."""

    def __init__(self, title: str, about: str = "") -> None:
        if gil_came_back():
            raise SystemExit("this free-threaded Python runs with the GIL on: an extension module brought it back")
        self.title = title
        self.about = about
        self.facts: dict[str, Any] = {"python": python_build(), "machine": machine()}
        self.figures: list[Figure] = []
        self.curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        """Plots of distributions: title -> line -> points."""
        self.charts: list[Chart] = []

    def add(self, figure: Figure) -> Figure:
        self.figures.append(figure)
        return figure

    def __str__(self) -> str:
        lines = [self.title, *(f"  {name}: {value}" for name, value in self.facts.items())]
        for figure in self.figures:
            lines += ["", f"{figure.name} ({figure.unit})"]
            width = max(map(len, figure.samples))
            for side, values in figure.samples.items():
                spread = f"{min(values):,.6g} to {max(values):,.6g} in {len(values)}"
                lines.append(f"  {side:<{width}}  {figure.medians[side]:>12,.6g}  ({spread})")
            if figure.bound:
                lines.append(f"  {figure.bound}: {'met' if figure.met else 'NOT MET'}")
        return "\n".join(lines)

    def finish(self, options: argparse.Namespace) -> int:
        """Print the table, write the JSON where asked to; 0, also when a bound was not met: that is for a reader."""
        if options.quick:
            self.facts["length"] = "a first impression (--quick)"
        print(self)
        if options.json:
            content = {
                "title": self.title,
                **self.facts,
                "about": self.about,
                "figures": [asdict(figure) for figure in self.figures],
                "curves": self.curves,
                "charts": [asdict(chart) for chart in self.charts],
            }
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(content, indent=1) + "\n")
        return 0


class _Quick(argparse.Action):
    """Few rounds, and `quick` set for whoever says so or shortens more."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        namespace.quick, namespace.rounds = True, self.const


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have; a benchmark may add to them. Its docstring is the help."""
    head, _, rest = (description or "").partition("\n")
    result = argparse.ArgumentParser(
        description=head, epilog=rest.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help="rounds of each side (default %(default)s)"
    )
    result.add_argument(
        "--quick",
        action=_Quick,
        nargs=0,
        const=min(rounds, QUICK_ROUNDS),
        default=False,
        help=f"a first impression, and the result says so: {min(rounds, QUICK_ROUNDS)} rounds",
    )
    result.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long, in all, to wait for the host to be quiet and to repeat samples that others' work disturbed "
        "(default: not at all; the disturbance is reported either way)",
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the samples there")
    return result
