"""The options of `vmm-run` as a table, from which its parsers, its help and `docs/cli.md` are made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vmm import bql
from vmm.cli.values import make_drive, parse_drive, parse_size
from vmm.errors import ConfigError
from vmm.machine.config import JITS, MAX_HARTS

Convert = Callable[[str, object, Path], object]
"""(option as the user wrote it, value, folder that relative paths are meant from) -> value; raises ConfigError."""


WATCHDOG_S = 10


# -- what values may be ----------------------------------------------------------------------------------------------


def _text(option: str, value: object, folder: Path) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{option}: {value!r} is not a text: write it in quotes")
    return value


def _file(option: str, value: object, folder: Path) -> Path:
    if not (name := _text(option, value, folder)):
        raise ConfigError(f"{option}: names no file: give a path")
    return folder / name


def _report_file(option: str, value: object, folder: Path) -> str:
    return "-" if value == "-" else str(_file(option, value, folder))


def _number(option: str, value: object, folder: Path) -> int:
    try:
        if isinstance(value, (bool, float)):
            raise ValueError
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        raise ConfigError(f"{option}: {value!r} is not a whole number: write one such as 2") from None


def _seconds(option: str, value: object, folder: Path) -> float:
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 < seconds < 1e9:
        raise ConfigError(f"{option}: {value!r} is not a time: give seconds above 0, such as 60")
    return seconds


def _watchdog(option: str, value: object, folder: Path) -> float:
    if value in ("off", False):
        return 0.0
    if (seconds := _seconds(option, value, folder)) < 0.1:
        raise ConfigError(f"{option}: {value!r} is too short: give seconds from 0.1, or off")
    return seconds


def _size(option: str, value: object, folder: Path) -> int:
    return parse_size(option, value if isinstance(value, str) else str(_number(option, value, folder)))


def _switch(option: str, value: object, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{option}: {value!r} is not a switch: write true or false")
    return value


def _regex(option: str, value: object, folder: Path) -> re.Pattern[bytes]:
    try:
        return re.compile(_text(option, value, folder).encode())
    except re.error as error:
        raise ConfigError(f"{option}: {value!r} is not a regular expression ({error}): correct it") from None


def _policy(option: str, value: object, folder: Path) -> str:
    if value not in bql.POLICIES:
        raise ConfigError(f"{option}: {value!r} is not a policy: give one of {', '.join(bql.POLICIES)}")
    return str(value)


def _jit(option: str, value: object, folder: Path) -> str:
    if value not in JITS:
        raise ConfigError(f"{option}: {value!r} is not a tier: give one of {', '.join(JITS)}")
    return str(value)


def _drives(option: str, value: object, folder: Path) -> tuple[object, ...]:
    entries = value if isinstance(value, list) else [value]
    drives = []
    for entry in entries:
        if isinstance(entry, str):
            drive = parse_drive(option, entry)
        elif isinstance(entry, dict):
            drive = make_drive(option, entry)
        else:
            raise ConfigError(f"{option}: {entry!r} is not a drive: write a [[drive]] table with a file")
        drives.append(replace(drive, file=folder / drive.file))
    return tuple(drives)


# -- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option. Without a `metavar` it is a switch: `--name`, and `--no-name` where it is on by default."""

    name: str
    metavar: str
    convert: Convert
    help: str
    on: bool = False
    optional: str = ""
    """What the option means when its value is left out; empty if it may not be."""

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def usage(self) -> str:
        if not self.metavar:
            return f"--no-{self.name}" if self.on else f"--{self.name}"
        return f"--{self.name}[={self.metavar}]" if self.optional else f"--{self.name} {self.metavar}"


_DRIVE_HELP = (
    "a disk, as key=value,...: file=PATH (a comma in it is written twice), format=raw, readonly=on, snapshot=on "
    "(writes are dropped at the end), id=NAME; may be given several times"
)
_SERIAL_HELP = (
    "the other end of the serial port: stdio, null, pty, file:PATH (written), pipe:PATH (a named pipe, or PATH.in and "
    "PATH.out); stdio unless said otherwise"
)

