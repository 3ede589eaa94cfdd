"""From command line and configuration file to settings, by the table of `options`."""

from __future__ import annotations

import argparse
import difflib
import textwrap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vmm import __version__
from vmm.cli.options import DESCRIPTION, EXAMPLES, GUESTS, KEYS, Guest, Option, groups
from vmm.cli.status import MEANINGS
from vmm.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ConfigErrors of one line."""

    def error(self, message: str) -> NoReturn:
        option, colon, problem = message.removeprefix("argument ").partition(": ")
        text = f"{option}: {problem}" if colon else message
        raise ConfigError(f"{text}: see `{self.prog} --help`")


def make_parser(guest: Guest | None = None) -> Parser:
    """The parser of `vmm-run`, or of `vmm-run GUEST`."""
    parser = Parser(
        prog=f"vmm-run {guest.name}" if guest else "vmm-run",
        usage=f"%(prog)s [options]{'' if guest else ' | vmm-run {' + ','.join(g.name for g in GUESTS) + '} [options]'}",
        description=textwrap.fill(guest.description, 100) if guest else DESCRIPTION,
        epilog=_epilog(guest),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"vmm-run {__version__}")
    for title, options in groups(guest):
        group = parser.add_argument_group(title)
        for option in options:
            _add_option(group, option)
    return parser


def parse(arguments: Sequence[str]) -> tuple[Guest | None, dict[str, object]]:
    """The guest, if the first word names one, and all options that were given, converted; raises ConfigError."""
    guest = next((guest for guest in GUESTS if guest.name in arguments[:1]), None)
    given, unknown = make_parser(guest).parse_known_args(arguments[1:] if guest else arguments)
    table = {option.key: option for _title, options in groups(guest) for option in options}
    if unknown:
        raise ConfigError(_unknown(unknown[0], guest, table.values()))
    settings = {key: table[key].convert(f"--{table[key].name}", value, Path()) for key, value in vars(given).items()}
    file = settings.pop("config", None)
    return guest, {**_read(file, table), **settings} if isinstance(file, Path) else settings


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    text = option.help.replace("%", "%%")
    if not option.metavar:
        flag = option.usage
        group.add_argument(flag, dest=option.key, action="store_const", const=not option.on, help=text)
    elif option.key == "drive":
        group.add_argument("--drive", dest="drive", action="append", metavar=option.metavar, help=text)
    elif option.optional:
        group.add_argument(
            f"--{option.name}",
            dest=option.key,
            nargs="?",
            const=option.optional,
            metavar=option.metavar,
            help=f"{text}; to standard error without a file",
        )
    else:
        group.add_argument(f"--{option.name}", dest=option.key, metavar=option.metavar, help=text)


def _unknown(word: str, guest: Guest | None, options: Iterable[Option]) -> str:
    name = word.partition("=")[0]
    if guest is not None and name.removeprefix("--") in guest.fixed:
        return f"{name}: `vmm-run {guest.name}` brings its own: leave it out"
    if name in (guest.name for guest in GUESTS):
        return f"{name}: comes too late: write it first, as in `vmm-run {name} --smp 2`"
    if not name.startswith("-"):
        return f"{name}: is neither an option nor the value of one: see `vmm-run --help`"
    close = difflib.get_close_matches(name, [f"--{option.name}" for option in options], 1)
    return f"{name}: is not an option here: " + (f"did you mean {close[0]}?" if close else "see `vmm-run --help`")


def _epilog(guest: Guest | None) -> str:
    def table(title: str, rows: Sequence[tuple[str, str]]) -> str:
        width = max(len(name) for name, _ in rows)
        lines = [
            f"  {name:<{width}}  {text}" if len(name) + len(text) < 110 else f"  {name}\n      {text}"
            for name, text in rows
        ]
        return "\n".join([f"{title}:", *lines])

    guests = [table("guests that need no files (`vmm-run GUEST --help`)", [(g.name, g.help) for g in GUESTS])]
    return "\n\n".join(
        [
            *([] if guest else guests),
            table("keys at the terminal", KEYS),
            table("exit status", MEANINGS),
            "examples:\n" + "\n".join(f"  {command}\n      {text}" for command, text in EXAMPLES),
        ]
    )


# -- from a configuration file ---------------------------------------------------------------------------------------


def _read(path: Path, table: Mapping[str, Option]) -> dict[str, object]:
    """Options of a TOML file. Keys are names of options, relative paths are meant from the file's folder."""
    try:
        with path.open("rb") as file:
            contents: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}): check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is not TOML ({' '.join(str(error).split())}): correct it") from None
    known = {option.name: option for option in table.values() if option.key != "config"}
    settings: dict[str, object] = {}
    for name, value in contents.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"--config {path}: {name}: is not an option: {advice}")
        settings[known[name].key] = known[name].convert(f"--config {path}: {name}", value, path.parent)
    return settings
