from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vmm.devices.virtio.balloon import VirtioBalloon
from vmm.devices.virtio.device import NEEDS_RESET, RING_EVENT_IDX, RING_INDIRECT_DESC
from vmm.devices.virtio.queue import INDIRECT, LONGEST_CHAIN, NEXT, WRITE
from vmm.devices.virtio.rng import VirtioRng
from vmm.testing.virtio_driver import BASE, DESCRIPTOR, Driver, DriverQueue, VirtioBench

EITHER_WAY = pytest.mark.parametrize("event_index", [True, False], ids=["event index", "flags"])


@pytest.fixture
def bench() -> Iterator[VirtioBench]:
    with VirtioBench() as bench:
        yield bench


@pytest.fixture
def driver(bench: VirtioBench) -> Driver:
    return bench.make(VirtioRng, entropy=lambda count: b"r" * count)


def fill(queue: DriverQueue, times: int) -> None:
    for _ in range(times):
        assert queue.call([], [1]).answer() == b"r"


# -- data --------------------------------------------------------------------------------------------------------------


@EITHER_WAY
def test_a_chain_comes_back_with_what_was_written(driver: Driver, event_index: bool) -> None:
    (queue,) = driver.start(without=0 if event_index else RING_EVENT_IDX)
    buffer = queue.add([], [3, 5])
    queue.kick()
    driver.bench.run()
    assert queue.collect() == [(buffer.head, 8)]
    assert buffer.answer() == b"r" * 8


def test_an_indirect_chain_works_as_a_direct_one(driver: Driver) -> None:
    (queue,) = driver.start()
    assert queue.call([], [3, 5, 7], indirect=True).answer() == b"r" * 15


def test_an_indirect_chain_may_be_longer_than_the_queue(driver: Driver) -> None:
    (queue,) = driver.start(size=2)
    assert queue.call([], [1] * 100, indirect=True).answer() == b"r" * 100


def test_a_chain_may_end_in_an_indirect_descriptor(driver: Driver) -> None:
    (queue,) = driver.start()
    allocate, dma = driver.bench.allocate, driver.bench.dma
    table, one, two = allocate(16), allocate(4), allocate(4)
    dma.write(table, DESCRIPTOR.pack(two, 4, WRITE, 0))
    queue.put_descriptor(0, one, 4, WRITE | NEXT, 1)
    queue.put_descriptor(1, table, 16, INDIRECT, 0)
    queue.put_available(0)
    queue.kick()
    driver.bench.run()
    assert dma.read(one, 4) + dma.read(two, 4) == b"r" * 8


def test_entries_of_an_indirect_table_that_are_not_linked_are_ignored(driver: Driver) -> None:
    (queue,) = driver.start()
    allocate, dma = driver.bench.allocate, driver.bench.dma
    table, room = allocate(64), allocate(4)
    dma.write(table, DESCRIPTOR.pack(room, 4, WRITE, 0) + b"\xff" * 48)
    queue.put_descriptor(0, table, 64, INDIRECT, 0)
    queue.put_available(0)
    queue.kick()
    driver.bench.run()
    assert dma.read(room, 4) == b"r" * 4


def test_buffers_without_length_are_passed_over(driver: Driver) -> None:
    (queue,) = driver.start()
    room = driver.bench.allocate(4)
    queue.add_segments([(0, 0)], [(0, 0), (room, 4), (0, 0)])
    queue.kick()
    driver.bench.run()
    assert driver.bench.dma.read(room, 4) == b"r" * 4


def test_every_buffer_available_is_handled_by_one_notification(driver: Driver) -> None:
    (queue,) = driver.start()
    buffers = [queue.add([], [1]) for _ in range(queue.size)]
    queue.want_interrupt()
    queue.kick()
    driver.bench.run()
    assert queue.collect() == [(buffer.head, 1) for buffer in buffers]
    assert driver.bench.wire.changes == [True]
    assert driver.device.statistics().interrupts == 1


