"""How a schedule can fail, and the words for it."""

from __future__ import annotations

import linecache
import sys
import threading
import traceback
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType

from vmm.errors import LockOrderError

_HERE = str(Path(__file__).parent)
_DEPTH = 12


class Kind(Enum):
    """What was found."""

    DEADLOCK = "deadlock"
    LOST_WAKE_UP = "lost wake-up"
    ASSERTION = "assertion"
    EXCEPTION = "exception"
    LOCK_RULE = "lock rule"
    RACE = "race"
    NO_PROGRESS = "no progress"


@dataclass(frozen=True)
class Failed:
    """One failed schedule. `error` is the type of what was raised, if something was."""

    kind: Kind
    error: str
    report: str


def kind_of(error: BaseException) -> Kind:
    if isinstance(error, AssertionError):
        return Kind.ASSERTION
    return Kind.LOCK_RULE if isinstance(error, LockOrderError) else Kind.EXCEPTION


def describe(error: BaseException, where: str) -> str:
    """What was raised, with the frames that are not the scheduler's own."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _own(frame.filename)]
    lines = "".join(traceback.format_list(frames)) + "".join(traceback.format_exception_only(error))
    return f"{where} raised {type(error).__name__}:\n{lines.rstrip()}"


def stack_of(ident: int) -> list[str]:
    """Where an OS thread is, innermost first."""
    frame: FrameType | None = sys._current_frames().get(ident)
    lines: list[str] = []
    while frame and len(lines) < _DEPTH:
        code = frame.f_code
        if not _own(code.co_filename) and code.co_name != "_bootstrap":
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            lines.append(f"    {code.co_filename}:{frame.f_lineno} {code.co_qualname}: {text}")
        frame = frame.f_back
    return lines


def _own(filename: str) -> bool:
    return filename.startswith((_HERE, "<@entry", threading.__file__))
