"""Page tables in guest RAM (priv. spec 4.4, 4.5)."""

from __future__ import annotations

import struct

from vmm.fabric.atomics import atomics
from vmm.fabric.ram import Ram

V, R, W, X, U, G, A, D = (1 << n for n in range(8))


class PageTables:
    """Tables of `levels` levels (3: Sv39, 4: Sv48) in pages of RAM from `start` on."""

    def __init__(self, ram: Ram, start: int, levels: int = 3) -> None:
        self._ram = ram
        self._levels = levels
        self._next = start
        self.root = self._table()

    @property
    def satp(self) -> int:
        return (8 if self._levels == 3 else 9) << 60 | self.root >> 12

    def map(self, va: int, pa: int, bits: int, level: int = 0) -> int:
        """Map one page (`level` 1: 2 MiB, 2: 1 GiB); the address of its entry."""
        table = self.root
        for n in range(self._levels - 1, level, -1):
            at = table + 8 * (va >> 12 + 9 * n & 511)
            entry = self.entry(at)
            if not entry:
                entry = self._table() >> 2 | V
                self.set_entry(at, entry)
            table = entry >> 10 << 12
        at = table + 8 * (va >> 12 + 9 * level & 511)
        self.set_entry(at, pa >> 2 & ~0x3FF | bits)
        return at

    def entry(self, at: int) -> int:
        (entry,) = struct.unpack_from("<Q", self._ram.view, at - self._ram.base)
        return int(entry)

    def set_entry(self, at: int, entry: int) -> None:
        """In one store: a hart may be walking."""
        atomics().store64(self._ram.host + at - self._ram.base, entry)
        self._ram.written(at, 8)

    def _table(self) -> int:
        self._next += 4096
        return self._next - 4096
