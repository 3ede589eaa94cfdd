"""The driver's side of virtio, for tests and benchmarks: registers of a virtio-mmio slot, rings in guest memory.

`VirtioBench` is a whole surrounding for one device in which nothing happens by itself: what the device hands to its
home thread or to workers waits until the test runs it. `Driver` behaves as Linux does; its queues let a test misbehave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from types import TracebackType
from typing import Any, Final, Self

from vmm.bql import Policy
from vmm.devices.virtio import mmio
from vmm.devices.virtio.device import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    RING_EVENT_IDX,
    RING_INDIRECT_DESC,
    VirtioDevice,
)
from vmm.devices.virtio.mmio import VirtioMmio
from vmm.devices.virtio.queue import INDIRECT, NEXT, WRITE
from vmm.errors import LockOrderError
from vmm.fabric.dma import Dma
from vmm.fabric.ram import Ram
from vmm.fabric.workers import Posts
from vmm.lockreport import joined
from vmm.locks import Locking
from vmm.testing.fakes import FakeClock, FakeIoThread, FakeWire

BASE: Final = 0x8000_0000
DESCRIPTOR: Final = Struct("<QIHH")

REGISTERS: Final = {row.name: row.offset for row in mmio.REGISTERS}


class FakeWorkers:
    """Workers whose calls wait until `run`, and may run in any order."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, function: Callable[..., Any], *arguments: Any, done: Callable[[Any], None], home: Posts) -> None:
        def work() -> None:
            outcome: Any
            try:
                outcome = function(*arguments)
            except BaseException as error:
                outcome = error
            home.call_soon(done, outcome)

        self.waiting.append(work)

    def run(self, at: int = 0) -> None:
        """Run one call; its completion is posted to its home."""
        self.waiting.pop(at)()


class VirtioBench:
    """Guest RAM, an interrupt wire, a home and workers, for one device under the checked locks."""

    def __init__(self, *, size: int = 1 << 20, policy: Policy = "device", checked: bool = True) -> None:
        self.ram = Ram(BASE, size, minimum=0)
        self._wire_up(policy, checked)
        self._devices: list[VirtioDevice] = []
        self._free = BASE + 0x1000

    def _wire_up(self, policy: Policy, checked: bool) -> None:
        """Make what devices are wired to. Another bench may have other kinds."""
        self.locking = Locking(policy, checked)
        self.dma = Dma(self.ram)
        self.wire = FakeWire()
        self.home = FakeIoThread(around=self.locking.outside_guest)
        self.clock = FakeClock(self.home)
        self.workers = FakeWorkers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        for device in self._devices:
            device.close()
        self.home.run()
        self.ram.close()
        if self.locking.checker and self.locking.checker.reports and e is None:
            raise LockOrderError(joined(self.locking.checker.reports))

    def make(self, cls: Callable[..., VirtioDevice], **wiring: Any) -> Driver:
        """Make a device on this bench, behind virtio-mmio, and the driver for it."""
        device = self.locking.make(cls, "device", dma=self.dma, wire=self.wire, home=self.home, **wiring)
        self._devices.append(device)
        return Driver(self, VirtioMmio(device))

    def allocate(self, length: int, alignment: int = 16) -> int:
        """Guest physical address of unused memory."""
        at = self._free + -self._free % alignment
        self._free = at + length
        self.ram.offset(at, length)
        return at

    def run(self) -> None:
        """Let the home thread and the workers come to rest."""
        self.home.run()
        while self.workers.waiting:
            self.workers.run()
            self.home.run()


