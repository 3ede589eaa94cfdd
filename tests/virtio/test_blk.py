from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.devices.virtio import blk
from vmm.devices.virtio.blk import CONFIG_WCE, FLUSH, RO, Kind, VirtioBlk
from vmm.devices.virtio.device import NEEDS_RESET
from vmm.errors import ConfigError, HostError
from vmm.host.block import Buffers, RawImage, open_image
from vmm.testing.virtio_driver import BASE, Driver, DriverQueue, VirtioBench

SIZE = 1 << 20
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"


class Disk(RawImage):
    """An image that keeps an account of what it was asked, and does without waiting what `ready` names."""

    def __init__(self, path: Path, **options: bool) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.ready: tuple[str, ...] = ("read",)
        super().__init__(path, **options)
        self.asked.clear()

    def read_now(self, buffers: Buffers, offset: int) -> bool:
        if "read" not in self.ready:
            return False
        super().read(buffers, offset)
        return True

    def write_now(self, buffers: Buffers, offset: int) -> bool:
        if "write" not in self.ready:
            return False
        super().write(buffers, offset)
        return True

    def read(self, buffers: Buffers, offset: int) -> None:
        self.asked.append(("read", offset))
        super().read(buffers, offset)

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        self.asked.append(("write", offset, durable))
        super().write(buffers, offset, durable=durable)

    def flush(self) -> None:
        self.asked.append(("flush",))
        super().flush()

    def discard(self, offset: int, length: int) -> None:
        self.asked.append(("discard", offset, length))
        super().discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self.asked.append(("zeroes", offset, length, unmap))
        super().write_zeroes(offset, length, unmap=unmap)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def disk(path: Path) -> Iterator[Disk]:
    disk = Disk(path)
    yield disk
    disk.close()


@pytest.fixture
def bench() -> Iterator[VirtioBench]:
    with VirtioBench(size=2 << 20) as bench:
        yield bench


@pytest.fixture
def driver(bench: VirtioBench, disk: Disk) -> Driver:
    return bench.make(VirtioBlk, disk=disk, workers=bench.workers, serial="disk-0")


@pytest.fixture
def queue(driver: Driver) -> DriverQueue:
    (queue,) = driver.start()
    return queue


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def ranges(*of: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *one) for one in of)


def read(queue: DriverQueue, sector: int, length: int, **how: bool) -> bytes:
    answer = queue.call([header(Kind.IN, sector)], [length, 1], **how).answer()
    assert answer[-1:] == OK
    return answer[:-1]


def status(queue: DriverQueue, kind: int, sector: int = 0, *data: bytes, **how: bool) -> bytes:
    return queue.call([header(kind, sector), *data], [1], **how).answer()


# -- reading and writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ready", [("read", "write"), ()], ids=["at once", "by a worker"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_what_is_written_can_be_read_back_and_is_in_the_file(
    queue: DriverQueue, disk: Disk, path: Path, ready: tuple[str, ...], indirect: bool
) -> None:
    disk.ready = ready
    before = path.read_bytes()
    data = os.urandom(8192)
    assert read(queue, 5, 4096, indirect=indirect) == before[5 * 512 : 5 * 512 + 4096]
    assert status(queue, Kind.OUT, 7, data, indirect=indirect) == OK
    assert read(queue, 7, 8192, indirect=indirect) == data
    assert path.read_bytes() == before[: 7 * 512] + data + before[7 * 512 + 8192 :]
    assert bool(disk.asked) is not bool(ready)


def test_it_works_under_the_big_lock_too(disk: Disk, path: Path) -> None:
    with VirtioBench(size=2 << 20, policy="bql") as bench:
        (queue,) = bench.make(VirtioBlk, disk=disk, workers=bench.workers).start()
        data = os.urandom(4096)
        assert status(queue, Kind.OUT, 8, data) == OK
        assert read(queue, 8, 4096) == data
        assert status(queue, Kind.FLUSH) == OK


def test_a_request_may_be_cut_into_buffers_anywhere(queue: DriverQueue, path: Path) -> None:
    data = os.urandom(1024)
    whole = header(Kind.OUT, 3) + data
    buffer = queue.call([whole[:5], whole[5:20], whole[20:21], whole[21:]], [1])
    assert buffer.answer() == OK
    assert path.read_bytes()[3 * 512 : 5 * 512] == data
    whole = header(Kind.IN, 3)
    assert queue.call([whole[:15], whole[15:]], [1, 1000, 24]).answer() == data + OK
    assert queue.call([whole], [512 + 512 + 1]).answer() == data + OK


