"""Run schedules of a program from the command line: many of them, or one again.

Exit status 0 when no schedule failed, 1 when one did, 2 when what was asked for cannot be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vmm.errors import ConfigError, HostError
from vmm.testing.schedule.explore import DEPTHS, STRATEGIES, Result, explore, replay
from vmm.testing.schedule.trace import Trace, load_program, parse_switches, program_name, version


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        result = _explored(options) if options.command == "explore" else _replayed(options)
        print(result)
        for failure in result.failures:
            print(failure)
        if options.command == "explore" and options.trace and result.failure:
            result.failure.trace.write(options.trace)
    except (ConfigError, HostError) as error:
        print(f"schedule: {error}", file=sys.stderr)
        return error.exit_status
    return 1 if result.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vmm.testing.schedule", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("explore", help="run schedules until one fails")
    again = commands.add_parser("replay", help="run one schedule again")
    for command in (many, again):
        command.add_argument("program", metavar="MODULE:FUNCTION")
    many.add_argument("--strategy", default="pct", help=f"{', '.join(STRATEGIES)} (default: %(default)s)")
    many.add_argument("--depth", type=int, default=2, help=f"of pct: {', '.join(map(str, DEPTHS))}")
    many.add_argument("--seed", type=int, default=1)
    many.add_argument("--schedules", type=int, default=1000, help="how many to run at most")
    many.add_argument("--preemptions", type=int, metavar="N", help="of exhaustive: leave out schedules with more")
    many.add_argument("--version", metavar="DIGEST", help="refuse to run another version than this")
    many.add_argument("--trace", type=Path, metavar="FILE", help="where to write the schedule that fails")
    how = again.add_mutually_exclusive_group(required=True)
    how.add_argument("--trace", type=Path, metavar="FILE", help="a schedule that was written down")
    how.add_argument("--switches", metavar="VERSION:SWITCHES", help="a schedule as a report tells it")
    return parser


def _explored(options: argparse.Namespace) -> Result:
    program = load_program(options.program)
    if options.version and (now := version(program)) != options.version:
        raise ConfigError(f"--version {options.version}: {options.program} is version {now}")
    if options.trace:
        _must_be_writable(options.trace)
    return explore(
        program,
        strategy=options.strategy,
        depth=options.depth,
        seed=options.seed,
        schedules=options.schedules,
        preemptions=options.preemptions,
    )


def _must_be_writable(path: Path) -> None:
    """Before an hour of schedules, not after it."""
    if not path.parent.is_dir():
        raise HostError(f"--trace {path}: {path.parent} is no directory: give a file that can be written")


def _replayed(options: argparse.Namespace) -> Result:
    program = load_program(options.program)
    if options.trace:
        return replay(program, Trace.read(options.trace))
    digest, _, switches = options.switches.partition(":")
    return replay(program, Trace(program_name(program), digest, "switches", 0, "", parse_switches(switches), ""))


if __name__ == "__main__":
    sys.exit(main())
