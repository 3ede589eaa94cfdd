"""What it takes to find the mistakes that are planted in `tests/museum`.

Each exhibit that is a program of threads is run until its mistake shows:

  seeded   under the seeded scheduler, at random and by PCT, for 20 seeds each; the same on every host and Python
  stress   on plain threads, in each Python, at most --seconds a round
  tools    under public tools for the same job, each in an environment of its own that is made for it

The correct code beside it goes through the last two as well: what is said of it is a false alarm. Results are parts of
one file: --only and --exhibit measure some of them anew and leave the others as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.guests import ROOT, Python, pythons
from benchmarks.progress import done, say
from benchmarks.report import Report, parser
from benchmarks.workers import Worker, serve
from tests.museum import catalogue, foreign
from tests.museum.exhibit import Exhibit, Side
from tests.museum.plain import stress
from tests.museum.schedules import DEPTH, SCHEDULES, search

RESULTS: Final = ROOT / "benchmarks" / "results" / "museum.json"
SEEDS: Final = tuple(range(1, 20 * SCHEDULES, SCHEDULES))
"""A search takes the seeds that follow its own, so these are as far apart as it is long."""
STRATEGIES: Final = ("random", "pct")
SIDES: Final[tuple[Side, ...]] = ("mutant", "twin")
PARTS: Final = ("seeded", "stress", "tools")
SECONDS: Final = 5.0
MOST_RUNS: Final = 100_000
SWITCH_INTERVAL_S: Final = 1e-6
"""Under a GIL it changes hands as often as it can: with CPython's own 5 ms most runs would be over before it did."""
TOOL_PATIENCE_S: Final = 60.0


@dataclass(frozen=True)
class Tool:
    """A public tool. `modes` are ways to use it, as `tests/museum/foreign.py` names them."""

    name: str
    version: str
    modes: tuple[str, ...]
    runner: bool = False
    """Programs are started by a command of the tool's name."""


TOOLS: Final = (
    Tool("frontrun", "0.7.0", ("frontrun-dpor", "frontrun-random"), runner=True),
    Tool("interleave-test", "0.1.0", ("interleave-random", "interleave-pct")),
    Tool("ploom", "0.1.1", ()),
)
UNFIT: Final = {"ploom": "runs only what is written on its own locks and cells, so no code of this project"}


@dataclass(frozen=True)
class Cell:
    """Plain stress of one program."""

    name: str
    side: str
    seconds: float


def seeded(exhibit: Exhibit, strategy: str, seed: int) -> int | None:
    """Schedules until the planted mistake shows; None when it does not."""
    result = search(exhibit.threads("mutant"), strategy, seed)
    return result.schedules if result.failure else None


def stressed(cell: Cell) -> dict[str, Any]:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    began = time.monotonic()
    program = getattr(getattr(catalogue, cell.side), cell.name)
    runs = 0
    while time.monotonic() - began < cell.seconds and runs < MOST_RUNS:
        count, failure = stress(program, 1)
        runs += count
        if failure:
            return {"runs": runs, "found": True, "says": failure}
    return {"runs": runs, "found": False, "says": ""}


class Environment:
    """A tool in a virtual environment of its own: some of them change every test run beside which they are installed.

    `problem` says in one line why it cannot be had for this Python; empty if it can.
    """

    def __init__(self, tool: Tool, python: Python) -> None:
        self.tool = tool
        self.python = python
        self._bin = ROOT / "build" / "museum" / f"{tool.name}-{python.name.replace(' ', '-')}" / "bin"
        self.problem = self._made()

    def _made(self) -> str:
        if not (self._bin / "python").exists():
            subprocess.run([self.python.path, "-m", "venv", self._bin.parent], check=True)
        wanted = f"{self.tool.name}=={self.tool.version}"
        command = [str(self._bin / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary", ":all:", wanted]
        made = subprocess.run(command, capture_output=True, text=True)
        if not made.returncode:
            return ""
        lines = [line for line in made.stderr.splitlines() if line.startswith("ERROR: ")]
        return lines[0].removeprefix("ERROR: ") if lines else "pip could not install it"

    def run(self, mode: str, exhibit: Exhibit, side: Side) -> dict[str, Any]:
        """What `tests/museum/foreign.py` says, or why it says nothing."""
        python = str(self._bin / "python")
        command = [str(self._bin / self.tool.name)] if self.tool.runner else []
        command += [python, "-m", "tests.museum.foreign", mode, exhibit.id, side]
        asked = [str(self.python.path), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), packages))}
        try:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TOOL_PATIENCE_S
            )
        except subprocess.TimeoutExpired:
            return {"cannot": f"did not end in {TOOL_PATIENCE_S:g} s"}
        if ended.returncode:
            return {"cannot": (ended.stderr.strip().splitlines() or ["it died"])[-1]}
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return answer


