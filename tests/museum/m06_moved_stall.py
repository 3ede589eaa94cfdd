"""A doorbell that was answered by the main loop instead of the VCPU still cost the big lock, since the main loop took
it around everything: the stall had moved to where nobody counted. Planted: an I/O thread that runs its callbacks under
the big lock although devices have their own.
"""

from __future__ import annotations

import threading

from tests.museum.exhibit import Exhibit
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.fabric.doorbell import Doorbell
from vmm.fabric.iothread import IoThread
from vmm.locks import Locking
from vmm.lockstat import Meter
from vmm.testing.fakes import FakeClock, FakeWire

RINGS = 5


class BigLockLoop(IoThread):
    """An I/O thread that holds the big lock while it runs callbacks"""

    def hold(self, locking: Locking) -> None:
        self._around = locking.big


def check(loop: type[IoThread]) -> str | None:
    """Lock statistics: between the first ring and the last answer nobody takes the big lock."""
    meter = Meter()
    locking = Locking(kit=meter)
    device = locking.make(GoldfishRtc, "rtc", wire=FakeWire(), clock=FakeClock())
    answered = threading.Event()

    def answer() -> None:
        device.alarm_due()
        answered.set()

    io = loop("io", kit=meter)
    if isinstance(io, BigLockLoop):
        io.hold(locking)
    bell = Doorbell(io, answer, "queue")
    io.start()
    for _ in range(RINGS):
        bell.ring()
        answered.wait()
        answered.clear()
    io.call_soon(bell.close)
    io.stop()
    locks = {lock["name"]: lock for lock in meter.report()["locks"]}
    assert locks["rtc"]["acquired"] >= RINGS, "the statistics miss the device's own lock"
    taken = locks["bql"]["acquired"]
    return (
        f"{', '.join(locks['bql']['causes'])} took the big lock {taken} times for {RINGS} doorbells" if taken else None
    )


EXHIBIT = Exhibit(
    "M6",
    "a doorbell moved to the main loop, which still took the big lock (QEMU)",
    "lock statistics",
    BigLockLoop,
    IoThread,
    check,
)
