"""QEMU's issue 1987: after a snapshot was loaded the main loop slept too long, since the deadlines of its timers were
those of the machine before. Planted: an RTC that takes over its saved state and leaves its timer alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.museum.exhibit import Exhibit
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.locks import Locking, entry
from vmm.testing.fakes import FakeClock, FakeIoThread, FakeWire

ALARM_LOW, ALARM_HIGH, IRQ_ENABLED = 0x08, 0x0C, 0x10
DUE_NS = 1_000_000


class StaleDeadline(GoldfishRtc):
    """An RTC whose restore sets the state and not the timer"""

    @entry
    def restore(self, payload: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        super().restore(payload)
        self._timer.cancel()  # which is how the new machine's timer was


def check(rtc: type[GoldfishRtc]) -> str | None:
    """Snapshot test: an alarm that is armed when the state is saved goes off in the machine that restores it."""
    before, after = _made(rtc), _made(rtc)
    device, _, _ = before
    device.write(IRQ_ENABLED, 4, 1)
    device.write(ALARM_HIGH, 4, 0)
    device.write(ALARM_LOW, 4, DUE_NS)
    restored, clock, wire = after
    restored.restore(device.save())
    clock.advance(DUE_NS)
    return None if wire.level else f"the alarm of {DUE_NS} ns did not go off in the restored machine"


def _made(rtc: type[GoldfishRtc]) -> tuple[GoldfishRtc, FakeClock, FakeWire]:
    wire, clock = FakeWire(), FakeClock(FakeIoThread())
    return Locking(checked=True).make(rtc, "rtc", wire=wire, clock=clock), clock, wire


EXHIBIT = Exhibit(
    "M20",
    "timers kept the deadlines of before a snapshot was loaded (QEMU 1987)",
    "snapshot test",
    StaleDeadline,
    GoldfishRtc,
    check,
)
