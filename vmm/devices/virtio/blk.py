"""A disk (virtio 1.2, 5.2), on any `BlockBackend`.

Requests run on the queue's home thread as far as they need no waiting; the rest is read and written by workers. Data
goes straight between the host's page cache and guest memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final, Protocol

from vmm.devices.virtio.device import VirtioDevice, VirtioState
from vmm.devices.virtio.queue import Chain, Segment
from vmm.errors import ConfigError, GuestError, HostError
from vmm.fabric.dma import Dma
from vmm.fabric.doorbell import Home
from vmm.fabric.irq import Wire
from vmm.fabric.workers import Posts, Workers
from vmm.host.block import SECTOR, BlockBackend
from vmm.locks import Locking, entry, lockfree

# -- features (5.2.3)
SEG_MAX: Final = 1 << 2
RO: Final = 1 << 5
BLK_SIZE: Final = 1 << 6
FLUSH: Final = 1 << 9
TOPOLOGY: Final = 1 << 10
CONFIG_WCE: Final = 1 << 11
DISCARD: Final = 1 << 13
WRITE_ZEROES: Final = 1 << 14

QUEUE_SIZE: Final = 256
ID_BYTES: Final = 20
"""Of the serial number (5.2.6)."""
WRITEBACK: Final = 32
"""Offset of `writeback` in the configuration."""

#: Bytes that the home thread copies at once; a larger transfer would keep its other callbacks waiting.
LARGEST_NOW: Final = 128 * 1024
#: Bytes of one transfer: more than Linux moves in one preadv() is nothing a driver asks for.
LARGEST: Final = 0x7FFFF000

LARGEST_DISCARD: Final = 1 << 22
"""Sectors in one range."""
LARGEST_ZEROES: Final = 1 << 17
"""Sectors in one range: the host may have to write them."""
MOST_RANGES: Final = 32
UNMAP: Final = 1
"""Flag of a range: storage may be given back."""

_HEADER: Final = Struct("<IIQ")
_RANGE: Final = Struct("<QII")
_CONFIG: Final = Struct("<QII4xIBBHIBxHIIIIIBxxx")
"""struct virtio_blk_config up to write_zeroes_may_unmap, without the geometry (5.2.4)."""


class Kind(IntEnum):
    """Request types (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(IntEnum):
    OK = 0
    IOERR = 1
    UNSUPP = 2


class HomeThread(Home, Posts, Protocol):
    """The thread of a queue: `vmm.fabric.iothread.IoThread`, or a test's."""


@dataclass(slots=True)
class BlkState(VirtioState):
    writeback: bool = True
    """Whether a write may complete before it is on the medium; in force when CONFIG_WCE is negotiated."""


@dataclass(slots=True)
class Request:
    """One request, from its chain to its status byte. It runs without the device's lock, on whatever thread."""

    dma: Dma
    disk: BlockBackend
    serial: bytes
    durable: bool
    """Whether a write completes only when it is on the medium."""
    epoch: int
    head: int
    kind: int
    offset: int
    """Bytes from the start of the disk."""
    places: list[Segment]
    data: list[memoryview]
    """Windows on `places`."""
    length: int
    """Bytes of `data`."""
    status_at: int
    status: Status = Status.IOERR
    written: int = 1
    """Bytes written to guest memory, the status among them."""
    error: HostError | None = None

    def run(self, *, wait: bool) -> bool:
        """Do it and write its status. False, when it would have to wait and may not: it is still to be done."""
        done = True
        try:
            match self.kind:
                case Kind.IN:
                    done = self._read(wait)
                case Kind.OUT:
                    done = self._write(wait)
                case Kind.FLUSH:
                    done = wait and self._flush()
                case Kind.DISCARD:
                    done = wait and self._discard()
                case Kind.WRITE_ZEROES:
                    done = wait and self._write_zeroes()
                case Kind.GET_ID:
                    done = self._get_id()
                case _:
                    self.status = Status.UNSUPP
        except HostError as error:
            self.error = error
        finally:
            if done:
                self.dma.write(self.status_at, bytes((self.status,)))
        return done

    def _read(self, wait: bool) -> bool:
        if not self._fits():
            return True
        if wait:
            self.disk.read(self.data, self.offset)
        elif self.length > LARGEST_NOW or not self.disk.read_now(self.data, self.offset):
            return False
        for address, length in self.places:
            self.dma.written(address, length)
        self.written += self.length
        self.status = Status.OK
        return True

    def _write(self, wait: bool) -> bool:
        if self.disk.readonly or not self._fits():
            return True
        if wait:
            self.disk.write(self.data, self.offset, durable=self.durable)
        elif self.durable or self.length > LARGEST_NOW or not self.disk.write_now(self.data, self.offset):
            return False
        self.status = Status.OK
        return True

    def _flush(self) -> bool:
        self.disk.flush()
        self.status = Status.OK
        return True

    def _discard(self) -> bool:
        for offset, length, _ in self._ranges(LARGEST_DISCARD, flags=0):
            self.disk.discard(offset, length)
        return True

    def _write_zeroes(self) -> bool:
        for offset, length, unmap in self._ranges(LARGEST_ZEROES, flags=UNMAP):
            self.disk.write_zeroes(offset, length, unmap=bool(unmap))
        return True

    def _get_id(self) -> bool:
        left = self.serial
        for (address, length), _ in zip(self.places, self.data, strict=True):
            self.dma.write(address, left[:length])
            left = left[length:]
        self.written += len(self.serial) - len(left)
        self.status = Status.OK
        return True

    def _fits(self) -> bool:
        """Whether a transfer is whole sectors of the disk (5.2.6.1)."""
        return self.length % SECTOR == 0 and self.length <= LARGEST and self.offset + self.length <= self.disk.size

    def _ranges(self, largest: int, *, flags: int) -> list[tuple[int, int, int]]:
        """The request's ranges as (offset, length, flags), bytes; none when one is not allowed. Sets the status."""
        count, rest = divmod(self.length, _RANGE.size)
        if self.disk.readonly or rest or not 0 < count <= MOST_RANGES:
            return []
        ranges = [(s * SECTOR, n * SECTOR, f) for s, n, f in _RANGE.iter_unpack(b"".join(self.data))]
        if any(f & ~flags for _, _, f in ranges):
            self.status = Status.UNSUPP
            return []
        if any(n > largest * SECTOR or at + n > self.disk.size for at, n, _ in ranges):
            return []
        self.status = Status.OK
        return [one for one in ranges if one[1]]


class VirtioBlk(VirtioDevice):
    """A disk with one queue.

    Every hand-off to another thread costs 30 us and more, so what the page cache can serve is served on `home`. The
    rest goes to `workers`, except that a thread of the disk's own (`own_thread`) itself waits for a lone request.
    """

    kind: ClassVar = "virtio-blk"
    device_id: ClassVar = 2
    queue_sizes: ClassVar = (QUEUE_SIZE,)
    State: ClassVar = BlkState
    _state: BlkState

    def __init__(
        self,
        name: str,
        locking: Locking,
        *,
        dma: Dma,
        wire: Wire,
        home: HomeThread,
        workers: Workers,
        disk: BlockBackend,
        serial: str = "",
        own_thread: bool = False,
    ) -> None:
        """`serial` is what the guest sees as the disk's identity, 20 bytes at most. Raises ConfigError if longer."""
        if len(serial.encode()) > ID_BYTES:
            raise ConfigError(f"{name}: serial {serial!r} is longer than {ID_BYTES} bytes")
        features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY
        features |= RO if disk.readonly else CONFIG_WCE | DISCARD | WRITE_ZEROES
        super().__init__(name, locking, dma=dma, wire=wire, home=home, features=features)
        # -- fixed configuration
        self._serial = serial.encode().ljust(ID_BYTES, b"\0")
        self._own_thread = own_thread
        # -- wiring
        self._disk = disk
        self._home = home
        self._workers = workers
        # Requests that have been done, on any thread, and not handed back yet.
        self._finished: deque[Request] = deque()

    @lockfree("takes the lock to take chains and to hand them back; works on them without it")
    def serve(self, index: int) -> None:
        with self._lock:
            epoch, durable = self._epochs[index], not self._writes_back()
            chains = self._take(index)
        blocked = []
        fault: GuestError | None = None
        for at, chain in enumerate(chains):
            try:
                request = parse(self._dma, self._disk, self._serial, chain, durable=durable, epoch=epoch)
            except GuestError as error:
                fault = error
                self._in_flight.end(len(chains) - at)
                break
            if request.run(wait=False):
                self._finished.append(request)
                self._in_flight.end()
            else:
                blocked.append(request)
        if self._finished:
            self.deliver()
        if fault is not None:
            self.finish(index, epoch, (), fault)
        if self._own_thread and self._in_flight.count == len(blocked) == 1:
            self.work(blocked[0])
            self.deliver()
            return
        for request in blocked:
            self._workers.submit(self.work, request, done=self.worked, home=self._home)

    @lockfree("runs between take and hand-back, on any thread; touches the request and `_finished` only")
    def work(self, request: Request) -> None:
        """Do a request that may have to wait."""
        try:
            request.run(wait=True)
        finally:
            self._finished.append(request)
            self._in_flight.end()

    @lockfree("passes on to `deliver`")
    def worked(self, outcome: BaseException | None) -> None:
        """A worker is done with a request."""
        self.deliver()
        if outcome is not None:
            raise outcome

    @entry
    def deliver(self) -> None:
        """Hand back every finished request of this epoch, with one interrupt."""
        done: list[tuple[int, int]] = []
        while self._finished:
            request = self._finished.popleft()
            if request.error is not None:
                self._note_host(request.error)
            if request.epoch == self._epochs[0]:
                done.append((request.head, request.written))
        self._complete(0, done)

    def _config(self) -> bytes:
        disk = self._disk
        blocks = disk.physical_block_size // disk.block_size
        return _CONFIG.pack(
            disk.size // SECTOR,
            0,  # size_max
            QUEUE_SIZE - 2,  # seg_max: the header and the status take a descriptor each
            disk.block_size,
            blocks.bit_length() - 1,
            0,  # alignment_offset
            blocks,
            0,  # opt_io_size: none better than any other
            self._writes_back(),
            1,  # num_queues
            LARGEST_DISCARD,
            MOST_RANGES,
            disk.physical_block_size // SECTOR,
            LARGEST_ZEROES,
            MOST_RANGES,
            1,  # write_zeroes_may_unmap
        )

    def _configure(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (WRITEBACK, 1) and self._state.driver_features & CONFIG_WCE:
            self._state.writeback = bool(value)

    def _negotiated(self) -> None:
        # 5.2.5.2: a driver that cannot flush starts with a cache that needs no flushing.
        self._state.writeback = bool(self._state.driver_features & FLUSH)

    def _writes_back(self) -> bool:
        """5.2.6.2: the cache is write-back if the driver said so, or if it can flush."""
        accepted = self._state.driver_features
        return self._state.writeback if accepted & CONFIG_WCE else bool(accepted & FLUSH)


def parse(dma: Dma, disk: BlockBackend, serial: bytes, chain: Chain, *, durable: bool, epoch: int) -> Request:
    """Cut a chain into header, data and status, wherever its buffers end (2.7.4.2). Raises GuestError."""
    header, out = _cut(chain.readable, _HEADER.size)
    room = sum(length for _, length in chain.writable)
    if sum(length for _, length in header) < _HEADER.size or not room:
        raise GuestError("a disk request without room for its header and status")
    into, (status,) = _cut(chain.writable, room - 1)
    kind, _, sector = _HEADER.unpack(b"".join(dma.read(*part) for part in header))
    places = into if kind in (Kind.IN, Kind.GET_ID) else out
    dma.ram.offset(*status)
    return Request(
        dma=dma,
        disk=disk,
        serial=serial,
        durable=durable,
        epoch=epoch,
        head=chain.head,
        kind=kind,
        offset=sector * SECTOR,
        places=places,
        data=[dma.view(*part) for part in places],
        length=sum(length for _, length in places),
        status_at=status[0],
    )


def _cut(segments: list[Segment], length: int) -> tuple[list[Segment], list[Segment]]:
    """The first `length` bytes of `segments`, and the others."""
    first: list[Segment] = []
    for at, (address, size) in enumerate(segments):
        if size > length:
            if length:
                first.append((address, length))
            return first, [(address + length, size - length), *segments[at + 1 :]]
        first.append((address, size))
        length -= size
    return first, []
