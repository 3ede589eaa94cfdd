"""What a controlled thread is about to do, as far as other threads can see it: the unit that schedules order.

A thread stops before each operation and says which one it is. Two operations commute unless they touch the same thing
and one of them changes it; the exhaustive search rests on that and skips orders that only swap operations that commute.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Final


class Access(Enum):
    """How an operation touches the thing it names."""

    NOTHING = "nothing"  # a place to switch at
    READS = "reads"
    CHANGES = "changes"
    EVERYTHING = "everything"  # it depends on what cannot be named: a file descriptor, the end of all other work


class Operation:
    """One kind of step. Its label is all that a trace tells of it, so nothing of the process must be in it."""

    __slots__ = ("access", "label", "what")

    def __init__(self, label: str, what: str, access: Access = Access.CHANGES) -> None:
        self.label: Final = label
        self.what: Final = what
        self.access: Final = access

    def __repr__(self) -> str:
        return f"<{self.label}>"

    def commutes(self, other: Operation) -> bool:
        """Whether the two, done by two threads, lead to the same state in either order."""
        mine, its = self.access, other.access
        if mine is Access.NOTHING or its is Access.NOTHING:
            return True
        if mine is Access.EVERYTHING or its is Access.EVERYTHING:
            return False
        return self.what != other.what or (mine is Access.READS and its is Access.READS)


BEGIN: Final = Operation("begin", "", Access.NOTHING)
GO_ON: Final = Operation("go on", "", Access.NOTHING)


@lru_cache(8192)
def named(what: str) -> Operation:
    """The operation of `Kit.point(what)`. The word read, or write, says how it touches the thing that the other words
    name ("uart.ier read"); without either it changes it."""
    words = what.split()
    thing = " ".join(word for word in words if word not in ("read", "write"))
    return Operation(what, thing, Access.READS if "read" in words else Access.CHANGES)
