"""What an exhibit of the museum is: another monitor's bug, planted here beside the code that does not have it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vmm.errors import LockOrderError
from vmm.lockreport import Kind
from vmm.locks import Kit, Locking

Subject: TypeAlias = Callable[..., Any]
Side: TypeAlias = Literal["mutant", "twin"]


class Stage(Kit):
    """What a program is made of, and where its threads run: plainly, or under somebody's scheduler.

    The seeded scheduler (`vmm.testing.schedule.Scheduler`) has this shape without being made from this class.
    """

    def spawn(self, name: str, target: Callable[..., object], *args: Any) -> object:
        """Have a thread of this name call the function."""
        raise NotImplementedError

    def check(self, invariant: Callable[[], object]) -> object:
        """Call this once all threads have ended; it asserts what must hold then."""
        raise NotImplementedError


Program: TypeAlias = Callable[[Any], None]
"""Builds fresh devices of a `Stage`, or of a `Scheduler`, and spawns the threads that use them."""


class CheckerOff(Exception):
    """The checker did not run, so that its silence means nothing."""


@dataclass(frozen=True)
class Exhibit:
    """One entry of the catalogue. Subjects are classes, or functions that make what is to be judged."""

    id: str
    title: str
    """What happened elsewhere."""
    checker: str
    """What must tell mutant and twin apart."""
    mutant: Subject
    twin: Subject
    check: Callable[[Any], str | None]
    """What the checker says of a subject; None when it says nothing. Raises CheckerOff if it did not run."""
    program: Callable[[Any], Program] | None = None
    """A subject as threads to be scheduled, where it takes an unlucky schedule for the mistake to show."""

    @property
    def kind(self) -> Literal["real", "model"]:
        """Whether the correct code is this monitor's own."""
        return "real" if self.twin.__module__.partition(".")[0] == "vmm" else "model"

    def threads(self, side: Side) -> Threads:
        """One of the two as a program."""
        return Threads(self, side)

    @property
    def story(self) -> str:
        """What happened elsewhere and what is planted, in a few lines."""
        return inspect.cleandoc(sys.modules[self.mutant.__module__].__doc__ or "")


class Threads:
    """A subject of an exhibit as a program, with the name under which the catalogue has it."""

    def __init__(self, exhibit: Exhibit, side: Side) -> None:
        if exhibit.program is None:
            raise TypeError(f"{exhibit.id} has no threads")
        self.__module__ = "tests.museum.catalogue"
        self.__qualname__ = f"{side}.{exhibit.id}"
        self.__wrapped__ = exhibit.program  # in whose file it is
        self._program = exhibit.program(getattr(exhibit, side))

    def __call__(self, stage: Any) -> None:
        self._program(stage)


def lock_report(kind: Kind, run: Callable[[Locking], object], locking: Locking | None = None) -> str | None:
    """What the checked locks report of a run, if it is of this kind, on one line."""
    locking = locking or Locking(checked=True)
    try:
        run(locking)
    except LockOrderError:
        pass
    return first_report(kind, locking)


def first_report(kind: Kind, locking: Locking) -> str | None:
    """The first report of one kind, on one line. Others are a defect of the exhibit, unless they come with it."""
    if locking.checker is None:
        raise CheckerOff("these locks are not checked")
    reports = locking.checker.reports
    fitting = [report for report in reports if report.kind is kind]
    assert fitting or not reports, f"reported, but not as {kind}: {reports[0]}"
    return str(fitting[0]).splitlines()[0] if fitting else None
