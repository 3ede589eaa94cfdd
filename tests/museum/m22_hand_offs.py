"""A VCPU and the I/O thread met on the big lock for each timer, and a guest was 6 to 8 times slower though hardly
anybody ever waited: each passed the lock, and its cache lines, to the other. Planted: one lock for all devices.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.museum.exhibit import Exhibit
from tests.museum.m05_blocked_neighbour import one_lock
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.devices.uart16550 import Uart16550
from vmm.locks import Locking
from vmm.lockstat import Meter
from vmm.testing.fakes import FakeClock, FakeLine, FakeWire

TIMERS = 10
SCR = 7


def check(policy: Callable[..., Locking]) -> str | None:
    """Lock statistics: hand-offs, counted also where nobody waits."""
    meter = Meter()
    locking = policy(kit=meter)
    clock = FakeClock()
    rtc = locking.make(GoldfishRtc, "rtc", wire=FakeWire(), clock=clock)
    uart = locking.make(Uart16550, "uart", wire=FakeWire(), clock=clock, line=FakeLine(), input_hz=3_686_400)
    with ThreadPoolExecutor(1, "vcpu") as vcpu, ThreadPoolExecutor(1, "io") as io:
        for _ in range(TIMERS):
            io.submit(rtc.alarm_due).result()
            vcpu.submit(uart.write, SCR, 1, 0).result()
    locks = meter.report()["locks"]
    contended = sum(lock["contended"] for lock in locks)
    assert not contended, "the threads were to take turns"
    passed = {lock["name"]: lock["handoffs"] for lock in locks if lock["handoffs"] > TIMERS}
    return (
        ", ".join(f"{name} went from hand to hand {n} times in {TIMERS} timers" for name, n in passed.items()) or None
    )


EXHIBIT = Exhibit(
    "M22",
    "a VCPU and the I/O thread handed the big lock to each other for every timer: 6 to 8 times slower (QEMU)",
    "lock statistics",
    one_lock,
    Locking,
    check,
)
