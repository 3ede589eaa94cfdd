"""A NIC was detached by the monitor while a VCPU was on its way into it; it took about 4000 cycles of plug and unplug
to hit. Planted: a bus that gives a removed device back at once. `Bus.retire` waits for the threads that may still be on
their way, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.fabric.bus import Bus
from vmm.locks import Device, Locking, entry

BASE = 0x1000_1000


class HastyBus(Bus):
    """A bus that calls what is to be reclaimed as soon as it is asked to"""

    def retire(self, reclaim: Callable[[], None]) -> None:
        reclaim()


class Nic(Device):
    """A device that says so when it is used after it was given back."""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._closed = False

    @entry
    def read(self, offset: int, size: int) -> int:
        assert not self._closed, "a VCPU reads a device that is gone"
        return 0

    @entry
    def write(self, offset: int, size: int, value: int) -> None:
        assert not self._closed, "a VCPU writes a device that is gone"

    @entry
    def close(self) -> None:
        self._closed = True


def program(bus_class: type[Bus]) -> Program:
    def threads(s: Stage) -> None:
        bus = bus_class()
        nic = Locking(kit=s).make(Nic, "nic")
        bus.map(BASE, 0x1000, nic, "nic")

        def access() -> None:
            reader = bus.reader("vcpu0", lambda: None)
            for _ in range(2):
                if window := reader.refresh().find(BASE):
                    window.read(0, 4)
            reader.leave()

        def detach() -> None:
            bus.unmap(BASE)
            bus.retire(nic.close)

        s.spawn("vcpu0", access)
        s.spawn("monitor", detach)

    return threads


def check(bus_class: type[Bus]) -> str | None:
    return first_failure(program(bus_class))


EXHIBIT = Exhibit(
    "M10",
    "the monitor detached a NIC while a VCPU was on its way into it; about 4000 cycles to hit",
    "seeded scheduler",
    HastyBus,
    Bus,
    check,
    program,
)
