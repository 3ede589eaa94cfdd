"""Five block drivers and the cache timer of qcow2 were wrong once QEMU's big lock had left them: 16 to 19 patches in
2025. Planted: a UART whose receive timer touches the state without the device's lock, as that cache timer did.
"""

from __future__ import annotations

from tests.museum.exhibit import Exhibit, lock_report
from vmm.devices.uart16550 import Uart16550
from vmm.lockreport import Kind
from vmm.locks import Locking, lockfree
from vmm.testing.fakes import FakeClock, FakeLine, FakeWire

RBR, FCR = 0, 2


class UnlockedTimer(Uart16550):
    """A UART whose receive timer takes no lock"""

    @lockfree("the mistake: once the big lock did it")
    def receive_timeout(self) -> None:
        self._state.timed_out = True


def check(uart: type[Uart16550]) -> str | None:
    """Lockset: one thread is enough, at whatever moment."""

    def run(locking: Locking) -> None:
        device = locking.make(uart, "uart", wire=FakeWire(), clock=FakeClock(), line=FakeLine(), input_hz=3_686_400)
        device.write(FCR, 1, 1)
        device.receive(b"x")
        device.receive_timeout()
        device.read(RBR, 1)

    return lock_report(Kind.RACE, run)


EXHIBIT = Exhibit(
    "M13",
    "timers and block drivers touched their state without a lock after the big one had left (QEMU, qcow2)",
    "lockset",
    UnlockedTimer,
    Uart16550,
    check,
)
