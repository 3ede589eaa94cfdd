"""crosvm read a ring's index without an order between it and the entry it announces, and a machine with 96 Arm cores
hung. Planted: two queues, one that copies avail.idx as bytes, and one that takes used.idx out of memory by `struct`.
"""

from __future__ import annotations

import inspect
import textwrap
from struct import unpack_from
from typing import Any

from tests.fabric.unordered import unordered_accesses
from tests.museum.exhibit import Exhibit
from vmm.devices.virtio import queue
from vmm.devices.virtio.queue import QueueState, Virtqueue
from vmm.errors import GuestError
from vmm.fabric.dma import Dma
from vmm.fabric.ram import Ram
from vmm.testing.virtio_driver import BASE

SIZE = 4
TABLE, AVAIL, USED = BASE + 0x1000, BASE + 0x2000, BASE + 0x3000
INDICES = {AVAIL + 2: "avail.idx", USED + 2: "used.idx", AVAIL + 4 + 2 * SIZE: "used_event"}


class CopiedIndex(Virtqueue):
    """A queue that reads avail.idx as two bytes of payload"""

    def _look(self) -> bool:
        self._seen = int.from_bytes(self._dma.read(self.state.driver + 2, 2), "little")
        return self._seen != self.state.next_avail


class StructIndex(Virtqueue):
    """A queue that unpacks its indices from guest memory by struct"""

    def _look(self) -> bool:
        ram = self._dma.ram
        (self._seen,) = unpack_from("<H", ram.memory, ram.offset(self.state.driver + 2, 2))
        return bool(self._seen != self.state.next_avail)


class WatchedDma(Dma):
    """Guest memory that tells which copies touch a word that both sides watch."""

    def __init__(self, ram: Ram) -> None:
        super().__init__(ram)
        self.unordered: list[str] = []

    def read(self, gpa: int, length: int) -> bytes:
        self._copied(gpa, length)
        return super().read(gpa, length)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self._copied(gpa, len(data))
        super().write(gpa, data)

    def view(self, gpa: int, length: int) -> memoryview:
        self._copied(gpa, length)
        return super().view(gpa, length)

    def _copied(self, gpa: int, length: int) -> None:
        self.unordered += [name for at, name in INDICES.items() if gpa < at + 2 and at < gpa + length]


def check(ring: type[Virtqueue]) -> str | None:
    """Unit test: one chain through the ring, its words watched; and the lint over the queue's source."""
    source = inspect.getsource(queue) if ring is Virtqueue else textwrap.dedent(inspect.getsource(ring))
    if found := unordered_accesses(source):
        return f"{ring.__name__} uses {', '.join(sorted(found))} on guest memory"
    with Ram(BASE, 1 << 20, minimum=0) as ram:
        dma: Any = WatchedDma(ram)
        driver = Dma(ram)
        subject = ring(dma, SIZE, QueueState(size=SIZE, descriptors=TABLE, driver=AVAIL, device=USED))
        subject.negotiate(event_index=True, indirect=False)
        subject.enable()
        driver.write(TABLE, BASE.to_bytes(8, "little") + b"\x10\0\0\0" + b"\x02\0" + b"\0\0")
        driver.put_u16(AVAIL + 2, 1)
        try:
            chain = subject.pop()
        except GuestError as error:
            return str(error)
        assert chain is not None
        subject.complete([(chain.head, 0x10)])
        assert driver.u16(USED + 2) == 1
    return f"{ring.__name__} copies {dma.unordered[0]} without an order" if dma.unordered else None


EXHIBIT = Exhibit(
    "M15",
    "a ring's index was read without an order between it and what it announces (crosvm)",
    "unit test and lint",
    CopiedIndex,
    Virtqueue,
    check,
)
