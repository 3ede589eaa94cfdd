"""Reset, pause and snapshots, with work in flight."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm.devices.virtio.blk import Kind, VirtioBlk
from vmm.devices.virtio.console import VirtioConsole
from vmm.devices.virtio.device import NEEDS_RESET, RING_EVENT_IDX
from vmm.devices.virtio.rng import VirtioRng
from vmm.errors import HostError, SnapshotError
from vmm.fabric.inflight import InFlight
from vmm.fabric.iothread import IoThread
from vmm.fabric.workers import Workers
from vmm.host.block import RawImage
from vmm.testing.fakes import FakeLine
from vmm.testing.virtio_driver import Driver, DriverQueue, VirtioBench

SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RawImage]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    disk = RawImage(path)
    disk.read_now = lambda buffers, offset: False  # type: ignore[method-assign]  # everything goes to workers
    yield disk
    disk.close()


@pytest.fixture
def bench() -> Iterator[VirtioBench]:
    with VirtioBench() as bench:
        yield bench


@pytest.fixture
def driver(bench: VirtioBench, disk: RawImage) -> Driver:
    return bench.make(VirtioBlk, disk=disk, workers=bench.workers)


def ask(queue: DriverQueue, sector: int = 0) -> Any:
    buffer = queue.add([struct.pack("<IIQ", Kind.IN, 0, sector)], [512, 1])
    queue.kick()
    queue.driver.bench.home.run()
    return buffer


@pytest.fixture
def while_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something happen on 'another thread' while the device waits for copies in flight."""

    def install(happens: Callable[[], object]) -> None:
        wait = InFlight.wait

        def wait_for_it(self: InFlight, timeout: float) -> bool:
            monkeypatch.undo()
            assert not wait(self, 0)
            happens()
            return wait(self, 0)

        monkeypatch.setattr(InFlight, "wait", wait_for_it)

    return install


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_waits_for_copies_in_flight_and_drops_their_completions(
    driver: Driver, while_waiting: Callable[[Callable[[], object]], None]
) -> None:
    (queue,) = driver.start()
    buffer = ask(queue)
    during = []

    def worker() -> None:
        during.append((driver.read("Status"), buffer.answer(1)))
        driver.bench.workers.run()
        during.append((driver.read("Status"), buffer.answer(2)))

    while_waiting(worker)
    driver.write("Status", 0)
    assert during == [(15, b"\0"), (15, b"\0\1")]  # the copy came to its end before the reset did
    assert driver.read("Status") == 0
    driver.bench.run()
    assert queue.collect() == []
    assert not driver.bench.wire.level


def test_while_a_reset_waits_the_device_takes_nothing_on(
    driver: Driver, while_waiting: Callable[[Callable[[], object]], None]
) -> None:
    (queue,) = driver.start()
    ask(queue)

    def another_hart() -> None:
        ask(queue)
        driver.write("Status", 0x0F)
        driver.write("QueueReady", 1)
        assert len(driver.bench.workers.waiting) == 1
        driver.bench.workers.run()

    while_waiting(another_hart)
    driver.write("Status", 0)
    assert driver.read("Status") == 0


def test_a_completion_of_before_the_reset_does_not_reach_the_queue_of_after(driver: Driver) -> None:
    (queue,) = driver.start()
    ask(queue)
    driver.bench.workers.run()  # done, but its completion is still on its way to the home thread
    (queue,) = driver.start()
    assert queue.collect() == []
    assert driver.device.statistics().chains == 0
    assert queue.call([struct.pack("<IIQ", Kind.IN, 0, 1)], [512, 1]).answer(2) == b"\0\1"


def test_a_reset_that_takes_too_long_says_so_and_can_be_tried_again(driver: Driver) -> None:
    (queue,) = driver.start()
    ask(queue)
    driver.device.reset_deadline = 0.0
    driver.write("Status", 0)
    assert driver.read("Status") & NEEDS_RESET
    now = driver.device.statistics()
    assert now.host_errors == 1
    assert "reset gave up after 0 s: <InFlight device: 1>" in now.last_error
    driver.set_status(1)
    driver.add_queue(0)
    assert driver.read("Status") & NEEDS_RESET
    driver.bench.workers.run()
    driver.write("Status", 0)
    assert driver.read("Status") == 0
    (queue,) = driver.start()
    ask(queue)
    driver.bench.run()
    assert len(queue.collect()) == 1


