"""QEMU's guard against re-entry was one flag for each device. Once a region was read without the big lock the flag of
one reader turned away another, 47 % of them. Planted: that flag. A guard has to count for each thread, as the checker
of `vmm/lockcheck.py` does; regions without a lock have no guard there, so this one is a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from tests.museum.exhibit import Exhibit, Program, Stage
from vmm.locks import Device, Locking, lockfree

READS = 3


class Guard(Protocol):
    def enter(self) -> bool:
        """False when the caller is inside already."""

    def leave(self) -> None: ...


class PerThread(threading.local):
    """A guard that knows which threads are inside"""

    def __init__(self) -> None:
        self._inside = False

    def enter(self) -> bool:
        entered, self._inside = not self._inside, True
        return entered

    def leave(self) -> None:
        self._inside = False


class PerDevice:
    """A guard that knows whether any thread is inside"""

    def __init__(self) -> None:
        self._inside = False

    def enter(self) -> bool:
        entered, self._inside = not self._inside, True
        return entered

    def leave(self) -> None:
        self._inside = False


class Region(Device):
    """A register that is read without a lock, behind a guard."""

    def __init__(self, name: str, locking: Locking, guard: Guard, inside: Callable[[], None]) -> None:
        super().__init__(name, locking)
        self._guard = guard
        self._inside = inside
        self._kit = locking.kit

    @lockfree("it reads one word that never changes")
    def read(self, offset: int, size: int) -> int | None:
        """None where the guard turns the access away."""
        if not self._guard.enter():
            return None
        try:
            self._inside()
            return 7
        finally:
            self._guard.leave()


def check(guard: Callable[[], Guard]) -> str | None:
    """Stress test of two readers, the second of which comes when the first is surely inside."""
    meanwhile: list[int | None] = []

    def second() -> None:
        thread = threading.Thread(target=lambda: meanwhile.append(region.read(0, 4)), name="vcpu1")
        thread.start()
        thread.join()

    calls = iter((second, lambda: None))
    region = Locking().make(Region, "hpet", guard(), lambda: next(calls)())
    assert region.read(0, 4) == 7
    return "a read was turned away while another thread's was under way" if meanwhile == [None] else None


def program(guard: Callable[[], Guard]) -> Program:
    def threads(s: Stage) -> None:
        region = Locking(kit=s).make(Region, "hpet", guard(), lambda: s.point("read counter"))

        def reads() -> None:
            for _ in range(READS):
                assert region.read(0, 4) == 7, "a read was turned away while another thread's was under way"

        s.spawn("vcpu0", reads)
        s.spawn("vcpu1", reads)

    return threads


EXHIBIT = Exhibit(
    "M4",
    "a re-entry flag for each device turned away 47 % of legitimate concurrent reads (QEMU)",
    "stress test",
    PerDevice,
    PerThread,
    check,
    program,
)
