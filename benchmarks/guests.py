"""What the benchmarks run: bare-metal programs, Debian, and the two monitors that they are run in."""

from __future__ import annotations

import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmm.guests.debian import DebianGuest, prepare
from vmm.isa.table import INSTRUCTIONS

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "programs"
QEMU = "qemu-system-riscv64"
TICK_S = 100e-9
"""The guest's clock."""


class Assembly:
    """A machine-mode program at the start of RAM. `to` and `label` name places, all else is as in `vmm.isa`."""

    def __init__(self) -> None:
        self._words: list[tuple[str, dict[str, int], str | None]] = []
        self._labels: dict[str, int] = {}

    def __call__(self, name: str, to: str | None = None, **operands: int) -> None:
        self._words.append((name, operands, to))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._words)

    def li(self, rd: int, value: int) -> None:
        """A constant of 32 bits."""
        low = (value & 0x7FF) - (value & 0x800)
        self("lui", rd=rd, imm=(value - low) >> 12 & 0xF_FFFF)
        self("addiw", rd=rd, rs1=rd, imm=low)

    def code(self) -> bytes:
        words = []
        for at, (name, operands, to) in enumerate(self._words):
            distance = {} if to is None else {"imm": 4 * (self._labels[to] - at)}
            words.append(INSTRUCTIONS[name].encode(**operands, **distance))
        return struct.pack(f"<{len(words)}I", *words)


@dataclass(frozen=True)
class Python:
    """An interpreter to measure on."""

    path: Path
    name: str
    build: str

    @property
    def free_threaded(self) -> bool:
        return self.name.endswith("t")

    @classmethod
    def at(cls, path: Path) -> Python:
        """Asks the interpreter. One that cannot import the project, or whose GIL came back, ends the program."""
        probe = (
            "import sysconfig, vmm.cli.run, vmm.codegen.llvm; from benchmarks import report; import platform as p;"
            "assert not report.gil_came_back(), 'an import has brought the GIL back';"
            "print(p.python_version() + 't' * bool(sysconfig.get_config_var('Py_GIL_DISABLED')), report.python_build(),"
            "sep='\\n')"
        )
        asked = subprocess.run([path, "-c", probe], cwd=ROOT, capture_output=True, text=True)
        if asked.returncode:
            raise SystemExit(f"{path}: {asked.stderr.strip().splitlines()[-1]}")
        version, build = asked.stdout.split("\n")[:2]
        return cls(path, f"Python {version}", build)


def pythons(paths: Sequence[Path] | None) -> list[Python]:
    """Those asked for; by default the one that runs, and the free-threaded one that `make python-ft` sets up."""
    if paths is None:
        free = ROOT / ".venv-ft" / "bin" / "python"
        paths = [Path(sys.executable), *([free] if free.exists() else [])]
    found = [Python.at(path) for path in paths]
    return list({python.name: python for python in found}.values())


def build_programs() -> Path:
    """Makes tests/programs with the cross compiler; where the ELF files are."""
    made = subprocess.run(["make", "-s", "-C", PROGRAMS], capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(f"make -C {PROGRAMS.relative_to(ROOT)}: {made.stderr.strip()}")
    return PROGRAMS / "build"


def debian() -> DebianGuest:
    return prepare()


def qemu_version() -> str:
    if shutil.which(QEMU) is None:
        raise SystemExit(f"{QEMU} is not installed: it is what this compares with")
    return subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]


def vmm_run(python: Python, *arguments: str | Path) -> list[str]:
    return [str(python.path), "-m", "vmm.cli", *map(str, arguments)]


def qemu(*arguments: str | Path) -> list[str]:
    return [QEMU, "-M", "virt", "-nographic", *map(str, arguments)]


class Broken(SystemExit):
    """A run that did not go as a benchmark needs it: ends the program with the reason."""


class Run:
    """A monitor in a process of its own, its serial port on a pipe."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self.output = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, mark: bytes, timeout: float = 120.0) -> float:
        """Seconds from the start of the process to when its output held `mark`. Raises Broken if it never does."""
        deadline = time.monotonic() + timeout
        assert self.process.stdout is not None
        while mark not in self.output:
            ready = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not data:
                why = "ended" if ready else f"ran for {timeout:g} s"
                raise Broken(f"{' '.join(self.argv)}: {why} without {mark!r}; it said:\n{self.text[-2000:]}")
            self.output += data
        return time.perf_counter() - self.began

    def ended(self, timeout: float = 120.0) -> float:
        """Seconds from start to end of the process. Raises Broken if it fails or does not end."""
        deadline = time.monotonic() + timeout
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                status = self.process.wait(timeout)
                spent = time.perf_counter() - self.began
                if status:
                    raise Broken(f"{' '.join(self.argv)}: exit status {status}; it said:\n{self.text[-2000:]}")
                return spent
            self.output += data
        raise Broken(f"{' '.join(self.argv)}: still there after {timeout:g} s; it said:\n{self.text[-2000:]}")

    @property
    def text(self) -> str:
        return self.output.decode(errors="replace")


@contextmanager
def running(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Run]:
    """A run that is over when the block is."""
    run = Run(argv, env)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait()
        for pipe in (run.process.stdin, run.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(frozen=True)
class Line:
    """What a program of tests/programs/speed says of one thing that it does: "name iterations ticks"."""

    iterations: int
    seconds: float

    @property
    def each(self) -> float:
        """Seconds an iteration."""
        return self.seconds / self.iterations


def lines(argv: Sequence[str], timeout: float = 300.0) -> dict[str, Line]:
    """Runs such a program: its lines by name."""
    with running(argv) as run:
        run.ended(timeout)
    found = re.findall(r"^([\w-]+) (\d+) (\d+)\r?$", run.text, re.MULTILINE)
    if "FAIL" in run.text or not found:
        raise Broken(f"{' '.join(argv)} said:\n{run.text[-2000:]}")
    return {name: Line(int(iterations), int(ticks) * TICK_S) for name, iterations, ticks in found}


@contextmanager
def file_of(content: bytes, suffix: str = ".bin") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"guest{suffix}")
        path.write_bytes(content)
        yield path