def test_the_used_length_counts_data_and_status(queue: DriverQueue) -> None:
    reading, writing = queue.add([header(Kind.IN)], [512, 1]), queue.add([header(Kind.OUT), bytes(512)], [1])
    queue.kick()
    queue.driver.bench.run()
    assert sorted(queue.collect()) == sorted([(reading.head, 513), (writing.head, 1)])


def test_a_request_without_data_succeeds(queue: DriverQueue) -> None:
    assert status(queue, Kind.IN) == OK
    assert status(queue, Kind.OUT) == OK


@pytest.mark.parametrize(
    ("sector", "length"), [(SIZE // 512, 512), (SIZE // 512 - 1, 1024), (1 << 63, 512), ((1 << 64) - 1, 512), (0, 100)]
)
def test_transfers_that_do_not_fit_the_disk_are_io_errors(queue: DriverQueue, sector: int, length: int) -> None:
    assert queue.call([header(Kind.IN, sector)], [length, 1]).answer()[-1:] == IOERR
    assert status(queue, Kind.OUT, sector, bytes(length)) == IOERR
    assert queue.driver.read("Status") & NEEDS_RESET == 0


def test_a_batch_is_one_interrupt_whoever_does_the_work(driver: Driver, queue: DriverQueue, disk: Disk) -> None:
    disk.ready = ("read",)
    buffers = [queue.add([header(Kind.IN, at)], [512, 1]) for at in range(8)]
    buffers += [queue.add([header(Kind.OUT, at), bytes(512)], [1]) for at in range(8)]
    queue.kick()
    driver.bench.home.run()
    assert len(queue.collect()) == 8
    assert len(driver.bench.workers.waiting) == 8
    assert driver.interrupt() == 1
    queue.want_interrupt()
    while driver.bench.workers.waiting:
        driver.bench.workers.run(-1)  # in another order than they came
    driver.bench.home.run()
    assert {head for head, _ in queue.collect()} == {buffer.head for buffer in buffers[8:]}
    assert driver.interrupt() == 1
    assert driver.device.statistics().interrupts == 2


def test_large_transfers_are_left_to_workers(driver: Driver, queue: DriverQueue, disk: Disk) -> None:
    disk.ready = ("read", "write")
    queue.add([header(Kind.IN)], [blk.LARGEST_NOW, 1])
    queue.add([header(Kind.IN)], [blk.LARGEST_NOW + 512, 1])
    queue.kick()
    driver.bench.home.run()
    assert len(driver.bench.workers.waiting) == 1
    driver.bench.run()
    assert len(queue.collect()) == 2


@pytest.fixture
def own(bench: VirtioBench, disk: Disk) -> DriverQueue:
    """The queue of a disk with a thread of its own."""
    (queue,) = bench.make(VirtioBlk, disk=disk, workers=bench.workers, own_thread=True).start()
    return queue


def left_to_workers(queue: DriverQueue, *requests: tuple[list[bytes], list[int]]) -> int:
    for readable, room in requests:
        queue.add(readable, room)
    queue.kick()
    queue.driver.bench.home.run()
    return len(queue.driver.bench.workers.waiting)


READ: tuple[list[bytes], list[int]] = ([header(Kind.IN)], [512, 1])
WRITE: tuple[list[bytes], list[int]] = ([header(Kind.OUT), bytes(512)], [1])


def test_a_thread_of_its_own_waits_for_a_lone_request_itself(own: DriverQueue, disk: Disk) -> None:
    disk.ready = ()
    assert left_to_workers(own, READ) == 0
    assert left_to_workers(own, READ, READ) == 2
    assert left_to_workers(own, READ) == 3
    own.driver.bench.run()
    assert len(own.collect()) == 4


def test_a_thread_of_its_own_writes_to_the_page_cache_itself(own: DriverQueue, disk: Disk) -> None:
    disk.ready = ()
    assert left_to_workers(own, WRITE, WRITE, WRITE) == 0
    assert len(own.collect()) == 3
    own.driver.set_config(32, 1, 0)
    assert left_to_workers(own, WRITE, WRITE) == 2
    own.driver.bench.run()


def test_a_thread_of_its_own_reads_any_length_from_the_page_cache(own: DriverQueue) -> None:
    assert left_to_workers(own, ([header(Kind.IN)], [4 * blk.LARGEST_NOW, 1])) == 0


def test_a_disk_past_the_page_cache_is_written_by_workers(bench: VirtioBench, disk: Disk) -> None:
    disk.ready = ()
    disk.cached = False
    (queue,) = bench.make(VirtioBlk, disk=disk, workers=bench.workers, own_thread=True).start()
    assert left_to_workers(queue, WRITE, WRITE) == 2
    bench.run()


def test_reading_is_reported_to_whoever_watches_the_pages(driver: Driver, queue: DriverQueue) -> None:
    ram, dma = driver.bench.ram, driver.bench.dma
    written: list[tuple[int, int]] = []
    ram.on_code_written = lambda at, length: written.append((at, length))
    where, end = BASE + 300 * 4096, BASE + 310 * 4096
    dma.write(end, header(Kind.IN))
    ram.page_flags[300] = ram.page_flags[310] = 1
    queue.add_segments([(end, 16)], [(where, 512), (end + 100, 1)])
    queue.kick()
    driver.bench.run()
    assert written == [(where, 512), (end + 100, 1)]


# -- other requests ----------------------------------------------------------------------------------------------------


def test_flush_reaches_the_disk(queue: DriverQueue, disk: Disk) -> None:
    assert status(queue, Kind.FLUSH) == OK
    assert disk.asked == [("flush",)]


def test_the_serial_number_is_padded_to_20_bytes(queue: DriverQueue) -> None:
    assert queue.call([header(Kind.GET_ID)], [20, 1]).answer() == b"disk-0".ljust(20, b"\0") + OK
    assert queue.call([header(Kind.GET_ID)], [4, 4, 1]).answer() == b"disk-0\0\0" + OK
    assert queue.call([header(Kind.GET_ID)], [30, 1]).answer() == b"disk-0".ljust(30, b"\0") + OK


def test_a_serial_number_that_is_too_long_is_refused(bench: VirtioBench, disk: Disk) -> None:
    with pytest.raises(ConfigError, match="20 bytes"):
        bench.make(VirtioBlk, disk=disk, workers=bench.workers, serial="x" * 21)


def test_discard_and_write_zeroes_reach_the_disk(queue: DriverQueue, disk: Disk, path: Path) -> None:
    before = path.read_bytes()
    assert status(queue, Kind.DISCARD, 0, ranges((8, 8, 0), (100, 0, 0), (24, 16, 0))) == OK
    assert status(queue, Kind.WRITE_ZEROES, 0, ranges((64, 8, 0), (80, 8, 1))) == OK
    assert disk.asked == [
        ("discard", 8 * 512, 4096),
        ("discard", 24 * 512, 8192),
        ("zeroes", 64 * 512, 4096, False),
        ("zeroes", 80 * 512, 4096, True),
    ]
    after = path.read_bytes()
    assert after[64 * 512 : 72 * 512] == after[80 * 512 : 88 * 512] == bytes(4096)
    assert after[88 * 512 :] == before[88 * 512 :]


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (Kind.DISCARD, ranges((0, 8, 1)), UNSUPP),
        (Kind.DISCARD, ranges((0, 8, 0), (8, 8, 2)), UNSUPP),
        (Kind.WRITE_ZEROES, ranges((0, 8, 2)), UNSUPP),
        (Kind.DISCARD, ranges((SIZE // 512, 1, 0)), IOERR),
        (Kind.DISCARD, ranges((0, 8, 0), (SIZE // 512 - 1, 2, 0)), IOERR),
        (Kind.WRITE_ZEROES, ranges((1 << 63, 1, 0)), IOERR),
        (Kind.DISCARD, ranges((0, blk.LARGEST_DISCARD + 1, 0)), IOERR),
        (Kind.WRITE_ZEROES, ranges((0, 0xFFFF_FFFF, 0)), IOERR),
        (Kind.DISCARD, b"", IOERR),
        (Kind.DISCARD, bytes(15), IOERR),
        (Kind.DISCARD, bytes(16 * 33), IOERR),
        (2, b"", UNSUPP),
        (10, bytes(24), UNSUPP),
        (0xFFFF_FFFF, b"", UNSUPP),
    ],
    ids=str,
)
def test_requests_that_cannot_be_are_answered_and_not_begun(
    queue: DriverQueue, disk: Disk, kind: int, data: bytes, expected: bytes
) -> None:
    assert status(queue, kind, 0, data) == expected
    assert disk.asked == []


def test_a_readonly_disk_offers_no_writing_and_refuses_it(bench: VirtioBench, path: Path) -> None:
    disk = Disk(path, readonly=True)
    driver = bench.make(VirtioBlk, disk=disk, workers=bench.workers)
    assert driver.offered() & RO
    assert not driver.offered() & (blk.DISCARD | blk.WRITE_ZEROES | CONFIG_WCE)
    (queue,) = driver.start()
    assert status(queue, Kind.OUT, 0, bytes(512)) == IOERR
    assert status(queue, Kind.DISCARD, 0, ranges((0, 8, 0))) == IOERR
    assert status(queue, Kind.WRITE_ZEROES, 0, ranges((0, 8, 0))) == IOERR
    assert disk.asked == []
    assert status(queue, Kind.FLUSH) == OK
    assert read(queue, 0, 512) == path.read_bytes()[:512]
    disk.close()


# -- configuration and cache -------------------------------------------------------------------------------------------


def test_the_configuration_describes_the_disk(driver: Driver, disk: Disk) -> None:
    disk.physical_block_size = 4096
    assert driver.config(0, 8) == SIZE // 512
    assert driver.config(8, 4) == 0
    assert driver.config(12, 4) == blk.QUEUE_SIZE - 2
    assert driver.config(20, 4) == 512
    assert (driver.config(24, 1), driver.config(25, 1), driver.config(26, 2), driver.config(28, 4)) == (3, 0, 8, 0)
    assert driver.config(34, 2) == 1
    assert [driver.config(at, 4) for at in (36, 40, 44)] == [blk.LARGEST_DISCARD, blk.MOST_RANGES, 8]
    assert [driver.config(at, 4) for at in (48, 52)] == [blk.LARGEST_ZEROES, blk.MOST_RANGES]
    assert driver.config(56, 4) == 1
    assert driver.config(60, 8) == 0


def durable(queue: DriverQueue, disk: Disk) -> bool:
    disk.ready = ("read", "write")
    disk.asked.clear()
    assert status(queue, Kind.OUT, 0, bytes(512)) == OK
    assert disk.asked in ([], [("write", 0, True)])
    return bool(disk.asked)


def test_the_driver_chooses_whether_writes_wait_for_the_medium(driver: Driver, queue: DriverQueue, disk: Disk) -> None:
    assert driver.config(32, 1) == 1
    assert not durable(queue, disk)
    driver.set_config(32, 1, 0)
    assert driver.config(32, 1) == 0
    assert durable(queue, disk)
    driver.set_config(32, 1, 1)
    assert not durable(queue, disk)
    driver.set_config(32, 2, 0)
    driver.set_config(0, 8, 0)
    assert driver.config(32, 1) == 1
    assert driver.config(0, 8) == SIZE // 512


@pytest.mark.parametrize(
    ("without", "writes_back"), [(0, True), (FLUSH, False), (CONFIG_WCE, True), (FLUSH | CONFIG_WCE, False)]
)
def test_a_driver_that_cannot_flush_gets_writes_that_need_no_flush(
    driver: Driver, disk: Disk, without: int, writes_back: bool
) -> None:
    (queue,) = driver.start(without=without)
    assert driver.config(32, 1) == writes_back
    assert durable(queue, disk) is not writes_back
    driver.set_config(32, 1, not writes_back)
    assert durable(queue, disk) is (not writes_back if without & CONFIG_WCE else writes_back)


# -- a host that fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "readable", "room"),
    [
        ("read_now", [header(Kind.IN)], [512, 1]),
        ("read", [header(Kind.IN)], [blk.LARGEST_NOW + 512, 1]),
        ("write", [header(Kind.OUT), bytes(512)], [1]),
        ("flush", [header(Kind.FLUSH)], [1]),
        ("discard", [header(Kind.DISCARD), ranges((0, 8, 0))], [1]),
        ("write_zeroes", [header(Kind.WRITE_ZEROES), ranges((0, 8, 0))], [1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failing_host_is_an_io_error_to_the_guest(
    driver: Driver,
    queue: DriverQueue,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    readable: list[bytes],
    room: list[int],
) -> None:
    def fail(self: Disk, *arguments: object, **options: object) -> None:
        raise HostError("disk.img: no space left")

    monkeypatch.setattr(Disk, method, fail)
    assert queue.call(readable, room).answer()[-1:] == IOERR
    now = driver.device.statistics()
    assert (now.host_errors, now.last_error) == (1, "disk.img: no space left")
    monkeypatch.undo()
    assert queue.call(readable, room).answer()[-1:] == OK


def test_a_defect_in_a_worker_is_reported_and_the_guest_goes_on(
    driver: Driver, queue: DriverQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Disk) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Disk, "flush", fail)
    buffer = queue.add([header(Kind.FLUSH)], [1])
    queue.kick()
    driver.bench.home.run()
    driver.bench.workers.run()
    with pytest.raises(ZeroDivisionError):
        driver.bench.home.run()
    assert queue.collect() == [(buffer.head, 1)]
    assert buffer.answer() == IOERR


# -- a driver that breaks the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readable", "room", "says"),
    [
        ([], [512], "header and status"),
        ([header(0)[:15]], [513], "header and status"),
        ([header(0)], [], "header and status"),
    ],
)
def test_a_chain_that_is_no_request_stops_the_device(
    driver: Driver, queue: DriverQueue, readable: list[bytes], room: list[int], says: str
) -> None:
    good = queue.add([header(Kind.IN)], [512, 1])
    queue.add(readable, room)
    queue.add([header(Kind.IN)], [512, 1])
    queue.kick()
    driver.bench.run()
    assert driver.read("Status") & NEEDS_RESET
    assert says in driver.device.statistics().last_error
    assert queue.collect() == [(good.head, 513)]
    driver.write("Status", 0)
    assert driver.read("Status") == 0


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        ([(0x1000, 16)], [(BASE, 1)]),
        ([(BASE, 16)], [(0x1000, 512), (BASE, 1)]),
        ([(BASE, 16)], [(BASE, 512), (0x1000, 1)]),
        ([(BASE, 16)], [(BASE + (2 << 20) - 512, 513)]),
        ([(BASE, 16), ((1 << 64) - 512, 512)], [(BASE, 1)]),
    ],
    ids=str,
)
def test_buffers_outside_ram_stop_the_device_before_anything_is_done(
    driver: Driver,
    queue: DriverQueue,
    disk: Disk,
    readable: list[tuple[int, int]],
    writable: list[tuple[int, int]],
) -> None:
    driver.bench.dma.write(BASE, header(Kind.OUT if len(readable) > 1 else Kind.IN))
    queue.add_segments(readable, writable)
    queue.kick()
    driver.bench.run()
    assert driver.read("Status") & NEEDS_RESET
    assert "not all RAM" in driver.device.statistics().last_error
    assert disk.asked == []


def test_work_in_flight_when_the_driver_breaks_the_rules_is_still_handed_back(
    driver: Driver, queue: DriverQueue, disk: Disk
) -> None:
    slow = queue.add([header(Kind.FLUSH)], [1])
    queue.kick()
    driver.bench.home.run()
    queue.add([b"short"], [1])
    queue.kick()
    driver.bench.home.run()
    assert driver.read("Status") & NEEDS_RESET
    driver.bench.run()
    assert queue.collect() == [(slow.head, 1)]


def test_a_transfer_larger_than_any_is_an_io_error(disk: Disk) -> None:
    """Descriptors may name the same memory again and again: 250 times 16 MiB here."""
    disk.size = 1 << 40
    with VirtioBench(size=16 << 20) as bench:
        (queue,) = bench.make(VirtioBlk, disk=disk, workers=bench.workers).start()
        status_at = bench.allocate(1)
        bench.dma.write(BASE, header(Kind.IN))
        queue.add_segments([(BASE, 16)], [(BASE, 16 << 20)] * 250 + [(status_at, 1)])
        queue.kick()
        bench.run()
        assert len(queue.collect()) == 1
        assert bench.dma.read(status_at, 1) == IOERR
        assert disk.asked == []


def test_discards_show_in_the_file_of_an_image_opened_by_name(bench: VirtioBench, path: Path) -> None:
    disk = open_image(path)
    driver = bench.make(VirtioBlk, disk=disk, workers=bench.workers)
    (queue,) = driver.start()
    blocks = path.stat().st_blocks
    assert status(queue, Kind.DISCARD, 0, ranges((0, SIZE // 512, 0))) == OK
    assert path.stat().st_blocks < blocks
    disk.close()