def test_stopping_a_queue_waits_too(driver: Driver, while_waiting: Callable[[Callable[[], object]], None]) -> None:
    (queue,) = driver.start()
    ask(queue)
    while_waiting(driver.bench.workers.run)
    driver.write("QueueReady", 0)
    driver.bench.run()
    assert queue.collect() == []
    assert driver.read("Status") == 15
    queue = driver.add_queue(0)
    ask(queue)
    driver.device.reset_deadline = 0.0
    driver.write("QueueReady", 0)
    assert driver.read("Status") & NEEDS_RESET
    driver.bench.run()


def test_the_machine_resets_a_device_as_its_driver_does(driver: Driver) -> None:
    (queue,) = driver.start()
    ask(queue)
    driver.bench.run()
    driver.device.reset()
    assert driver.read("Status") == 0
    assert not driver.bench.wire.level


def test_resets_race_with_work_and_the_device_survives(disk: RawImage) -> None:
    """Two harts at one disk, one of which resets it again and again, with real threads behind."""
    io, workers = IoThread("io"), Workers(3, "worker")
    bench = VirtioBench()
    bench.home, bench.workers = io, workers  # type: ignore[assignment]
    io.start()
    driver = bench.make(VirtioBlk, disk=disk, workers=workers)
    choose = random.Random(4)
    finished = threading.Event()
    rings = 0

    def other_hart() -> None:
        nonlocal rings
        while not finished.is_set():
            driver.slot.write(0x50, 4, 0)
            driver.slot.write(0x64, 4, driver.slot.read(0x60, 4))
            rings += 1

    hart = threading.Thread(target=other_hart)
    hart.start()
    tables = [bench.allocate(4096, 4096) for _ in range(2)]
    try:
        for _ in range(60):
            driver.negotiate(without=RING_EVENT_IDX * choose.randrange(2))
            bench._free = tables[0]
            queue = driver.add_queue(0, 32)
            driver.set_status(4)
            for at in range(choose.randrange(8)):
                queue.add_segments([(tables[1], 16)], [(tables[1] + 512 * (at % 4 + 1), 512), (tables[1] + 32, 1)])
                queue.kick()
    finally:
        finished.set()
        hart.join()
    driver.write("Status", 0)
    assert driver.read("Status") == 0
    assert rings
    workers.stop()
    driver.device.close()
    io.stop()
    assert bench.locking.checker is not None
    assert bench.locking.checker.reports == []
    assert driver.device.statistics().guest_errors == 0
    bench.ram.close()


# -- pause -------------------------------------------------------------------------------------------------------------


def test_a_quiet_device_has_handed_everything_back_and_takes_nothing_on(
    driver: Driver, while_waiting: Callable[[Callable[[], object]], None]
) -> None:
    (queue,) = driver.start()
    ask(queue)
    while_waiting(driver.bench.workers.run)
    driver.device.quiesce(1.0)
    assert len(queue.collect()) == 1  # without a turn of the home thread, which may be waiting for us
    later = ask(queue)
    driver.bench.run()
    assert queue.collect() == []
    driver.device.resume()
    driver.bench.run()
    assert queue.collect() == [(later.head, 513)]


