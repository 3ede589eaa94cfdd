"""Who waits for whom: what threads hold or bring about, what they wait for, and the cycles among them.

Pure: the parts of a machine put into a `Sighting` what they know at one moment (`tell`), and this module makes sense of
it. Threads are known by their idents, things by their names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Hold:
    """A thread that holds a lock, or on which it is to bring about what others wait for (`serves`)."""

    thread: int
    thing: str
    serves: str = ""
    """What it is doing for them; empty for a lock."""
    since: int = 0
    """ns of CLOCK_MONOTONIC; 0 where it is not known."""


@dataclass(frozen=True, slots=True)
class Wait:
    thread: int
    thing: str
    since: int
    """ns of CLOCK_MONOTONIC."""


@dataclass(frozen=True, slots=True)
class Stay:
    """A thread that is where it should soon leave again: in an exit, a callback, the queue of a lock.

    The same `key` is the same stay: whoever left and came back has another one.
    """

    thread: int
    what: str
    key: Hashable


class Sighting:
    """What the parts of a machine know of their threads at one moment. Others may change it while it is collected."""

    def __init__(self, parts: Iterable[Tells] = ()) -> None:
        self.holds: list[Hold] = []
        self.waits: list[Wait] = []
        self.stays: list[Stay] = []
        for part in parts:
            part.tell(self)

    def hold(self, thread: int | None, thing: str, serves: str = "", since: int = 0) -> None:
        """Thread `thread` holds or serves `thing`. One that has not started does neither."""
        if thread is not None:
            self.holds.append(Hold(thread, thing, serves, since))

    def wait(self, thread: int, thing: str, since: int) -> None:
        self.waits.append(Wait(thread, thing, since))

    def stay(self, thread: int | None, what: str, key: Hashable) -> None:
        if thread is not None:
            self.stays.append(Stay(thread, what, (thread, key)))


def seconds(ns: int) -> str:
    return f"{ns / SECOND:.1f} s"


class Tells(Protocol):
    """A part of a machine that knows something of its threads. It answers from any thread and waits for nobody who
    may hang."""

    def tell(self, sighting: Sighting) -> None: ...


Cycle = tuple[Wait, ...]
"""Each one's thing is held or served by the thread of the next one, the last one's by that of the first."""


def cycles(holds: Iterable[Hold], waits: Iterable[Wait]) -> list[Cycle]:
    """Cycles that hold each other up: a shortest one through every thread that is on any, less those seen already."""
    holders: dict[str, list[int]] = {}
    for hold in holds:
        holders.setdefault(hold.thing, []).append(hold.thread)
    wanted: dict[int, list[Wait]] = {}
    for wait in waits:
        wanted.setdefault(wait.thread, []).append(wait)
    found: list[Cycle] = []
    for first in sorted(wanted):
        if all(first != wait.thread for cycle in found for wait in cycle):
            found += _shortest(first, holders, wanted)
    return found


def _shortest(first: int, holders: dict[str, list[int]], wanted: dict[int, list[Wait]]) -> Iterator[Cycle]:
    """A shortest cycle through thread `first`, if there is one."""
    seen = {first}
    paths: deque[Cycle] = deque((wait,) for wait in wanted[first])
    while paths:
        path = paths.popleft()
        for thread in holders.get(path[-1].thing, ()):
            if thread == first:
                yield path
                return
            if thread not in seen:
                seen.add(thread)
                paths += [(*path, wait) for wait in wanted.get(thread, ())]


def describe(
    sighting: Sighting,
    *,
    now: int,
    name: Callable[[int], str],
    held: Callable[[Hold], str],
    where: Callable[[int], Iterable[str]],
) -> Iterator[str]:
    """The wait-for graph as lines of text, cycles first.

    `name` names a thread, `held` says since when it holds something, `where` at which lines it is.
    """
    waits = sorted(sighting.waits, key=lambda wait: wait.since)
    for cycle in cycles(sighting.holds, waits):
        steps = [
            f"{name(wait.thread)} waits for {wait.thing}, which needs {name(after.thread)}"
            for wait, after in zip(cycle, (*cycle[1:], cycle[0]), strict=True)
        ]
        yield f"CYCLE: {'; '.join(steps)}"
    holds: dict[str, list[Hold]] = {}
    for hold in sighting.holds:
        holds.setdefault(hold.thing, []).append(hold)
    awaited = {wait.thing: None for wait in waits if wait.thing in holds}
    for thing in awaited:
        yield thing
        for hold in holds[thing]:
            verb = f"is up to {name(hold.thread)}: {hold.serves}" if hold.serves else f"held by {name(hold.thread)}"
            yield f"  {verb}{held(hold)}"
            yield from (f"    {line}" for line in where(hold.thread))
        for wait in waits:
            if wait.thing == thing:
                yield f"  {name(wait.thread)} waits, for {seconds(now - wait.since)}"
                yield from (f"    {line}" for line in where(wait.thread))
    for thing, others in holds.items():
        for hold in others:
            if thing not in awaited and not hold.serves:
                yield f"{thing}: held by {name(hold.thread)}{held(hold)}, nobody waits"
                yield from (f"    {line}" for line in where(hold.thread))
    idle = [f"{name(wait.thread)} for {wait.thing}" for wait in waits if wait.thing not in holds]
    if idle:
        yield f"waits that no thread is to end now: {', '.join(idle)}"
