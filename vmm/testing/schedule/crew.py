"""The OS threads that run controlled threads: made once, and used again for one schedule after the other."""

from __future__ import annotations

import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable
from typing import Final


class Hand:
    """One OS thread. It runs a job when its baton is released, and then waits for the next.

    The baton is a raw lock used as a semaphore of one: of what CPython has it is the cheapest to pass from thread to
    thread (6 us on one CPU; a `Condition` takes three of these locks, a `Queue` as many).
    """

    def __init__(self) -> None:
        self.baton: Final[LockType] = allocate_lock()
        self.baton.acquire()
        self.job: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._main, name="idle", daemon=True)
        self._thread.start()
        self.ident: Final = self._thread.ident or 0

    def named(self, name: str) -> None:
        self._thread.name = name

    def dismiss(self) -> None:
        """End the thread, which waits for a job."""
        self.job = None
        self.baton.release()
        self._thread.join()

    def _main(self) -> None:
        while True:
            self.baton.acquire()
            job = self.job
            if job is None:
                return
            job()
            del job  # it holds a whole schedule's devices


class Crew:
    """Hands that wait for work."""

    def __init__(self) -> None:
        self._free: list[Hand] = []

    def hire(self) -> Hand:
        return self._free.pop() if self._free else Hand()

    def back(self, hand: Hand) -> None:
        """A hand whose job has ended. One that was torn from its work is not given back but dismissed, since what the
        code had kept for that OS thread may be in any state."""
        self._free.append(hand)

    def close(self) -> None:
        while self._free:
            self._free.pop().dismiss()
