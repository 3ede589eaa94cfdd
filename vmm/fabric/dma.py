"""Guest memory as a device sees it: checked copies, windows for the host's own I/O, and words with an order.

Copies may tear and carry no order: they are for payload, and run without the device's lock. Words that the guest and a
device watch at the same time (ring indices, flags, event indices) go through `u16` ... `put_u64`, which are single
native accesses.
"""

from __future__ import annotations

from vmm.fabric.atomics import atomics
from vmm.fabric.ram import PAGE, DmaFault, Ram

__all__ = ["Dma", "DmaFault"]


class Dma:
    """Access to `ram` by guest physical address. Whatever is not RAM, or a word not aligned, raises DmaFault."""

    __slots__ = ("_atomics", "_base", "_host", "_load16", "_load32", "_load64", "_memory", "_size", "fence", "ram")

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self._base, self._host, self._size, self._memory = ram.base, ram.host, ram.size, ram.memory
        self._atomics = native = atomics()
        self._load16, self._load32, self._load64 = native.load16, native.load32, native.load64
        self.fence = native.fence
        """Sequentially consistent: put it between publishing an event index and re-reading the other side's index."""

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes at `gpa`."""
        offset = self.ram.offset(gpa, length)
        return self._memory[offset : offset + length]

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` (contiguous bytes) to `gpa`."""
        length = len(data)
        offset = self.ram.offset(gpa, length)
        self._memory[offset : offset + length] = data
        self.ram.written(gpa, length)

    def view(self, gpa: int, length: int) -> memoryview:
        """A window on guest memory for readinto(), preadv(), pwritev() and the like.

        Whoever writes through it says so afterwards: `written(gpa, length)`.
        """
        offset = self.ram.offset(gpa, length)
        return self.ram.view[offset : offset + length]

    def written(self, gpa: int, length: int) -> None:
        """Report that `length` bytes at `gpa` were written through a window."""
        self.ram.written(gpa, length)

    def u16(self, gpa: int) -> int:
        """The aligned 16-bit word at `gpa` (load acquire)."""
        return self._load16(self._word(gpa, 2))

    def u32(self, gpa: int) -> int:
        """The aligned 32-bit word at `gpa` (load acquire)."""
        return self._load32(self._word(gpa, 4))

    def u64(self, gpa: int) -> int:
        """The aligned 64-bit word at `gpa` (load acquire)."""
        return self._load64(self._word(gpa, 8))

    def put_u16(self, gpa: int, value: int) -> None:
        """Store the low 16 bits of `value` at `gpa`, aligned (store release)."""
        if self._atomics.publish16(self._word(gpa, 2), value, self._flag(gpa)):
            self.ram.flagged(gpa, 2)

    def put_u32(self, gpa: int, value: int) -> None:
        """Store the low 32 bits of `value` at `gpa`, aligned (store release)."""
        if self._atomics.publish32(self._word(gpa, 4), value, self._flag(gpa)):
            self.ram.flagged(gpa, 4)

    def put_u64(self, gpa: int, value: int) -> None:
        """Store the low 64 bits of `value` at `gpa`, aligned (store release)."""
        if self._atomics.publish64(self._word(gpa, 8), value, self._flag(gpa)):
            self.ram.flagged(gpa, 8)

    def _word(self, gpa: int, size: int) -> int:
        """Host address of an aligned word: native code trusts it."""
        offset = gpa - self._base
        if offset < 0 or offset > self._size - size or gpa & (size - 1):
            raise DmaFault(f"no aligned {size}-byte word of RAM at {gpa:#x}")
        return self._host + offset

    def _flag(self, gpa: int) -> int:
        return self.ram.page_flags_host + (gpa - self._base) // PAGE