def measure_seeded(results: dict[str, Any], exhibits: Sequence[Exhibit]) -> None:
    results |= {"depth": DEPTH, "schedules": SCHEDULES, "seeds": list(SEEDS)}
    for exhibit in exhibits:
        say(f"seeded: {exhibit.id}")
        results.setdefault("seeded", {})[exhibit.id] = {
            strategy: [seeded(exhibit, strategy, seed) for seed in SEEDS] for strategy in STRATEGIES
        }


def measure_stress(
    results: dict[str, Any], exhibits: Sequence[Exhibit], builds: list[Python], rounds: int, seconds: float
) -> None:
    results.setdefault("limits", {}).update(rounds=rounds, seconds=seconds)
    for build in builds:
        for exhibit in exhibits:
            sides = results.setdefault("stress", {}).setdefault(build.name, {}).setdefault(exhibit.id, {})
            for side in SIDES:
                say(f"stress: {exhibit.id}, {side}, {build.name}")
                # A process each: what hung in one round stays where it is.
                with Worker(build, "benchmarks.locks.museum") as worker:
                    times = rounds if side == "mutant" else 1
                    sides[side] = [worker.measure(Cell(exhibit.id, side, seconds)) for _ in range(times)]


def measure_tools(results: dict[str, Any], exhibits: Sequence[Exhibit], builds: list[Python]) -> None:
    results.setdefault("limits", {}).update(tool_runs=foreign.RUNS, tool_seconds=foreign.PATIENCE_S)
    results["missing"] = {}
    for tool in TOOLS:
        name = f"{tool.name} {tool.version}"
        if tool.name in UNFIT:
            results["missing"][name] = UNFIT[tool.name]
            continue
        environments = [Environment(tool, build) for build in builds]
        for one in environments:
            if one.problem:
                results["missing"][f"{name} on {one.python.name}"] = one.problem
        usable = next((one for one in environments if not one.problem), None)
        if usable is None:
            continue
        for mode in tool.modes:
            of = results.setdefault("tools", {}).setdefault(mode, {"exhibits": {}})
            of |= {"tool": name, "python": usable.python.name}
            for exhibit in exhibits:
                say(f"{mode}: {exhibit.id}")
                of["exhibits"][exhibit.id] = {side: usable.run(mode, exhibit, side) for side in SIDES}


def measure(options: argparse.Namespace, builds: list[Python]) -> dict[str, Any]:
    path: Path = options.json
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    exhibits = [exhibit for exhibit in catalogue.SCHEDULED if exhibit.id in (options.exhibit or exhibit.id)]
    facts = Report("Museum").facts | {"pythons": {build.name: build.build for build in builds}}
    for part in options.only or PARTS:
        if part == "seeded":
            measure_seeded(results, exhibits)
            continue
        if part == "stress":
            measure_stress(results, exhibits, builds, options.rounds, options.seconds)
        else:
            measure_tools(results, exhibits, builds)
        results.setdefault("facts", {})[part] = facts
    done()
    return results


def main() -> int:
    options_parser = parser(__doc__, rounds=3)
    options_parser.set_defaults(json=RESULTS)
    options_parser.add_argument("--only", action="append", choices=PARTS, help="this part (again for more)")
    names = [exhibit.id for exhibit in catalogue.SCHEDULED]
    options_parser.add_argument("--exhibit", action="append", choices=names, help="this one (again for more)")
    options_parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="use this one (again)")
    options_parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="of a round of stress (default %(default)g)"
    )
    options_parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = options_parser.parse_args()
    if options.worker:
        return serve(stressed, Cell)
    results = measure(options, pythons(options.python))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
