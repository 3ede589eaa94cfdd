"""A disk (virtio 1.2, 5.2), on any `BlockBackend`.

Requests run on the queue's home thread as far as they need no waiting; the rest is read and written by workers. Data
goes straight between the host's page cache and guest memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final

from vmm.devices.virtio.device import HomeThread, VirtioDevice, VirtioState
from vmm.devices.virtio.queue import Chain, Segment
from vmm.errors import ConfigError, GuestError, HostError
from vmm.fabric.dma import Dma
from vmm.fabric.irq import Wire
from vmm.fabric.workers import Workers
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

#: Bytes that a shared home thread copies at once; a larger transfer would keep its other callbacks waiting.
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


_STATUS_BYTES: Final = tuple(bytes((status,)) for status in Status)


@dataclass(slots=True)
class BlkState(VirtioState):
    writeback: bool = True
    """Whether a write may complete before it is on the medium; in force when CONFIG_WCE is negotiated."""


@dataclass(slots=True)
class Request:
    """One request, cut from its chain."""

    head: int
    kind: int
    offset: int
    """Bytes from the start of the disk."""
    places: list[Segment]
    """Guest memory that holds the data, or has room for it."""
    data: list[memoryview]
    """Windows on `places`."""
    length: int
    """Bytes of `data`."""
    status_at: int
    epoch: int
    durable: bool
    """Whether a write completes only when it is on the medium."""
    status: Status = Status.IOERR
    written: int = 1
    """Bytes written to guest memory, the status among them."""
    error: HostError | None = None


class Medium:
    """A disk without a device around it: it cuts requests from chains and does them, with no lock and on any thread."""

    def __init__(self, dma: Dma, disk: BlockBackend, serial: bytes, own_thread: bool) -> None:
        """`own_thread`: nobody else suffers when a request takes its time, so only the medium itself is waited for."""
        self.disk: Final = disk
        self._dma = dma
        self._serial = serial.ljust(ID_BYTES, b"\0")
        self._largest_now = LARGEST if own_thread else LARGEST_NOW
        self._caches_writes = own_thread and disk.cached

    def request(self, chain: Chain, epoch: int, durable: bool) -> Request:
        """Cut a chain into header, data and status, wherever its buffers end (2.7.4.2). Raises GuestError.

        All of the request lies in RAM, so that doing it finds no more fault with the driver.
        """
        dma = self._dma
        header, out = _cut(chain.readable, _HEADER.size)
        head = b"".join([dma.read(at, size) for at, size in header])
        if len(head) < _HEADER.size or not chain.writable:
            raise GuestError("a disk request without room for its header and status")
        *into, (at, size) = chain.writable
        if size > 1:
            into.append((at, size - 1))
        status_at = at + size - 1
        dma.ram.offset(status_at, 1)
        kind, _, sector = _HEADER.unpack(head)
        places = into if kind in (Kind.IN, Kind.GET_ID) else out
        data = [dma.view(at, size) for at, size in places]
        return Request(chain.head, kind, sector * SECTOR, places, data, sum(map(len, data)), status_at, epoch, durable)

    def do(self, request: Request, *, wait: bool) -> bool:
        """Do it and write its status. False, when it would have to wait and may not: it is still to be done."""
        done = True
        try:
            match request.kind:
                case Kind.IN:
                    done = self._read(request, wait)
                case Kind.OUT:
                    done = self._write(request, wait)
                case Kind.FLUSH:
                    done = wait and self._flush(request)
                case Kind.DISCARD:
                    done = wait and self._discard(request)
                case Kind.WRITE_ZEROES:
                    done = wait and self._write_zeroes(request)
                case Kind.GET_ID:
                    done = self._get_id(request)
                case _:
                    request.status = Status.UNSUPP
        except HostError as error:
            request.error = error
        finally:
            if done:
                self._dma.write(request.status_at, _STATUS_BYTES[request.status])
        return done

    def _read(self, request: Request, wait: bool) -> bool:
        if not self._fits(request):
            return True
        if wait:
            self.disk.read(request.data, request.offset)
        elif request.length > self._largest_now or not self.disk.read_now(request.data, request.offset):
            return False
        for at, size in request.places:
            self._dma.written(at, size)
        request.written += request.length
        request.status = Status.OK
        return True

    def _write(self, request: Request, wait: bool) -> bool:
        if self.disk.readonly or not self._fits(request):
            return True
        if wait or (self._caches_writes and not request.durable):
            self.disk.write(request.data, request.offset, durable=request.durable)
        elif (
            request.durable
            or request.length > self._largest_now
            or not self.disk.write_now(request.data, request.offset)
        ):
            return False
        request.status = Status.OK
        return True

    def _flush(self, request: Request) -> bool:
        self.disk.flush()
        request.status = Status.OK
        return True

    def _discard(self, request: Request) -> bool:
        ranges = self._ranges(request, LARGEST_DISCARD, flags=0)
        if ranges is not None:
            for offset, length, _ in ranges:
                self.disk.discard(offset, length)
            request.status = Status.OK
        return True

    def _write_zeroes(self, request: Request) -> bool:
        ranges = self._ranges(request, LARGEST_ZEROES, flags=UNMAP)
        if ranges is not None:
            for offset, length, unmap in ranges:
                self.disk.write_zeroes(offset, length, unmap=bool(unmap))
            request.status = Status.OK
        return True

    def _get_id(self, request: Request) -> bool:
        left = self._serial
        for at, size in request.places:
            self._dma.write(at, left[:size])
            left = left[size:]
        request.written += ID_BYTES - len(left)
        request.status = Status.OK
        return True

    def _fits(self, request: Request) -> bool:
        """Whether a transfer is whole sectors of the disk (5.2.6.1)."""
        length = request.length
        return length % SECTOR == 0 and length <= LARGEST and request.offset + length <= self.disk.size

    def _ranges(self, request: Request, largest: int, *, flags: int) -> list[tuple[int, int, int]] | None:
        """The request's ranges as (offset, length, flags), bytes. None when one is not allowed, with the status set."""
        count, rest = divmod(request.length, _RANGE.size)
        if self.disk.readonly or rest or not 0 < count <= MOST_RANGES:
            return None
        ranges = [(s * SECTOR, n * SECTOR, f) for s, n, f in _RANGE.iter_unpack(b"".join(request.data))]
        if any(f & ~flags for _, _, f in ranges):
            request.status = Status.UNSUPP
            return None
        if any(n > largest * SECTOR or at + n > self.disk.size for at, n, _ in ranges):
            return None
        return [one for one in ranges if one[1]]


