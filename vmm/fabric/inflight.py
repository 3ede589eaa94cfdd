"""Copies in flight: work on guest memory without its device's lock, counted so that a reset can wait for its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmm.locks import PLAIN, Kit
from vmm.waitfor import Sighting


class InFlight:
    """Counts pieces of work that have begun and not ended. Any thread may call any method, holding any lock but a LEAF.

    Work ends on the thread that did it, before its completion is posted anywhere: a waiter then depends on no event
    loop, and may be the very thread that completions are posted to.
    """

    def __init__(self, name: str, kit: Kit = PLAIN) -> None:
        self.name: Final = name
        self.progress: Final = kit.progress(f"copies in flight of {name}", "copies in flight")
        """Of the work: whoever does it serves this."""
        self._count = self._waiters = 0
        self._at_rest: list[Callable[[], None]] = []
        # Rank LEAF; guards all of these. Nothing is called under it. It signals that `_count` is 0.
        self._idle = kit.condition(f"{name} idle", "copies counted")

    def __repr__(self) -> str:
        return f"<InFlight {self.name}: {self._count}>"

    @property
    def count(self) -> int:
        return self._count

    def tell(self, sighting: Sighting) -> None:
        """Who waits for it. Who does the work is for its callers to know."""
        self.progress.tell(sighting, self.thing)

    @property
    def thing(self) -> str:
        """What its waiters wait for, by a name of its own."""
        return self.progress.name

    def begin(self, count: int = 1) -> None:
        """Say so while still holding the lock under which the work was accepted."""
        with self._idle:
            self._count += count

    def end(self, count: int = 1) -> None:
        with self._idle:
            self._count -= count
            if self._waiters and not self._count:
                self._idle.notify_all()
            calls = self._called_at_rest() if self._at_rest else ()
        for call in calls:
            call()

    def when_idle(self, call: Callable[[], None]) -> None:
        """Have `call` called once nothing is in flight: at once, or on the thread that ends the last of it, so it
        should only post to where the work belongs."""
        with self._idle:
            self._at_rest.append(call)
            calls = self._called_at_rest()
        for one in calls:
            one()

    def _called_at_rest(self) -> list[Callable[[], None]]:
        if self._count:
            return []
        calls, self._at_rest = self._at_rest, []
        return calls

    def wait(self, timeout: float) -> bool:
        """Wait until nothing is in flight; False after `timeout` seconds. With no lock held that the work needs."""
        with self.progress.waiting(), self._idle:
            self._waiters += 1
            idle = self._idle.wait_for(lambda: not self._count, timeout)
            self._waiters -= 1
            return bool(idle)
