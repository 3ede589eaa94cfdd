"""What every benchmark shares: which Python ran, alternating rounds, medians, a table and JSON.

A benchmark measures its sides in turn within one process and compares medians, so that a machine that slows down for a
while slows all sides.
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
from typing import Any


def python_build() -> str:
    """The interpreter that runs, by name, version and whether it has a GIL."""
    gil = "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with the GIL"
    return f"{platform.python_implementation()} {platform.python_version()}, {gil}, {platform.python_compiler()}"


def machine() -> str:
    """The host's processors and how busy they were, since figures mean little without."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    load = os.getloadavg()[0]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}, load {load:.2f}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each side returned in each round. The sides run in turn, in the opposite order every other round."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        names = list(sides)
        for name in reversed(names) if index % 2 else names:
            samples[name].append(sides[name]())
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


class Report:
    """The figures of one benchmark. Made after all imports, since some of them could bring the GIL back."""

    def __init__(self, title: str) -> None:
        if sysconfig.get_config_var("Py_GIL_DISABLED") and sys._is_gil_enabled():  # type: ignore[attr-defined]
            raise SystemExit("this free-threaded Python runs with the GIL on: an extension module brought it back")
        self.title = title
        self.facts: dict[str, Any] = {"python": python_build(), "machine": machine()}
        self.figures: list[Figure] = []

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
        print(self)
        if options.json:
            content = {"title": self.title, **self.facts, "figures": [asdict(figure) for figure in self.figures]}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(content, indent=2) + "\n")
        return 0


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have; a benchmark may add to them."""
    result = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    result.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help="rounds of each side (default %(default)s)"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the samples there")
    return result