class VirtioBlk(VirtioDevice):
    """A disk with one queue.

    What the page cache can serve is served on `home`; the rest goes to `workers`. A `home` of the disk's own
    (`own_thread`) also writes to the page cache, where ext4 cannot promise not to wait, and waits for a lone request.

    Losers, in host CPU per 4 KiB request at depth 1, page cache warm: every request by a worker, 84 us; a shared home
    thread, 44 us to read but 87 us to write; against 42 and 44 us with a thread of its own (CPython 3.11, two cores).
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
        self._own_thread = own_thread
        # -- wiring
        self.medium: Final = Medium(dma, disk, serial.encode(), own_thread)
        self._workers = workers
        # Requests that have been done, on any thread, and not handed back yet.
        self._finished: deque[Request] = deque()

    @lockfree("takes the lock to take chains and to hand them back; works on them without it", home=True)
    def serve(self, index: int) -> None:
        with self._lock:
            epoch, durable = self._epochs[index], not self._writes_back()
            chains = self._take(index)
        if not chains:
            return
        blocked: list[Request] = []
        try:
            with self._in_flight.progress.serving():
                fault: GuestError | None = None
                try:
                    for chain in chains:
                        request = self.medium.request(chain, epoch, durable)
                        (self._finished if self.medium.do(request, wait=False) else blocked).append(request)
                except GuestError as error:
                    fault = error
                self.deliver()
                if fault is not None:
                    self.finish(index, epoch, (), fault)
        finally:
            self._in_flight.end(len(chains) - len(blocked))
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
            with self._in_flight.progress.serving():
                self.medium.do(request, wait=True)
        finally:
            self._finished.append(request)
            self._in_flight.end()

    @lockfree("passes on to `deliver`", home=True)
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
        disk = self.medium.disk
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


def _cut(segments: list[Segment], length: int) -> tuple[list[Segment], list[Segment]]:
    """The first `length` bytes of `segments`, and the others."""
    for at, (address, size) in enumerate(segments):
        if size > length:
            first, rest = segments[:at], segments[at + 1 :]
            return ([*first, (address, length)] if length else first), [(address + length, size - length), *rest]
        length -= size
    return segments, []
