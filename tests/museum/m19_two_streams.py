"""QEMU's issue 2412 was found only once two streams of input were fuzzed at a time. Planted: a UART that looks for a
received character in one locked step and takes it in another. One stream of accesses, however random, finds nothing.
"""

from __future__ import annotations

import random
from dataclasses import replace
from unittest.mock import patch

from tests.fuzz import cases, rigs
from tests.museum.exhibit import Exhibit, Program, Stage
from vmm.devices.uart16550 import LSR_DATA_READY, Uart16550
from vmm.locks import Locking, entry, lockfree
from vmm.testing.fakes import FakeClock, FakeLine, FakeWire

RBR, LSR = 0, 5
SEED = 1
CASES = 12


class LooksTwice(Uart16550):
    """A UART that looks whether there is a character, lets its lock go, and comes back to take it"""

    @lockfree("the mistake: two locked steps")
    def read(self, offset: int, size: int) -> int:
        if offset == RBR and size == 1:
            return self.taken() if super().read(LSR, 1) & LSR_DATA_READY else 0
        return super().read(offset, size)

    @entry
    def taken(self) -> int:
        character = self._state.received[0]
        super().read(RBR, 1)
        return character & 0xFF


def fuzz(uart: type[Uart16550], streams: int) -> str | None:
    """What the fuzz of devices says of the first case that fails, with both streams of each or with the first alone."""
    rig = type("Rig", (rigs.UartRig,), {"cls": uart})
    maker = cases.Maker("uart", random.Random(SEED), cases.corpus("uart"))
    with patch.dict(rigs.RIGS, {"uart": rig}):
        for count in range(CASES):
            case = maker.case()
            _, failure = cases.run(case if streams == 2 else replace(case, streams=(case.streams[0], ())))
            if failure:
                return f"case {count}: {failure.report.splitlines()[-1]}"
    return None


def check(uart: type[Uart16550]) -> str | None:
    return fuzz(uart, 2)


def program(uart: type[Uart16550]) -> Program:
    """The streams at their shortest: two harts after one character."""

    def threads(s: Stage) -> None:
        device = Locking(kit=s).make(
            uart, "uart", wire=FakeWire(), clock=FakeClock(), line=FakeLine(), input_hz=3_686_400
        )
        s.spawn("io", device.receive, b"x")
        s.spawn("vcpu0", device.read, RBR, 1)
        s.spawn("vcpu1", device.read, RBR, 1)

    return threads


EXHIBIT = Exhibit(
    "M19",
    "a race that only two streams of input at once could find (QEMU 2412)",
    "device fuzz, two streams",
    LooksTwice,
    Uart16550,
    check,
    program,
)
