"""QEMU's HPET: a register access took the device's lock and then the big one, to raise the interrupt; its timer came
with the big lock and took the device's. Planted: an RTC that drives its wire under the big lock.
"""

from __future__ import annotations

from typing import Any

from tests.museum.exhibit import Exhibit, Program, Stage, lock_report
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.fabric.clock import Clock
from vmm.fabric.irq import Wire
from vmm.lockreport import Kind
from vmm.locks import Locking, lockfree
from vmm.testing.fakes import FakeClock, FakeWire

IRQ_ENABLED = 0x10


class HpetLike(GoldfishRtc):
    """An RTC that raises its interrupt under the big lock, and whose timer brings that lock along"""

    def __init__(self, name: str, locking: Locking, *, wire: Wire, clock: Clock) -> None:
        self._big = locking.big
        super().__init__(name, locking, wire=wire, clock=clock)

    @lockfree("the mistake: the outer lock is taken first here, and last in `_sync`")
    def alarm_due(self) -> None:
        with self._big:
            super().alarm_due()

    def _sync(self) -> None:
        with self._big:
            super()._sync()


def check(rtc: type[GoldfishRtc]) -> str | None:
    def run(locking: Locking) -> None:
        device = locking.make(rtc, "rtc", wire=FakeWire(), clock=FakeClock())
        device.alarm_due()
        device.write(IRQ_ENABLED, 4, 1)

    return lock_report(Kind.CYCLE, run)


def program(rtc: type[GoldfishRtc]) -> Program:
    def threads(s: Stage) -> None:
        wire: Any = FakeWire()
        device = Locking(kit=s).make(rtc, "rtc", wire=wire, clock=FakeClock())
        s.spawn("vcpu0", device.write, IRQ_ENABLED, 4, 1)
        s.spawn("io", device.alarm_due)

    return threads


EXHIBIT = Exhibit(
    "M1",
    "a register access and a timer took the device's lock and the big lock in opposite orders (QEMU, HPET)",
    "order graph",
    HpetLike,
    GoldfishRtc,
    check,
    program,
)