def test_work_is_over_only_when_it_has_been_handed_back(bench: VirtioBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a snapshot could come between, and forget the chain."""
    line = FakeLine()
    console, rng = bench.make(VirtioConsole, clock=bench.clock, line=line), bench.make(VirtioRng, entropy=bytes)
    line.connect(console.device)
    receive, _ = console.start()
    (entropy,) = rng.start()
    receive.add([], [8])
    entropy.add([], [8])
    receive.publish()
    entropy.publish()
    handed_back = []
    end = InFlight.end

    def look_first(self: InFlight, count: int = 1) -> None:
        handed_back.append(len(receive.collect()) + len(entropy.collect()))
        end(self, count)

    monkeypatch.setattr(InFlight, "end", look_first)
    line.type(b"x")
    entropy.notify()
    bench.run()
    assert handed_back == [1, 1]


def test_a_device_that_does_not_come_to_rest_is_named(driver: Driver) -> None:
    (queue,) = driver.start()
    ask(queue)
    with pytest.raises(HostError, match="device did not come to rest"):
        driver.device.quiesce(0.0)
    driver.bench.run()


def test_a_reset_while_quiet_stays_quiet_until_resumed(driver: Driver) -> None:
    driver.device.quiesce(1.0)
    (queue,) = driver.start()
    ask(queue)
    assert driver.bench.workers.waiting == []
    driver.device.resume()
    driver.bench.run()
    assert len(queue.collect()) == 1


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_restored_device_goes_on_where_the_saved_one_was(disk: RawImage) -> None:
    with VirtioBench() as bench:
        line = FakeLine()
        driver = bench.make(VirtioConsole, clock=bench.clock, line=line)
        _, transmit = driver.start(size=4)
        for text in (b"a", b"b", b"c"):
            transmit.call([text])
        transmit.add([b"d"])
        transmit.publish()  # and the doorbell's ring is lost with the old machine
        saved = driver.device.save()
        twin = bench.make(VirtioConsole, clock=bench.clock, line=line)
        driver.write("Status", 0)
        assert not bench.wire.level
        twin.device.restore(saved)
        assert bench.wire.level  # the interrupt that was pending still is
        bench.run()
        assert line.sent == b"abcd"
        assert twin.read("Status") == 15
        assert twin.device.save()["queues"][1]["fields"]["next_used"] == 4
        assert len(transmit.collect()) == 1


def test_state_is_plain_data_that_nobody_else_holds(driver: Driver) -> None:
    driver.start()
    saved = driver.device.save()
    assert saved["kind"] == "virtio-blk"
    assert saved["fields"]["status"] == 15
    saved["fields"]["status"] = 0
    saved["queues"][0]["fields"]["size"] = 0
    assert driver.read("Status") == 15
    assert driver.device.save()["queues"][0]["fields"]["size"] == 256


def test_work_in_flight_is_not_saved(driver: Driver) -> None:
    (queue,) = driver.start()
    ask(queue)
    with pytest.raises(SnapshotError, match="under way"):
        driver.device.save()
    driver.bench.run()
    driver.device.save()


def damaged(saved: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {**saved, **changes}


def test_a_saved_state_that_cannot_be_is_refused_and_changes_nothing(bench: VirtioBench) -> None:
    driver = bench.make(VirtioRng, entropy=bytes)
    driver.start()
    good = driver.device.save()
    fields, (queue,) = good["fields"], good["queues"]

    def with_queue(**changes: object) -> dict[str, Any]:
        return damaged(good, queues=[damaged(queue, fields={**queue["fields"], **changes})])

    for bad in (
        damaged(good, kind="virtio-blk"),
        damaged(good, version=2),
        damaged(good, fields={**fields, "status": 4}),
        damaged(good, fields={**fields, "interrupt": 4}),
        damaged(good, fields={**fields, "driver_features": 1 << 50}),
        damaged(good, fields={**fields, "status": "15"}),
        damaged(good, queues=[]),
        damaged(good, queues=None),
        damaged(good, queues=[queue, queue]),
        with_queue(size=3),
        with_queue(size=32),
        with_queue(descriptors=0),
        with_queue(device=1 << 63),
        with_queue(next_avail=17),
        with_queue(next_used=65536),
    ):
        with pytest.raises(SnapshotError):
            driver.device.restore(bad)
        assert driver.device.save() == good


def test_a_restored_reset_device_is_reset(bench: VirtioBench) -> None:
    driver = bench.make(VirtioRng, entropy=bytes)
    fresh = driver.device.save()
    (queue,) = driver.start()
    queue.call([], [4])
    driver.device.restore(fresh)
    assert driver.read("Status") == 0
    assert not bench.wire.level
    assert driver.read("QueueReady") == 0