GROUPS: tuple[tuple[str, tuple[Option, ...]], ...] = (
    (
        "What to boot",
        (
            Option("kernel", "FILE", _file, "kernel to boot: a riscv64 Image, gzip'd Image or ELF file"),
            Option("initrd", "FILE", _file, "initial RAM disk for the kernel"),
            Option("append", "TEXT", _text, "kernel command line"),
            Option(
                "bios",
                "FILE",
                _file,
                "firmware to run in M-mode, raw (OpenSBI's fw_dynamic.bin) or ELF (a bare-metal program); without it "
                "the machine itself answers the kernel's SBI calls",
            ),
        ),
    ),
    (
        "The machine",
        (
            Option("smp", "N", _number, f"number of harts, 1 to {MAX_HARTS}; 1 unless said otherwise"),
            Option("mem", "SIZE", _size, "guest memory, such as 512M or 2G, from 32M; 256M unless said otherwise"),
            Option("drive", "SPEC", _drives, _DRIVE_HELP),
            Option("serial", "SPEC", _text, _SERIAL_HELP),
            Option("console", "SPEC", _text, "add a virtio console with this other end, as for --serial"),
            Option("rng", "", _switch, "leave out the virtio random number generator", on=True),
            Option("balloon", "", _switch, "add a virtio memory balloon"),
            Option("jit", "TIER", _jit, "; ".join(f"{name}: {text}" for name, text in JITS.items())),
            Option("svadu", "", _switch, "harts fault instead of setting a page's accessed and dirty bits", on=True),
        ),
    ),
    (
        "The run",
        (
            Option("timeout", "SECONDS", _seconds, "stop the machine after this time, with exit status 124"),
            Option(
                "expect",
                "REGEX",
                _regex,
                "end with exit status 0 as soon as the serial port's output matches, with 123 if the run ends before",
            ),
            Option("no-reboot", "", _switch, "end the run when the guest asks for a reset"),
            Option("config", "FILE", _file, "read options from a TOML file; those on the command line go before them"),
            Option("dump-dtb", "FILE", _file, "write the device tree that the guest would get, and do not run"),
        ),
    ),
    (
        "Looking inside",
        (
            Option("locking", "POLICY", _policy, "; ".join(f"{name}: {text}" for name, text in bql.POLICIES.items())),
            Option(
                "check-locks",
                "",
                _switch,
                "check the order of locks and waits, and who holds what; the machine goes on after a report "
                "where it can, tells all of them at its end, and then ends with exit status 3 instead of 0",
            ),
            Option("lock-report", "FILE", _file, "write what --check-locks found, and the order graph, as JSON"),
            Option(
                "lock-stat",
                "FILE",
                _report_file,
                "measure who takes which lock, why, and how long it waits and holds, and how long harts are outside "
                "the guest; told at the end, and on SIGUSR1: as JSON in a file",
                optional="-",
            ),
            Option(
                "trace",
                "FILE",
                _file,
                "write what each thread does, as a trace for ui.perfetto.dev: guest, exits, locks, callbacks, idle",
            ),
            Option(
                "watchdog",
                "SECONDS",
                _watchdog,
                "write a report when a lock, an exit or a wait makes no progress for this time, or off; "
                f"{WATCHDOG_S} unless said otherwise. SIGQUIT has one written at any time",
            ),
            Option("hang-report", "FILE", _text, "write these reports there instead of to standard error"),
            Option("trace-exits", "FILE", _text, "write a line for each exit of a hart to Python", optional="-"),
            Option(
                "trace-exec",
                "FILE",
                _text,
                "write a line for each instruction: hart, pc, disassembly, changed registers and CSRs, traps (slow)",
                optional="-",
            ),
            Option("jit-stats", "", _switch, "say at the end what was translated, and what that cost"),
            Option("perf-map", "", _switch, "name generated code for Linux perf, in /tmp/perf-PID.map"),
        ),
    ),
)


@dataclass(frozen=True)
class Guest:
    """A guest that needs no files from the user: the first word of the command line.

    `fixed` names options that are not the user's to give then.
    """

    name: str
    help: str
    description: str
    fixed: frozenset[str]
    options: tuple[Option, ...] = ()


GUESTS = (
    Guest(
        "debian",
        "boot Debian's stock riscv64 kernel with busybox to a shell",
        "Fetches Debian's stock riscv64 kernel and busybox with the host's apt (as any user; signatures are checked), "
        "keeps them in the user's cache and boots them to a shell on the terminal. Without a terminal the guest prints "
        "its own report of CPUs, memory, disk and uptime, and powers off. Unless --drive gives another it has an empty "
        "disk of 256 MiB, which forgets what was written.",
        frozenset({"kernel", "initrd"}),
        (
            Option("cache-dir", "DIR", _file, "where to keep what was fetched; ~/.cache/vmm unless said otherwise"),
            Option("refresh", "", _switch, "look for newer packages"),
            Option("report", "", _switch, "print the guest's report and power off, at a terminal too"),
            Option("run", "SCRIPT", _text, "run a shell script in the guest; its exit code becomes the exit status"),
        ),
    ),
    Guest(
        "demo",
        "run the bare-metal guest that ships with this program",
        "Runs a bare-metal program that ships with this one: several harts hammer several devices and print what they "
        "saw. Needs no download.",
        frozenset({"kernel", "initrd", "append", "bios"}),
    ),
)


def groups(guest: Guest | None) -> tuple[tuple[str, tuple[Option, ...]], ...]:
    """The options of `vmm-run`, or of `vmm-run GUEST`, under their headings."""
    if guest is None:
        return GROUPS
    rest = ((title, tuple(option for option in options if option.name not in guest.fixed)) for title, options in GROUPS)
    own = (("This guest", guest.options),) if guest.options else ()
    return (*own, *((title, options) for title, options in rest if options))


DESCRIPTION = "Runs riscv64 guests on the board `virt`, one thread for each hart."
EXAMPLES = (
    ("vmm-run demo", "a first run, without any download"),
    ("vmm-run debian", "Debian's kernel to a shell"),
    ("vmm-run debian --smp 4 --run 'nproc'", "a command in the guest"),
    ("vmm-run --kernel Image --initrd initrd --append console=ttyS0 --smp 2 --mem 1G", "your own kernel"),
    ("vmm-run --kernel Image --drive file=disk.img,format=raw,snapshot=on", "with a disk that stays as it is"),
    ("vmm-run --bios fw_dynamic.bin --kernel Image", "through OpenSBI"),
    ("vmm-run --bios program.elf --smp 2 --timeout 10 --expect PASS", "a bare-metal test in CI"),
)
KEYS = (
    ("C-a x", "stop the machine"),
    ("C-a p", "pause the machine, or let it go on"),
    ("C-a r", "reset the machine"),
    ("C-a s", "show what the machine is doing"),
    ("C-a b", "send a break"),
    ("C-a h", "show these keys"),
    ("C-a C-a", "send C-a itself"),
)
