"""Split virtqueues (virtio 1.2, 2.7), the device's side: event index, indirect descriptors, no trust in the driver.

The three rings lie in guest RAM, where the driver may change them at any time. Each descriptor is copied once and
judged by the copy. What the specification forbids raises GuestError; the queue is of no use then until a reset.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from vmm.errors import GuestError
from vmm.fabric.dma import Dma
from vmm.state import DeviceState

# -- descriptor flags (2.7.5), and the ring flag of 2.7.7
NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
NO_INTERRUPT: Final = 1

#: Buffers in one chain: what one preadv() takes (IOV_MAX). Linux makes indirect chains longer than the queue, which
#: 2.7.5.3.1 forbids.
LONGEST_CHAIN: Final = 1024

#: Bytes in one chain (2.7.5.2).
LARGEST_CHAIN: Final = 1 << 32

_DESCRIPTOR: Final = Struct("<QIHH")
_USED_ELEMENT: Final = Struct("<II")

Segment = tuple[int, int]
"""Guest physical address and length, bytes."""


@dataclass(slots=True)
class QueueState(DeviceState):
    """All of a queue that a guest can observe, or that must survive a snapshot. The defaults are the reset values."""

    size: int = 0
    ready: bool = False
    descriptors: int = 0
    """Guest physical address of the descriptor table."""
    driver: int = 0
    """Of the available ring."""
    device: int = 0
    """Of the used ring."""
    next_avail: int = 0
    """Entries taken from the available ring, modulo 65536."""
    next_used: int = 0
    """Entries put into the used ring, modulo 65536."""

    def broken(self) -> str | None:
        if not 0 <= self.next_avail < 1 << 16 or not 0 <= self.next_used < 1 << 16:
            return f"ring indices {self.next_avail} and {self.next_used} are not 16-bit"
        if (self.next_avail - self.next_used) & 0xFFFF > self.size:
            return f"{self.next_avail - self.next_used & 0xFFFF} chains are out of a queue of {self.size}"
        return None


@dataclass(slots=True)
class Chain:
    """One buffer of the driver's: what it wrote for the device to read, and room for the device's answer."""

    head: int
    readable: list[Segment]
    writable: list[Segment]


class Virtqueue:
    """One queue of a device, under that device's lock.

    Invariants: `ready` implies that the size is a power of two and all three rings are aligned and in RAM;
    (next_avail - next_used) mod 65536, the chains the device owns, is at most the size.
    """

    def __init__(self, dma: Dma, largest: int, state: QueueState) -> None:
        """`largest` is the size that the device offers. A `state` that is ready raises GuestError if it cannot be."""
        self.largest: Final = largest
        self.state: Final = state
        self._dma = dma
        self._event_index = self._indirect = False
        # next_avail as last published in avail_event: until the driver passes it, there is nothing new to publish.
        self._published = -1
        # avail.idx as last read.
        self._seen = state.next_avail
        if state.ready:
            self._check()

    def negotiate(self, *, event_index: bool, indirect: bool) -> None:
        self._event_index = event_index
        self._indirect = indirect

    def enable(self) -> None:
        """Take the driver's rings into use. Raises GuestError when they cannot be."""
        self._check()
        self.state.ready = True

    def disable(self) -> None:
        self.state.ready = False

    def _check(self) -> None:
        s = self.state
        if not 0 < s.size <= self.largest or s.size & (s.size - 1):
            raise GuestError(f"queue size {s.size} is not a power of two up to {self.largest}")
        rings = (
            ("descriptor table", s.descriptors, 16 * s.size, 16),
            ("available ring", s.driver, 6 + 2 * s.size, 2),
            ("used ring", s.device, 6 + 8 * s.size, 4),
        )
        for name, address, length, alignment in rings:
            if address % alignment:
                raise GuestError(f"{name} at {address:#x} is not aligned to {alignment}")
            self._dma.ram.offset(address, length)

    # -- driver to device ---------------------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """Take the next available chain. None: there is none, and the driver will notify when it adds one."""
        s = self.state
        at = s.next_avail
        if at == self._seen and not self._look():
            return None
        if (at - s.next_used) & 0xFFFF >= s.size:
            raise GuestError(f"the driver made more than its queue's {s.size} buffers available")
        head = self._dma.u16(s.driver + 4 + 2 * (at & (s.size - 1)))
        s.next_avail = (at + 1) & 0xFFFF
        return self._chain(head)

    def _look(self) -> bool:
        """Read avail.idx anew; before finding it unchanged, have asked for a notification of the next change."""
        s, dma = self.state, self._dma
        if self._event_index and self._published != s.next_avail:
            self._published = s.next_avail
            dma.put_u16(s.device + 4 + 8 * s.size, s.next_avail)
            # Full fence: either the driver sees this avail_event after it wrote avail.idx, and notifies, or we see its
            # avail.idx below. Without it both may read the older value, and the queue sleeps for ever (2.7.10).
            dma.fence()
        # Acquire: the ring entries and descriptors that this index makes ours are read after it.
        self._seen = seen = dma.u16(s.driver + 2)
        if (seen - s.next_avail) & 0xFFFF > s.size:
            raise GuestError(f"avail.idx went from {s.next_avail} to {seen}, past a queue of {s.size}")
        return seen != s.next_avail

    def _chain(self, head: int) -> Chain:
        s, read = self.state, self._dma.read
        readable: list[Segment] = []
        writable: list[Segment] = []
        table: list[tuple[int, int, int, int]] | None = None
        entries = left = s.size
        index = head
        total = 0
        while left:
            left -= 1
            if index >= entries:
                raise GuestError(f"descriptor {index} of a table of {entries}")
            if table is not None:
                address, length, flags, index = table[index]
            else:
                address, length, flags, index = _DESCRIPTOR.unpack(read(s.descriptors + 16 * index, 16))
            if flags & INDIRECT:
                # 2.7.5.3.1: never inside an indirect table, never with NEXT.
                if table is not None or flags & NEXT or not self._indirect or not length or length % 16:
                    raise GuestError(f"indirect descriptor of {length} bytes, flags {flags}, where none may be")
                entries = left = min(length // 16, LONGEST_CHAIN)
                table = list(_DESCRIPTOR.iter_unpack(read(address, 16 * entries)))
                index = 0
                continue
            if length:
                total += length
                if flags & WRITE:
                    writable.append((address, length))
                elif writable:
                    raise GuestError("a buffer to read comes after one to write")
                else:
                    readable.append((address, length))
            if not flags & NEXT:
                if total > LARGEST_CHAIN:
                    raise GuestError(f"a chain of {total} bytes")
                return Chain(head, readable, writable)
        raise GuestError(f"the chain from descriptor {head} is a loop, or longer than {entries}")

    # -- device to driver ---------------------------------------------------------------------------------------------

    def complete(self, done: Iterable[tuple[int, int]]) -> bool:
        """Hand back chains, as (head, bytes written), with one update of the index. True: interrupt the driver."""
        s, dma = self.state, self._dma
        old = s.next_used
        at = old
        for head, written in done:
            dma.write(s.device + 4 + 8 * (at & (s.size - 1)), _USED_ELEMENT.pack(head, written))
            at = (at + 1) & 0xFFFF
        if at == old:
            return False
        s.next_used = at
        # Release: whoever reads this index sees the elements, and the buffers' contents, that were written before it.
        dma.put_u16(s.device + 2, at)
        # Full fence: either the driver sees used.idx after it wrote used_event (or cleared its flag), or we see that
        # write below; otherwise it might wait for an interrupt that nobody sends (2.7.7.2, 2.7.8).
        dma.fence()
        if not self._event_index:
            return not dma.u16(s.driver) & NO_INTERRUPT
        event = dma.u16(s.driver + 4 + 2 * s.size)
        return (at - event - 1) & 0xFFFF < (at - old) & 0xFFFF
