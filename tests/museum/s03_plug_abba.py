"""Firecracker closed a race of hot-plug against access by a lock around the bus, which the access takes before the
device's and the unplug after it; three more fixes followed in three weeks. Planted: that bus, and a device that is
ejected by its own register. The map of the bus here needs no lock around an access.
"""

from __future__ import annotations

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.fabric.bus import Bus, BusFault, Mapping
from vmm.locks import Device, Locking, Rank, entry

BASE = 0x1000_1000


class LockedBus(Bus):
    """A bus with one lock around every access and every change of its map"""

    def lock_by(self, locking: Locking) -> None:
        self._around = locking.lock("bus", rank=Rank.BUS)

    def read(self, address: int, size: int) -> int:
        with self._around:
            return super().read(address, size)

    def unmap(self, base: int) -> Mapping:
        with self._around:
            return super().unmap(base)


class Ejected(Device):
    """A device that the monitor takes away by its own door."""

    def __init__(self, name: str, locking: Locking, bus: Bus) -> None:
        super().__init__(name, locking)
        self._bus = bus
        self._gone = False

    @entry
    def read(self, offset: int, size: int) -> int:
        assert not self._gone, "a VCPU reads a device that is gone"
        return 0

    @entry
    def write(self, offset: int, size: int, value: int) -> None:
        pass

    @entry
    def eject(self) -> None:
        self._bus.unmap(BASE)
        self._bus.retire(self.gone)

    @entry
    def gone(self) -> None:
        self._gone = True


def program(bus_class: type[Bus]) -> Program:
    def threads(s: Stage) -> None:
        locking = Locking(kit=s)
        bus = bus_class()
        if isinstance(bus, LockedBus):
            bus.lock_by(locking)
        device = locking.make(Ejected, "nic", bus)
        bus.map(BASE, 0x1000, device, "nic")

        def access() -> None:
            try:
                bus.read(BASE, 4)
            except BusFault:
                pass

        s.spawn("vcpu0", access)
        s.spawn("monitor", device.eject)

    return threads


def check(bus_class: type[Bus]) -> str | None:
    return first_failure(program(bus_class))


EXHIBIT = Exhibit(
    "S3",
    "a lock against the race of hot-plug and access made an ABBA deadlock (Firecracker)",
    "seeded scheduler",
    LockedBus,
    Bus,
    check,
    program,
)
