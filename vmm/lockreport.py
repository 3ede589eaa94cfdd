"""What a checker found: one report for each broken rule, as text for a person and as JSON for a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from linecache import getline
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

Raw: TypeAlias = list[tuple[CodeType, int]]
"""A stack as it is taken, innermost frame first: frames themselves would keep their locals alive."""


class Kind(StrEnum):
    """Which rule was broken."""

    CYCLE = "cycle"
    """Threads that do at once what was seen here, at whatever times, wait for each other for ever."""
    RANK = "rank"
    """A lock was taken against the order of ranks."""
    NESTING = "nesting"
    """A lock was taken beside another of its rank, which does not declare it as a child."""
    RE_ENTRY = "re-entry"
    """A device was entered again from outside by a thread that is inside it."""
    CALL_OUT = "call-out"
    """A call that a device had posted ran while a lock was held."""
    PRIVATE = "private"
    """A private method ran without its device's lock."""
    BYPASS = "bypass"
    """The body of a public method ran without its device's lock: its door was gone round."""
    HOME = "home"
    """Work ran on another thread than its home."""
    WAIT = "wait"
    """A thread waited with something held, and for nothing that has a name, so nobody could see for whom."""
    SELF = "self"
    """A thread waited for itself."""
    RACE = "race"
    """What a device keeps was read or written without its lock."""
    RELEASE = "release"
    """A lock was released that was not held."""


class Frame(NamedTuple):
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {getline(self.file, self.line).strip()}"


Stack: TypeAlias = tuple[Frame, ...]


def frames(raw: Raw) -> Stack:
    return tuple(Frame(code.co_filename, line, code.co_qualname) for code, line in raw)


@dataclass(frozen=True, slots=True)
class Witness:
    """A stack that shows how it came about; `what` says what the thread did there."""

    what: str
    stack: Stack
    thread: str

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "thread": self.thread, "stack": [frame._asdict() for frame in self.stack]}


@dataclass(slots=True)
class Report:
    """A broken rule. `classes` and `instances` are those of the locks or waits it is about, in one order."""

    kind: Kind
    text: str
    """What the thread did, to go behind its name."""
    classes: tuple[str, ...]
    instances: tuple[str, ...]
    thread: str
    witnesses: tuple[Witness, ...]
    count: int = field(default=1, compare=False)
    """How often it was found, in whatever threads and instances; the rest is of the first time."""

    @property
    def key(self) -> tuple[Kind, tuple[str, ...]]:
        """Reports with equal keys are one."""
        return self.kind, self.classes

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"[{self.kind}] thread {self.thread} {self.text}"
        for witness in self.witnesses:
            yield f"  {witness.what}:" if witness.thread == self.thread else f"  {witness.what}, by {witness.thread}:"
            yield from (f"    {frame}" for frame in witness.stack)
        if self.count > 1:
            yield f"  found {self.count} times"

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "text": self.text,
            "classes": list(self.classes),
            "instances": list(self.instances),
            "thread": self.thread,
            "count": self.count,
            "witnesses": [witness.as_json() for witness in self.witnesses],
        }


def joined(reports: Iterable[Report]) -> str:
    """Several reports as one text."""
    return "\n\n".join(map(str, reports))
