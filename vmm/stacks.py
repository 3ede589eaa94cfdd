"""The stacks of all threads of this process, without touching their frames.

`faulthandler` walks them in C with every other thread at rest: under the GIL, or on free-threaded builds (from 3.13.2
on) with the world stopped. There `sys._current_frames()` will not do: to look at a frame that runs on may crash.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PY_SPY_DEADLINE_S: Final = 20.0

_THREAD: Final = re.compile(r"(?:Thread|Current thread) 0x([0-9a-f]+)")
_FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_DOOR: Final = re.compile(r"<@entry (?:.*\.)?([^.]+\.[^.]+)>")
_PACKAGE: Final = str(Path(__file__).parent)
_ROOT: Final = os.path.dirname(_PACKAGE) + os.sep
_STANDARD: Final = sysconfig.get_path("stdlib")
_LOCKS: Final = tuple(os.path.join(_PACKAGE, name) for name in ("locks.py", "lockcheck.py"))


@dataclass(frozen=True, slots=True)
class Frame:
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file.removeprefix(_ROOT)}:{self.line} {self.function}"

    @property
    def door(self) -> str:
        """The door whose wrapper this is, as Class.method; empty for any other function."""
        match = _DOOR.fullmatch(self.file)
        return match[1] if match else ""

    @property
    def telling(self) -> bool:
        """Whether it is neither the standard library's nor a part of a lock."""
        return not (self.door or self.file.startswith((_STANDARD, *_LOCKS, "<")))


Stack = tuple[Frame, ...]
"""Innermost first."""


def stacks() -> dict[int, Stack]:
    """Where each thread is, by its ident; at most 100 threads of 100 frames."""
    found: dict[int, list[Frame]] = {}
    frames: list[Frame] = []
    for line in _walk().splitlines():
        if match := _THREAD.match(line):
            frames = found.setdefault(int(match[1], 16), [])
        elif match := _FRAME.fullmatch(line):
            frames.append(Frame(match[1], int(match[2]), match[3]))
    return {ident: tuple(stack) for ident, stack in found.items()}


def places(stack: Stack) -> Iterator[str]:
    """Where a thread is, in a few words: its innermost line that tells something, then the doors it is inside."""
    telling = next((at for at, frame in enumerate(stack) if frame.telling), None)
    if telling is None:
        return
    yield f"at {stack[telling]}"
    for at, frame in enumerate(stack):
        if frame.door:
            body = next((inner for inner in reversed(stack[:at]) if inner.telling), None)
            yield f"in {frame.door}" + (f", at {body}" if body else "")


def dump() -> str:
    """All stacks for a person to read: py-spy's, or else faulthandler's with a line that says why."""
    text, why = _py_spy()
    if text:
        return f"by py-spy\n{text}"
    names = {thread.ident or 0: thread.name for thread in threading.enumerate()}
    lines = [f"by faulthandler, since py-spy {why}"]
    for ident, stack in stacks().items():
        lines.append(f'Thread "{names.get(ident, ident)}"')
        lines += [f"    {frame}" for frame in stack]
    return "\n".join(lines)


def _walk() -> str:
    fd = os.memfd_create("stacks", os.MFD_CLOEXEC)
    try:
        faulthandler.dump_traceback(fd, all_threads=True)
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")
    finally:
        os.close(fd)


def _py_spy() -> tuple[str, str]:
    """`py-spy dump` of this process, or in a line why there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    program = beside if os.access(beside, os.X_OK) else shutil.which("py-spy")
    if program is None:
        return "", "is not installed"
    command = [program, "dump", "--pid", str(os.getpid())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PY_SPY_DEADLINE_S, check=False)
    except OSError as error:
        return "", f"cannot be run: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "", f"gave no answer in {PY_SPY_DEADLINE_S:g} s"
    if done.returncode or not done.stdout:
        return "", f"failed: {next(iter(done.stderr.splitlines()), 'it said nothing')}"
    return done.stdout.strip(), ""