class Driver:
    """Programs a device through its slot."""

    def __init__(self, bench: VirtioBench, slot: VirtioMmio) -> None:
        self.bench: Final = bench
        self.slot: Final = slot
        self.device: Any = slot.device
        self.features = 0
        self.queues: list[DriverQueue] = []

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> int:
        return self.slot.read(REGISTERS[name], 4)

    def write(self, name: str, value: int) -> None:
        self.slot.write(REGISTERS[name], 4, value)

    def config(self, offset: int, size: int) -> int:
        return self.slot.read(mmio.CONFIG + offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.slot.write(mmio.CONFIG + offset, size, value)

    def set_status(self, bits: int) -> int:
        """Add status bits; returns what the device made of them."""
        self.write("Status", self.read("Status") | bits)
        return self.read("Status")

    # -- initialization (3.1.1) ---------------------------------------------------------------------------------------

    def offered(self) -> int:
        features = 0
        for word in (0, 1):
            self.write("DeviceFeaturesSel", word)
            features |= self.read("DeviceFeatures") << 32 * word
        return features

    def negotiate(self, *, without: int = 0, extra: int = 0) -> int:
        """Reset and accept the features on offer, but for `without`. Returns the device's status."""
        self.write("Status", 0)
        self.queues.clear()
        self.set_status(ACKNOWLEDGE)
        self.set_status(DRIVER)
        self.features = self.offered() & ~without | extra
        for word in (0, 1):
            self.write("DriverFeaturesSel", word)
            self.write("DriverFeatures", self.features >> 32 * word & 0xFFFFFFFF)
        return self.set_status(FEATURES_OK)

    def add_queue(self, index: int, size: int | None = None) -> DriverQueue:
        """Give queue `index` its rings, of the largest size unless told."""
        self.write("QueueSel", index)
        queue = DriverQueue(self, index, size or self.read("QueueNumMax"))
        self.write("QueueNum", queue.size)
        for ring, address in (("Desc", queue.table), ("Driver", queue.avail), ("Device", queue.used)):
            self.write(f"Queue{ring}Low", address & 0xFFFFFFFF)
            self.write(f"Queue{ring}High", address >> 32)
        self.write("QueueReady", 1)
        self.queues.append(queue)
        return queue

    def start(self, *, size: int | None = None, without: int = 0) -> list[DriverQueue]:
        """All of it: reset, features, every queue, DRIVER_OK."""
        self.negotiate(without=without)
        for index in range(len(self.device.queue_sizes)):
            self.add_queue(index, size)
        self.set_status(DRIVER_OK)
        self.bench.run()
        return self.queues

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def interrupt(self) -> int:
        """What Linux does when interrupted: read the causes and acknowledge them. 0 when the line was low."""
        if not self.bench.wire.level:
            return 0
        causes = self.read("InterruptStatus")
        self.write("InterruptACK", causes)
        return causes


@dataclass(slots=True)
class Buffer:
    """A chain that the driver has made available."""

    head: int
    readable: list[int]
    """Guest physical addresses."""
    writable: list[tuple[int, int]]
    """Guest physical addresses and lengths."""
    dma: Dma

    def answer(self, length: int | None = None) -> bytes:
        """What the device wrote, or the first `length` bytes of it."""
        return b"".join(self.dma.read(at, size) for at, size in self.writable)[:length]


class DriverQueue:
    """The driver's side of one split virtqueue."""

    def __init__(self, driver: Driver, index: int, size: int) -> None:
        self.driver: Final = driver
        self.dma: Final = driver.bench.dma
        self.index: Final = index
        self.size: Final = size
        allocate = driver.bench.allocate
        self.table: Final = allocate(16 * size, 16)
        self.avail: Final = allocate(6 + 2 * size, 2)
        self.used: Final = allocate(6 + 8 * size, 4)
        for ring, length in ((self.table, 16 * size), (self.avail, 6 + 2 * size), (self.used, 6 + 8 * size)):
            self.dma.write(ring, bytes(length))
        self.event_index: Final = bool(driver.features & RING_EVENT_IDX)
        self.indirect: Final = bool(driver.features & RING_INDIRECT_DESC)
        self.avail_index = 0
        self.seen = 0
        """Entries of the used ring that `collect` has returned."""
        self._kicked = 0
        self._free = deque(range(size))
        self._chains: dict[int, list[int]] = {}

    # -- behaving -----------------------------------------------------------------------------------------------------

    def add(self, readable: Sequence[bytes] = (), room: Sequence[int] = (), *, indirect: bool = False) -> Buffer:
        """Put a chain into the ring, without telling the device: buffers with content, then buffers with room."""
        allocate = self.driver.bench.allocate
        reads = [(allocate(len(data), 1), len(data)) for data in readable]
        for (address, _), data in zip(reads, readable, strict=True):
            self.dma.write(address, data)
        writes = [(allocate(length, 1), length) for length in room]
        head = self.add_segments(reads, writes, indirect=indirect)
        return Buffer(head, [address for address, _ in reads], writes, self.dma)

    def add_segments(
        self, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]], *, indirect: bool = False
    ) -> int:
        """The same with memory of the caller's. Returns the chain's head."""
        parts = [(at, length, 0) for at, length in readable] + [(at, length, WRITE) for at, length in writable]
        if indirect:
            table = self.driver.bench.allocate(16 * len(parts), 16)
            self._write_chain(table, parts, list(range(len(parts))))
            head = self._free.popleft()
            self._chains[head] = [head]
            self.put_descriptor(head, table, 16 * len(parts), INDIRECT, 0)
        else:
            slots = [self._free.popleft() for _ in parts]
            head = slots[0]
            self._chains[head] = slots
            self._write_chain(self.table, parts, slots)
        self.put_available(head)
        return head

    def _write_chain(self, table: int, parts: list[tuple[int, int, int]], slots: list[int]) -> None:
        for at, ((address, length, flags), slot) in enumerate(zip(parts, slots, strict=True)):
            more = at + 1 < len(parts)
            following = slots[at + 1] if more else 0
            self.dma.write(table + 16 * slot, DESCRIPTOR.pack(address, length, flags | NEXT * more, following))

    def put_available(self, head: int) -> None:
        self.dma.put_u16(self.avail + 4 + 2 * (self.avail_index % self.size), head)
        self.avail_index = (self.avail_index + 1) & 0xFFFF

    def publish(self) -> bool:
        """Publish avail.idx. True: the device wants to be notified."""
        old, self._kicked = self._kicked, self.avail_index
        self.dma.put_u16(self.avail + 2, self.avail_index)
        self.dma.fence()
        if not self.event_index:
            return not self.dma.u16(self.used) & 1
        event = self.dma.u16(self.used + 4 + 8 * self.size)
        return (self.avail_index - event - 1) & 0xFFFF < (self.avail_index - old) & 0xFFFF

    def notify(self) -> None:
        self.driver.write("QueueNotify", self.index)

    def kick(self) -> bool:
        """Publish, and notify if the device wants that."""
        if wanted := self.publish():
            self.notify()
        return wanted

    def collect(self) -> list[tuple[int, int]]:
        """New entries of the used ring as (head, bytes written); their descriptors are free again."""
        entries = []
        index = self.dma.u16(self.used + 2)
        while self.seen != index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            head = self.dma.u32(at)
            entries.append((head, self.dma.u32(at + 4)))
            self._free.extend(self._chains.pop(head, ()))
            self.seen = (self.seen + 1) & 0xFFFF
        return entries

    def call(self, readable: Sequence[bytes] = (), room: Sequence[int] = (), *, indirect: bool = False) -> Buffer:
        """Make a chain available, let everything run, and take it back."""
        buffer = self.add(readable, room, indirect=indirect)
        self.want_interrupt()
        self.kick()
        self.driver.bench.run()
        assert buffer.head in [head for head, _ in self.collect()]
        return buffer

    def want_interrupt(self, after: int = 0) -> None:
        """Ask for an interrupt when `after` more chains than those collected have been used, and the next."""
        if self.event_index:
            self.dma.put_u16(self.avail + 4 + 2 * self.size, self.seen + after & 0xFFFF)
        else:
            self.dma.put_u16(self.avail, 0)

    def want_no_interrupt(self) -> None:
        if self.event_index:
            self.dma.put_u16(self.avail + 4 + 2 * self.size, self.seen - 1 & 0xFFFF)
        else:
            self.dma.put_u16(self.avail, 1)

    def go_on_from(self, index: int) -> None:
        """Take over rings that have been used `index` times, with nothing outstanding."""
        self.avail_index = self.seen = self._kicked = index
        self.dma.put_u16(self.avail + 2, index)
        self.dma.put_u16(self.used + 2, index)

    # -- misbehaving --------------------------------------------------------------------------------------------------

    def put_descriptor(self, slot: int, address: int, length: int, flags: int, following: int) -> None:
        self.dma.write(self.table + 16 * slot, DESCRIPTOR.pack(address, length, flags, following))

    def set_avail_index(self, index: int) -> None:
        self.avail_index = index & 0xFFFF
        self.dma.put_u16(self.avail + 2, self.avail_index)
