"""QEMU's issue 2412 was found only once two streams of input were fuzzed at a time. Planted: a UART that looks for a
received character in one locked step and takes it in another. One stream of accesses, however random, finds nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.devices.uart16550 import LSR_DATA_READY, Uart16550
from vmm.locks import Locking, entry, lockfree
from vmm.testing.fakes import FakeClock, FakeLine, FakeWire

RBR, LSR, SCR = 0, 5, 7
ACCESSES = 6
SEEDS = 40
PAIR = 10
"""The first seed whose two streams can meet at the last character, for a search over schedules alone."""


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


def stream(uart: Uart16550, seed: int) -> Callable[[], None]:
    """Random accesses of one thread."""

    def run() -> None:
        dice = random.Random(seed)
        for _ in range(ACCESSES):
            step = dice.randrange(4)
            if step == 0:
                uart.receive(b"x")
            elif step == 1:
                uart.write(SCR, 1, dice.randrange(256))
            else:
                uart.read(dice.choice((RBR, LSR)), 1)

    return run


def streams(count: int, seed: int, uart_class: type[Uart16550]) -> Program:
    def threads(s: Stage) -> None:
        uart = Locking(kit=s).make(
            uart_class, "uart", wire=FakeWire(), clock=FakeClock(), line=FakeLine(), input_hz=3_686_400
        )
        for index in range(count):
            s.spawn(f"vcpu{index}", stream(uart, seed * count + index))

    return threads


def fuzz(uart_class: type[Uart16550], count: int) -> str | None:
    """What the first seed that fails says; its streams and its schedule both come from the seed."""
    for seed in range(SEEDS):
        if found := first_failure(streams(count, seed, uart_class), "random", seed, 2):
            return f"seed {seed}: {found}"
    return None


def check(uart_class: type[Uart16550]) -> str | None:
    return fuzz(uart_class, 2)


def program(uart_class: type[Uart16550]) -> Program:
    return streams(2, PAIR, uart_class)


EXHIBIT = Exhibit(
    "M19",
    "a race that only two streams of input at once could find (QEMU 2412)",
    "device fuzz, two streams",
    LooksTwice,
    Uart16550,
    check,
    program,
)
