"""Who runs next: by a plan, at random, or by priorities.

Random numbers come from `random()` alone, whose values for a seed Python keeps from version to version.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from random import Random

from vmm.testing.schedule.core import SPIN, ScheduledThread, Scheduler, Switch

_priority = attrgetter("priority")


class Planned:
    """The calm schedule, but for the switches of a plan. Those that do not come about are ignored."""

    sees_all = False

    def __init__(self, switches: Iterable[Switch] = ()) -> None:
        self._to = {(thread, steps): to for thread, steps, to in switches}

    def started(self, thread: ScheduledThread) -> None:
        """It needs to know nothing of it."""

    def choose(self, scheduler: Scheduler, me: ScheduledThread | None, able: list[ScheduledThread]) -> ScheduledThread:
        to = self._to.get((me.index, me.steps) if me else (-1, 0))
        if to is not None:
            for thread in able:
                if thread.index == to:
                    return thread
        return scheduler.calm(me, able)


class Uniform:
    """At each step any thread that can run, all equally likely."""

    sees_all = False

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def started(self, thread: ScheduledThread) -> None:
        """All are alike."""

    def choose(self, scheduler: Scheduler, me: ScheduledThread | None, able: list[ScheduledThread]) -> ScheduledThread:
        return able[int(self._random() * len(able))]


class Pct:
    """Probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi, Nagarakatte, ASPLOS 2010).

    Threads get random priorities and the highest that can run does. At `depth` - 1 random steps the running thread
    falls below all others. A bug that needs `depth` orderings among n threads of k steps in all is found by a schedule
    with probability at least 1 / (n k^(depth - 1)).

    A thread that spins would keep out one of lower priority for which it spins, so whoever seems to spin falls too.
    """

    sees_all = False

    def __init__(self, seed: int, depth: int, steps: int) -> None:
        """`steps` estimates k."""
        self._random = Random(seed).random
        self._falls = sorted((int(self._random() * steps) for _ in range(depth - 1)), reverse=True)
        self._low = 0.0

    def started(self, thread: ScheduledThread) -> None:
        thread.priority = 1.0 + self._random()

    def choose(self, scheduler: Scheduler, me: ScheduledThread | None, able: list[ScheduledThread]) -> ScheduledThread:
        if me is not None:
            if self._falls and len(scheduler.trace) >= self._falls[-1]:
                self._falls.pop()
                self._fall(me)
            elif scheduler.row >= SPIN:
                self._fall(me)
        return max(able, key=_priority)

    def _fall(self, thread: ScheduledThread) -> None:
        self._low -= 1.0
        thread.priority = self._low
