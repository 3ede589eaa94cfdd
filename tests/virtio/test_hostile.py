"""Guests that do whatever they like: nothing may raise, the machine stays up, a reset makes the device good again."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmm.devices.virtio.balloon import VirtioBalloon
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.console import VirtioConsole
from vmm.devices.virtio.device import NEEDS_RESET
from vmm.devices.virtio.rng import VirtioRng
from vmm.host.block import RawImage
from vmm.testing.fakes import FakeLine
from vmm.testing.virtio_driver import BASE, DESCRIPTOR, Driver, VirtioBench

RAM_SIZE = 1 << 20
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

addresses = st.one_of(
    st.integers(BASE, BASE + 0x8000),
    st.integers(BASE + RAM_SIZE - 0x2000, BASE + RAM_SIZE + 16),
    st.sampled_from([0, 1, 0x1000_1000, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1]),
)
lengths = st.one_of(st.sampled_from([0, 1, 15, 16, 17, 20, 512, 513, 4096, 0xFFFF_FFFF]), st.integers(0, 0x4000))
descriptors = st.tuples(addresses, lengths, st.integers(0, 7), st.integers(0, 9))
words = st.one_of(st.integers(0, 17), st.integers(0, 0xFFFF_FFFF), st.sampled_from([0xFFFF, 0x8000, 0x1_0000]))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(bytes(64 * 1024))
    return path


def drivers(bench: VirtioBench, disk: RawImage) -> list[Driver]:
    line = FakeLine()
    console = bench.make(VirtioConsole, clock=bench.clock, line=line)
    line.connect(console.device)
    return [
        bench.make(VirtioBlk, disk=disk, workers=bench.workers),
        console,
        bench.make(VirtioRng, entropy=bytes),
        bench.make(VirtioBalloon),
    ]


def still_good(driver: Driver) -> None:
    """After a reset it does its work."""
    bench = driver.bench
    bench.run()
    errors = driver.device.statistics().guest_errors
    queues = driver.start()
    assert driver.read("Status") == 15
    match driver.device:
        case VirtioBlk():
            assert queues[0].call([struct.pack("<IIQ", 8, 0, 0)], [20, 1]).answer()[-1] == 0
        case VirtioConsole():
            queues[1].call([b"still here"])
        case VirtioRng():
            queues[0].call([], [8])
        case VirtioBalloon():
            queues[1].call([struct.pack("<I", BASE >> 12)])
    assert driver.device.statistics().guest_errors == errors


@given(
    which=st.integers(0, 3),
    table=st.lists(descriptors, min_size=1, max_size=8),
    indirect=st.lists(descriptors, min_size=1, max_size=8),
    heads=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    jump=st.one_of(st.just(None), st.integers(0, 0xFFFF)),
    header=st.binary(min_size=64, max_size=64),
    kind=st.sampled_from([0, 1, 4, 8, 11, 13, 99]),
    index=st.integers(0, 2),
)
@EXAMPLES
def test_hostile_rings_stop_at_most_their_own_device(
    image: Path,
    which: int,
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    jump: int | None,
    header: bytes,
    kind: int,
    index: int,
) -> None:
    disk = RawImage(image)
    with VirtioBench(size=RAM_SIZE) as bench:
        bench.allocate(0x8000)  # what the addresses above aim at
        driver = drivers(bench, disk)[which]
        queues = driver.start(size=8)
        queue = queues[index % len(queues)]
        bench.dma.write(BASE, struct.pack("<IIQ", kind, 0, 0) + header)
        at = bench.allocate(16 * len(indirect))
        bench.dma.write(at, b"".join(DESCRIPTOR.pack(*one) for one in indirect))
        for slot, (address, length, flags, following) in enumerate(table):
            if flags & 4 and length % 3:
                address, length = at, 16 * len(indirect)
            queue.put_descriptor(slot, address, length, flags, following)
        for head in heads:
            queue.put_available(head)
        queue.set_avail_index(queue.avail_index if jump is None else jump)
        queue.notify()
        bench.run()
        if isinstance(driver.device, VirtioConsole):
            driver.device.receive(header)
        bench.run()
        now = driver.device.statistics()
        assert bool(now.guest_errors) == bool(driver.read("Status") & NEEDS_RESET)
        assert bool(now.guest_errors) == bool(now.last_error and not now.host_errors)
        bench._free = BASE + 0x10000
        still_good(driver)
    disk.close()


@given(
    which=st.integers(0, 3),
    script=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 63).map(lambda word: 4 * word), st.just(4), words),
            st.tuples(st.just("write"), st.sampled_from([0x70, 0x44, 0x38, 0x30, 0x20, 0x24]), st.just(4), words),
            st.tuples(st.just("write"), st.sampled_from([0x80, 0x90, 0xA0]), st.just(4), addresses),
            st.tuples(st.just("write"), st.integers(0x100, 0x140), st.sampled_from([1, 2, 4, 8]), words),
            st.tuples(st.just("read"), st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), st.just(0)),
            st.tuples(st.just("run"), st.just(0), st.just(0), st.just(0)),
        ),
        max_size=60,
    ),
    started=st.booleans(),
)
@EXAMPLES
def test_any_access_to_any_register_leaves_a_device_that_can_be_reset(
    image: Path, which: int, script: list[tuple[str, int, int, int]], started: bool
) -> None:
    disk = RawImage(image)
    with VirtioBench(size=RAM_SIZE) as bench:
        driver = drivers(bench, disk)[which]
        if started:
            driver.start()
        for what, offset, size, value in script:
            if what == "write":
                driver.slot.write(offset, size, value & ((1 << 8 * size) - 1))
            elif what == "read":
                answer = driver.slot.read(offset, size)
                assert 0 <= answer < 1 << 8 * size
            else:
                bench.run()
        still_good(driver)
    disk.close()