def test_buffers_added_before_the_driver_is_ready_are_not_forgotten(driver: Driver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    buffer = queue.add([], [4])
    queue.kick()
    driver.bench.run()
    assert queue.collect() == []
    driver.set_status(4)
    driver.bench.run()
    assert queue.collect() == [(buffer.head, 4)]


# -- notifications to the device ---------------------------------------------------------------------------------------


def test_the_device_asks_to_be_notified_once_it_has_seen_everything(driver: Driver) -> None:
    (queue,) = driver.start()
    queue.add([], [1])
    assert queue.publish()
    queue.notify()
    queue.add([], [1])
    assert not queue.publish()  # it was told of the first and has not looked yet
    driver.bench.run()
    assert len(queue.collect()) == 2
    queue.add([], [1])
    assert queue.publish()


def test_a_buffer_added_while_the_device_goes_to_sleep_is_seen(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window between reading avail.idx and publishing avail_event, entered by a driver that sees the old event."""
    (queue,) = driver.start()
    queue.add([], [1])
    queue.kick()
    fence, late = driver.bench.dma.fence, []

    def add_another() -> None:
        if not late:
            late.append(queue.add([], [1]))
            queue.set_avail_index(queue.avail_index)
        fence()

    dma = type(driver.bench.dma)
    monkeypatch.setattr(dma, "fence", property(lambda self: add_another))
    driver.bench.run()
    monkeypatch.undo()
    assert [head for head, _ in queue.collect()][-1] == late[0].head


# -- interrupts to the driver ------------------------------------------------------------------------------------------


def test_without_event_index_the_flag_alone_decides_on_interrupts(driver: Driver) -> None:
    (queue,) = driver.start(without=RING_EVENT_IDX)
    queue.want_no_interrupt()
    queue.add([], [1])
    queue.kick()
    driver.bench.run()
    assert len(queue.collect()) == 1
    assert driver.interrupt() == 0
    fill(queue, 1)
    assert driver.interrupt() == 1


def test_an_interrupt_comes_when_used_event_is_passed_and_not_before(driver: Driver) -> None:
    (queue,) = driver.start()
    queue.want_interrupt(after=2)
    for interrupts in (0, 0, 1, 0):
        queue.add([], [1])
        queue.kick()
        driver.bench.run()
        assert driver.interrupt() == interrupts
    assert driver.device.statistics().suppressed == 3


def test_a_batch_that_jumps_over_used_event_interrupts_once(driver: Driver) -> None:
    (queue,) = driver.start()
    queue.want_interrupt(after=2)
    for _ in range(5):
        queue.add([], [1])
    queue.kick()
    driver.bench.run()
    assert driver.bench.wire.changes == [True]


def near_the_wrap(driver: Driver, without: int = 0, before: int = 20) -> DriverQueue:
    """A queue that has been used 65536 - `before` times."""
    (queue,) = driver.start(without=without)
    saved = driver.device.save()
    saved["queues"][0]["fields"] |= {"next_avail": 65536 - before, "next_used": 65536 - before}
    driver.device.restore(saved)
    queue.go_on_from(65536 - before)
    driver.bench.run()
    return queue


@EITHER_WAY
def test_indices_wrap_at_65536(driver: Driver, event_index: bool) -> None:
    queue = near_the_wrap(driver, without=0 if event_index else RING_EVENT_IDX)
    for _ in range(5):
        buffers = [queue.add([], [1]) for _ in range(13)]  # 13 does not divide 20: a batch lies across the wrap
        queue.want_interrupt(after=5)
        assert queue.kick()
        driver.bench.run()
        assert driver.interrupt() == 1
        assert queue.collect() == [(buffer.head, 1) for buffer in buffers]
    assert queue.seen == 5 * 13 - 20


def test_used_event_on_the_far_side_of_the_wrap_is_found(driver: Driver) -> None:
    queue = near_the_wrap(driver)
    queue.want_interrupt(after=21)  # used_event is 1, beyond the wrap
    seen = []
    for _ in range(24):
        queue.add([], [1])
        queue.kick()
        driver.bench.run()
        queue.collect()
        seen.append(driver.interrupt())
    assert seen == [0] * 21 + [1, 0, 0]


def test_avail_event_on_the_far_side_of_the_wrap_is_passed_only_there(driver: Driver) -> None:
    queue = near_the_wrap(driver, before=2)
    kicked = []
    for _ in range(3):
        queue.add([], [1])
        kicked.append(queue.publish())
    assert kicked == [True, False, False]
    queue.notify()
    driver.bench.run()
    assert len(queue.collect()) == 3
    queue.add([], [1])
    assert queue.publish()


# -- a driver that breaks the rules ------------------------------------------------------------------------------------


def broken(driver: Driver, says: str) -> None:
    """The device has stopped, has said so in its status, its interrupt and its statistics, and can be reset."""
    driver.bench.run()
    assert driver.read("Status") & NEEDS_RESET
    assert driver.read("InterruptStatus") & 2
    assert driver.bench.wire.level
    now = driver.device.statistics()
    assert now.guest_errors == 1
    assert says in now.last_error
    driver.queues[0].notify()
    driver.bench.run()
    assert driver.device.statistics() == now
    (queue,) = driver.start()
    assert driver.read("Status") == 15
    assert not driver.bench.wire.level
    fill(queue, 1)


OUTSIDE = 0x1000
END = BASE + (1 << 20)
AGAINST_THE_RULES = [
    ([(0, BASE, 1, WRITE | NEXT, 0)], "loop"),
    ([(0, BASE, 1, WRITE | NEXT, 1), (1, BASE, 1, WRITE | NEXT, 2), (2, BASE, 1, WRITE | NEXT, 1)], "loop"),
    ([(0, BASE, 1, WRITE | NEXT, 16)], "descriptor 16 of a table of 16"),
    ([(0, BASE, 1, WRITE | NEXT, 0xFFFF)], "descriptor 65535"),
    ([(0, BASE, 1, WRITE | NEXT, 1), (1, BASE, 1, 0, 0)], "to read comes after"),
    ([(0, OUTSIDE, 4, WRITE, 0)], "not all RAM"),
    ([(0, END - 1, 2, WRITE, 0)], "not all RAM"),
    ([(0, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, WRITE, 0)], "not all RAM"),
    ([(0, BASE, 0xFFFF_FFFF, WRITE | NEXT, 1), (1, BASE, 0xFFFF_FFFF, WRITE, 0)], "bytes"),
    ([(0, BASE, 16, INDIRECT | NEXT, 1)], "indirect descriptor"),
    ([(0, BASE, 0, INDIRECT, 0)], "indirect descriptor"),
    ([(0, BASE, 24, INDIRECT, 0)], "indirect descriptor"),
    ([(0, OUTSIDE, 16, INDIRECT, 0)], "not all RAM"),
    ([(0, END - 16, 32, INDIRECT, 0)], "not all RAM"),
]


@pytest.mark.parametrize(("descriptors", "says"), AGAINST_THE_RULES)
def test_a_chain_against_the_rules_stops_the_device(
    driver: Driver, descriptors: list[tuple[int, int, int, int, int]], says: str
) -> None:
    (queue,) = driver.start()
    for descriptor in descriptors:
        queue.put_descriptor(*descriptor)
    queue.put_available(0)
    queue.kick()
    broken(driver, says)


def indirect(driver: Driver, entries: list[tuple[int, int, int, int]], length: int | None = None) -> None:
    (queue,) = driver.start()
    table = driver.bench.allocate(16 * len(entries), 16)
    for at, entry in enumerate(entries):
        driver.bench.dma.write(table + 16 * at, DESCRIPTOR.pack(*entry))
    queue.put_descriptor(0, table, 16 * len(entries) if length is None else length, INDIRECT, 0)
    queue.put_available(0)
    queue.kick()


def test_an_indirect_table_inside_an_indirect_table_stops_the_device(driver: Driver) -> None:
    indirect(driver, [(BASE, 16, INDIRECT, 0)])
    broken(driver, "indirect")


def test_a_loop_in_an_indirect_table_stops_the_device(driver: Driver) -> None:
    indirect(driver, [(BASE, 1, WRITE | NEXT, 1), (BASE, 1, WRITE | NEXT, 0)])
    broken(driver, "loop")


def test_a_link_out_of_an_indirect_table_stops_the_device(driver: Driver) -> None:
    indirect(driver, [(BASE, 1, WRITE | NEXT, 7), (BASE, 1, WRITE, 0)])
    broken(driver, "descriptor 7 of a table of 2")


def test_an_indirect_table_without_the_feature_stops_the_device(driver: Driver) -> None:
    (queue,) = driver.start(without=RING_INDIRECT_DESC)
    queue.put_descriptor(0, BASE, 16, INDIRECT, 0)
    queue.put_available(0)
    queue.kick()
    broken(driver, "indirect")


def test_more_buffers_than_one_transfer_takes_stop_the_device() -> None:
    with VirtioBench(size=1 << 21) as bench:
        driver = bench.make(VirtioRng, entropy=os.urandom)
        indirect(driver, [(BASE, 1, WRITE | NEXT, at + 1) for at in range(LONGEST_CHAIN + 1)])
        bench.run()
        assert "longer than" in driver.device.statistics().last_error


def test_a_head_outside_the_table_stops_the_device(driver: Driver) -> None:
    (queue,) = driver.start()
    queue.put_available(16)
    queue.kick()
    broken(driver, "descriptor 16")


@pytest.mark.parametrize("jump", [17, 0x8000, 0xFFFF])
def test_an_available_index_that_jumps_stops_the_device(driver: Driver, jump: int) -> None:
    (queue,) = driver.start()
    fill(queue, 1)
    driver.interrupt()
    queue.set_avail_index(queue.avail_index + jump)
    queue.notify()
    broken(driver, "past a queue of 16")


def test_buffers_beyond_those_the_queue_holds_stop_the_device() -> None:
    """A driver that republishes heads while the device still owns them would otherwise grow the host's lists."""
    with VirtioBench() as bench:
        driver = bench.make(VirtioBalloon)
        _, _, stats = driver.start()
        stats.put_descriptor(0, BASE, 10, 0, 0)
        for _ in range(40):  # one chain stays with the device all the time, so 16 more are one too many
            for _ in range(16):
                stats.put_available(0)
            stats.set_avail_index(stats.avail_index)
            stats.notify()
            bench.run()
        assert driver.read("Status") & NEEDS_RESET
        assert "more than its queue's 16" in driver.device.statistics().last_error


@pytest.mark.parametrize("size", [0, 3, 17, 32, 0x8000, 0xFFFF_FFFF])
def test_a_queue_of_an_impossible_size_is_not_taken_into_use(driver: Driver, size: int) -> None:
    driver.negotiate()
    driver.write("QueueSel", 0)
    driver.write("QueueNum", size)
    driver.write("QueueReady", 1)
    assert driver.read("QueueReady") == 0
    assert driver.read("Status") & NEEDS_RESET
    assert "not a power of two" in driver.device.statistics().last_error


@pytest.mark.parametrize(
    ("ring", "address", "says"),
    [
        ("Desc", BASE + 8, "aligned to 16"),
        ("Driver", BASE + 1, "aligned to 2"),
        ("Device", BASE + 2, "aligned to 4"),
        ("Desc", OUTSIDE, "not all RAM"),
        ("Driver", END - 16, "not all RAM"),
        ("Device", END - 64, "not all RAM"),
        ("Device", 1 << 63, "not all RAM"),
    ],
)
def test_rings_that_are_not_in_ram_or_not_aligned_are_not_taken_into_use(
    driver: Driver, ring: str, address: int, says: str
) -> None:
    driver.negotiate()
    driver.write("QueueSel", 0)
    driver.write("QueueNum", 16)
    for name in ("Desc", "Driver", "Device"):
        at = address if name == ring else BASE
        driver.write(f"Queue{name}Low", at & 0xFFFF_FFFF)
        driver.write(f"Queue{name}High", at >> 32)
    driver.write("QueueReady", 1)
    assert driver.read("QueueReady") == 0
    assert says in driver.device.statistics().last_error


def test_rings_at_the_very_end_of_ram_work(driver: Driver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    driver.write("QueueReady", 0)
    used = END - (6 + 8 * 16) & ~3
    driver.write("QueueNum", 16)
    for name, at in (("Desc", queue.table), ("Driver", queue.avail), ("Device", used)):
        driver.write(f"Queue{name}Low", at & 0xFFFF_FFFF)
        driver.write(f"Queue{name}High", at >> 32)
    driver.write("QueueReady", 1)
    assert driver.read("QueueReady") == 1
    driver.set_status(4)
    queue.add([], [1])
    queue.publish()
    queue.notify()
    driver.bench.run()
    assert driver.bench.dma.u16(used + 2) == 1
