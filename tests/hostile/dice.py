"""Random numbers of the kinds that break devices, from a seed."""

from __future__ import annotations

import random

from tests.assembler import RAM_BASE
from tests.hostile.scripted import SANDBOX, SANDBOX_BYTES, Line
from vmm.machine import virt
from vmm.machine.boot import ROM_BASE, ROM_SIZE
from vmm.machine.config import MIN_MEM
from vmm.machine.fdt import Window

MEM = MIN_MEM
RAM_END = RAM_BASE + MEM

WINDOWS = (
    Window("rom", ROM_BASE, ROM_SIZE),
    virt.FINISHER,
    virt.RTC,
    virt.CLINT,
    virt.PLIC,
    virt.UART,
    *virt.VIRTIO,
)

#: Edges of the address space, and places where nothing is.
HOLES = (
    0,
    8,
    ROM_BASE + ROM_SIZE,
    0x200_0000 - 8,
    0x201_0000,
    0x300_0000,
    0xC00_0000 - 8,
    0xC60_0000,
    0x1000_0100,
    0x1000_9000,
    0x3000_0000,
    0x4000_0000,
    0x5000_0000,
    RAM_BASE - 8,
    RAM_END,
    RAM_END + 0x1000,
    1 << 32,
    (1 << 34) - 8,
    1 << 55,
    (1 << 56) - 8,
    1 << 56,
    1 << 63,
    (1 << 64) - 8,
)

INTERESTING = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 63, 64, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000),
    *(0x7FFF_FFFF, 0x8000_0000 - 1, 0xFFFF_FFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)

SIZES = (1, 2, 4, 8)
_FATAL_TO_A_RUN = (0x5555, 0x3333, 0x7777)


class Dice(random.Random):
    def place(self, align: int = 1) -> int:
        """An address in the sandbox, more often near its ends."""
        offset = self.choice(
            [self.randrange(SANDBOX_BYTES), self.randrange(64), SANDBOX_BYTES - 1 - self.randrange(64)]
        )
        return SANDBOX + offset - offset % align

    def nowhere(self) -> int:
        """An address without memory, or in a device."""
        window = self.choice(WINDOWS)
        return self.choice(
            [
                self.choice(HOLES) + self.randrange(-8, 9),
                window.base + self.randrange(window.size),
                self.getrandbits(64),
            ]
        ) % (1 << 64)

    def value(self) -> int:
        """Nothing in it points into the memory of the scripted program, nor is the number of one of its pages."""
        match self.randrange(6):
            case 0:
                return self.getrandbits(64)
            case 1:
                return 1 << self.choice([bit for bit in range(64) if bit not in (19, 31)])
            case 2:
                return self.place(self.choice([1, 16, 4096]))
            case 3:
                return self.randrange(16)
            case _:
                return self.choice(INTERESTING)

    def register(self, window: Window) -> int:
        """An address in a window, more often where registers are, seldom past its end."""
        offset = self.choice(
            [
                4 * self.randrange(64),
                self.randrange(0x100),
                0x100 + self.randrange(64),
                self.randrange(window.size),
                window.size - self.randrange(1, 16),
                4 * self.randrange(0x440) if window.size > 0x1000 else 0,
                0x20_0000 + 0x1000 * self.randrange(64) + 4 * self.randrange(2),
            ]
        )
        return window.base + offset % (window.size + 8)

    def access(self) -> Line:
        """One load or store somewhere among the devices and around them."""
        size = self.choice(SIZES)
        address = self.register(self.choice(WINDOWS)) if self.randrange(8) else self.nowhere()
        if self.randrange(4):
            address -= address % size
        operation = self.choice([f"load{size}", f"store{size}", f"store{size}"])
        if not self.randrange(32):
            operation = self.choice(["amo4", "amo8", "reserve4", "reserve8", "zero", "float"])
        return self.harmless(Line(operation, address, self.value()))

    def harmless(self, line: Line) -> Line:
        """The same, unless it would end or restart the run, or write into the program."""
        if virt.FINISHER.base - 8 < line.address < virt.FINISHER.end and line.value & 0xFFFF in _FATAL_TO_A_RUN:
            return line._replace(value=0x1234)
        if RAM_BASE - 64 <= line.address < SANDBOX:
            return line._replace(address=line.address + SANDBOX - RAM_BASE + 64)
        return line
