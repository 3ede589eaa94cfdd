"""kvmtool (2020), cloud-hypervisor's issue 6775 and Firecracker (2026): the bus was locked for reading during an
access, and a guest that moved a device's BAR from inside one waited for itself. Planted: that lock. The bus's map here
is replaced whole, and an access keeps the one it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.fabric.bus import Bus, Mapping
from vmm.locks import Condition, Device, Kit, Locking, entry

BASE, ELSEWHERE = 0x4000_0000, 0x5000_0000


class ReadWriteLock:
    """Many readers or one writer."""

    def __init__(self, kit: Kit) -> None:
        # Guards what follows; signals that the last reader, or the writer, has left.
        self._changed: Condition = kit.condition("bus map")
        self._readers = 0
        self._written = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._written)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._written and not self._readers)
            self._written = True
        try:
            yield
        finally:
            with self._changed:
                self._written = False
                self._changed.notify_all()


class ReadLockedBus(Bus):
    """A bus that is locked for reading during an access, and for writing while a window moves"""

    def lock_by(self, kit: Kit) -> None:
        self._map = ReadWriteLock(kit)

    def write(self, address: int, size: int, value: int) -> None:
        with self._map.reading():
            super().write(address, size, value)

    def move(self, base: int, new_base: int) -> Mapping:
        with self._map.writing():
            return super().move(base, new_base)


class Bar(Device):
    """A device whose register holds the address of its own window."""

    def __init__(self, name: str, locking: Locking, bus: Bus) -> None:
        super().__init__(name, locking)
        self._bus = bus
        self._base = BASE

    @entry
    def read(self, offset: int, size: int) -> int:
        return self._base

    @entry
    def write(self, offset: int, size: int, value: int) -> None:
        if value != self._base:
            self._bus.move(self._base, value)
            self._base = value


def program(bus_class: type[Bus]) -> Program:
    def threads(s: Stage) -> None:
        bus = bus_class()
        if isinstance(bus, ReadLockedBus):
            bus.lock_by(s)
        bar = Locking(kit=s).make(Bar, "nic", bus)
        bus.map(BASE, 0x1000, bar, "nic")

        def there_and_back() -> None:
            bus.write(BASE, 4, ELSEWHERE)
            bus.write(ELSEWHERE, 4, BASE)

        s.spawn("vcpu0", there_and_back)
        s.spawn("vcpu1", bar.read, 0, 4)

    return threads


def check(bus_class: type[Bus]) -> str | None:
    return first_failure(program(bus_class))


EXHIBIT = Exhibit(
    "S1",
    "a BAR that was moved from inside an access deadlocked the bus (kvmtool, cloud-hypervisor 6775, Firecracker)",
    "unit and stress",
    ReadLockedBus,
    Bus,
    check,
    program,
)
