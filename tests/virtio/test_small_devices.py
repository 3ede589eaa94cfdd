"""Entropy, console and balloon."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from vmm.devices.virtio.balloon import DEFLATE_ON_OOM, TAGS, VirtioBalloon
from vmm.devices.virtio.console import EMERG_WRITE, PATIENCE, SIZE, VirtioConsole
from vmm.devices.virtio.device import DRIVER_OK, NEEDS_RESET
from vmm.devices.virtio.rng import LARGEST, VirtioRng
from vmm.errors import ConfigError
from vmm.fabric.ram import PAGE, Ram
from vmm.host.chardev import Chardev
from vmm.testing.fakes import FakeLine
from vmm.testing.virtio_driver import BASE, Driver, VirtioBench


@pytest.fixture
def bench() -> Iterator[VirtioBench]:
    with VirtioBench(size=4 << 20) as bench:
        yield bench


def stopped(driver: Driver, says: str) -> None:
    driver.bench.run()
    assert driver.read("Status") & NEEDS_RESET
    assert says in driver.device.statistics().last_error


# -- entropy -----------------------------------------------------------------------------------------------------------


def test_each_buffer_gets_fresh_bytes(bench: VirtioBench) -> None:
    source = iter(range(256))
    (queue,) = bench.make(VirtioRng, entropy=lambda count: bytes(next(source) for _ in range(count))).start()
    assert queue.call([], [4, 2]).answer() == bytes(range(6))
    assert queue.call([], [4]).answer() == bytes(range(6, 10))


def test_a_large_buffer_is_filled_in_part(bench: VirtioBench) -> None:
    (queue,) = bench.make(VirtioRng, entropy=bytes).start()
    queue.add([], [LARGEST - 10, 2 * LARGEST, 5])
    queue.kick()
    bench.run()
    assert [written for _, written in queue.collect()] == [LARGEST]


@pytest.mark.parametrize(("readable", "room"), [([b"?"], [4]), ([b"?"], [])])
def test_asking_for_entropy_with_a_message_is_an_error(
    bench: VirtioBench, readable: list[bytes], room: list[int]
) -> None:
    driver = bench.make(VirtioRng, entropy=bytes)
    (queue,) = driver.start()
    queue.add(readable, room)
    queue.kick()
    stopped(driver, "all room")


# -- console -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def line() -> FakeLine:
    return FakeLine()


@pytest.fixture
def console(bench: VirtioBench, line: FakeLine) -> Driver:
    driver = bench.make(VirtioConsole, clock=bench.clock, line=line)
    line.connect(driver.device)
    return driver


def test_output_reaches_the_line_in_order(console: Driver, line: FakeLine) -> None:
    _, transmit = console.start()
    for text in (b"hello, ", b"", b"world"):
        transmit.add([text, b"!"])
    transmit.kick()
    console.bench.run()
    assert line.sent == b"hello, !!world!"
    assert len(transmit.collect()) == 3


def test_output_waits_in_the_ring_while_the_line_is_congested(console: Driver, line: FakeLine) -> None:
    _, transmit = console.start()
    line.congested = True
    transmit.add([b"one"])
    transmit.add([b"two"])
    transmit.kick()
    console.bench.run()
    assert line.sent == b""
    assert transmit.collect() == []
    line.relieve()
    assert line.sent == b"onetwo"
    assert len(transmit.collect()) == 2
    transmit.call([b"three"])
    assert line.sent == b"onetwothree"


def test_a_line_that_congests_on_the_way_stops_the_output_there(console: Driver, line: FakeLine) -> None:
    _, transmit = console.start()
    put = line.put

    def put_and_congest(data: bytes) -> None:
        put(data)
        line.congested = True

    line.put = put_and_congest  # type: ignore[method-assign]
    for text in (b"1", b"2", b"3"):
        transmit.add([text])
    transmit.kick()
    console.bench.run()
    assert line.sent == b"1"
    line.relieve()
    assert line.sent == b"12"
    line.relieve()
    assert line.sent == b"123"
    assert len(transmit.collect()) == 3


def test_a_line_that_nobody_reads_does_not_hold_up_the_guest_for_ever(console: Driver, line: FakeLine) -> None:
    clock = console.bench.clock
    _, transmit = console.start()
    line.congested = True
    transmit.add([b"lost"])
    transmit.kick()
    clock.advance(PATIENCE - 1)
    assert transmit.collect() == []
    clock.advance(1)
    assert len(transmit.collect()) == 1
    transmit.call([b"lost too"])
    assert (line.sent, line.lost_bytes) == (b"", 12)
    line.relieve()
    transmit.call([b"heard"])
    assert (line.sent, line.lost_bytes) == (b"heard", 12)


def test_each_congestion_is_waited_for_anew(console: Driver, line: FakeLine) -> None:
    clock = console.bench.clock
    _, transmit = console.start()
    for _ in range(3):
        line.congested = True
        transmit.add([b"."])
        transmit.kick()
        clock.advance(PATIENCE - 1)
        line.relieve()
        console.bench.run()
    assert (line.sent, line.lost_bytes) == (b"...", 0)
    clock.advance(2 * PATIENCE)
    line.congested = True
    transmit.add([b"!"])
    transmit.kick()
    clock.advance(PATIENCE - 1)
    assert line.lost_bytes == 0


def test_output_without_pause_leaves_the_home_thread_its_turns(console: Driver, line: FakeLine) -> None:
    _, transmit = console.start()
    put, turns = line.put, []

    def put_and_add_another(data: bytes) -> None:
        put(data)
        if len(line.sent) < 500:
            if len(line.sent) == 1:
                console.bench.home.call_soon(lambda: turns.append(len(line.sent)))
            transmit.collect()
            transmit.add([b"."])
            transmit.publish()

    line.put = put_and_add_another  # type: ignore[method-assign]
    transmit.add([b"."])
    transmit.kick()
    console.bench.run()
    assert len(line.sent) == 500
    assert turns[0] <= 2 * 64


def test_input_fills_the_drivers_buffers(console: Driver, line: FakeLine) -> None:
    receive, _ = console.start()
    first, second = receive.add([], [4, 4]), receive.add([], [16])
    receive.kick()
    receive.want_interrupt()
    line.type(b"0123456789")
    assert receive.collect() == [(first.head, 8), (second.head, 2)]
    assert first.answer() + second.answer(2) == b"0123456789"
    assert console.interrupt() == 1


def test_input_waits_for_the_driver_and_its_buffers(bench: VirtioBench) -> None:
    line = Chardev("test", bench.home)
    console = bench.make(VirtioConsole, clock=bench.clock, line=line)
    line.connect(console.device)
    line.send(b"early")
    bench.run()
    receive, _ = console.start()
    assert receive.collect() == []
    for expected in (b"ea", b"rl", b"y"):
        buffer = receive.add([], [2])
        receive.kick()
        bench.run()
        assert buffer.answer(len(expected)) == expected
        assert receive.collect() == [(buffer.head, len(expected))]


def test_emergency_output_needs_no_driver(console: Driver, line: FakeLine) -> None:
    assert console.offered() & EMERG_WRITE
    console.set_config(8, 4, 0x1234_5600 | ord("!"))
    console.set_config(8, 1, ord("?"))
    console.set_config(0, 4, ord("-"))
    assert line.sent == b"!?"


def test_the_size_of_the_terminal_is_a_feature_only_if_it_is_known(bench: VirtioBench, line: FakeLine) -> None:
    assert not bench.make(VirtioConsole, clock=bench.clock, line=line).offered() & SIZE
    sized = bench.make(VirtioConsole, clock=bench.clock, line=line, size=(100, 40))
    assert sized.offered() & SIZE
    assert (sized.config(0, 2), sized.config(2, 2), sized.config(4, 4)) == (100, 40, 1)


def test_output_with_room_for_an_answer_is_an_error(console: Driver) -> None:
    _, transmit = console.start()
    transmit.add([b"x"], [1])
    transmit.kick()
    stopped(console, "console output of 1 bytes with 1")


def test_output_without_end_is_an_error(console: Driver, line: FakeLine) -> None:
    _, transmit = console.start()
    transmit.add_segments([(BASE, 1 << 20), (BASE, 1)], [])
    transmit.kick()
    stopped(console, "console output of 1048577 bytes")
    assert line.sent == b""


def test_an_input_buffer_with_content_is_an_error_and_the_input_is_kept(console: Driver, line: FakeLine) -> None:
    receive, _ = console.start()
    receive.add([b"x"], [1])
    receive.kick()
    console.bench.run()
    line.type(b"kept")
    stopped(console, "all room")
    receive, _ = console.start()
    buffer = receive.add([], [8])
    receive.kick()
    console.bench.run()
    line.pump()
    assert buffer.answer(4) == b"kept"


def test_a_break_condition_is_not_for_a_virtio_console(console: Driver) -> None:
    console.start()
    console.device.line_break()
    assert console.interrupt() == 0


# -- balloon -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def balloon(bench: VirtioBench) -> Driver:
    return bench.make(VirtioBalloon)


def frames(*addresses: int) -> bytes:
    return struct.pack(f"<{len(addresses)}I", *(address // PAGE for address in addresses))


def test_pages_given_up_go_back_to_the_host(balloon: Driver) -> None:
    inflate, deflate, _ = balloon.start()
    ram, dma = balloon.bench.ram, balloon.bench.dma
    pages = [BASE + number * PAGE for number in (300, 302, 301, 400, 300)]
    for page in pages:
        dma.write(page, b"x" * PAGE)
    dma.write(BASE + 303 * PAGE, b"kept")
    inflate.call([frames(*pages)])
    for page in pages:
        assert dma.read(page, PAGE) == bytes(PAGE)
    assert dma.read(BASE + 303 * PAGE, 4) == b"kept"
    deflate.call([frames(*pages)])
    dma.write(pages[0], b"again")
    assert dma.read(pages[0], 5) == b"again"
    assert isinstance(ram, Ram)


def test_neighbouring_pages_go_back_in_one_call(balloon: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    inflate, _, _ = balloon.start()
    calls = []
    monkeypatch.setattr(Ram, "discard", lambda self, at, length: calls.append((at - BASE, length)))
    inflate.call([frames(*(BASE + number * PAGE for number in (9, 7, 8, 20, 21, 30)))])
    assert calls == [(7 * PAGE, 3 * PAGE), (20 * PAGE, 2 * PAGE), (30 * PAGE, PAGE)]


def test_the_host_asks_for_pages_by_changing_the_configuration(balloon: Driver) -> None:
    balloon.start()
    balloon.device.set_target(256 * PAGE)
    assert balloon.interrupt() == 2
    assert balloon.config(0, 4) == 256
    balloon.set_config(4, 4, 200)
    assert balloon.device.given() == 200 * PAGE
    assert balloon.config(4, 4) == 200


def test_the_hosts_wish_outlives_a_reset(balloon: Driver) -> None:
    balloon.device.set_target(5 * PAGE)
    assert not balloon.bench.wire.level
    balloon.start()
    balloon.set_config(4, 4, 5)
    balloon.write("Status", 0)
    assert (balloon.config(0, 4), balloon.config(4, 4)) == (5, 0)


def test_the_driver_may_not_write_the_hosts_wish(balloon: Driver) -> None:
    balloon.start()
    balloon.set_config(0, 4, 77)
    balloon.set_config(4, 2, 77)
    assert balloon.config(0, 8) == 0


@pytest.mark.parametrize("size", [-PAGE, 1, (4 << 20) + PAGE])
def test_a_wish_that_cannot_be_is_refused(balloon: Driver, size: int) -> None:
    with pytest.raises(ConfigError):
        balloon.device.set_target(size)


def test_taking_pages_back_when_out_of_memory_is_an_option(bench: VirtioBench, balloon: Driver) -> None:
    assert not balloon.offered() & DEFLATE_ON_OOM
    assert bench.make(VirtioBalloon, deflate_on_oom=True).offered() & DEFLATE_ON_OOM


def test_a_page_outside_ram_is_an_error(balloon: Driver) -> None:
    inflate, _, _ = balloon.start()
    inflate.add([frames(BASE, BASE + (4 << 20))])
    inflate.kick()
    stopped(balloon, "not all RAM")


@pytest.mark.parametrize(
    ("readable", "room", "says"),
    [([b"123"], [], "no array"), ([b"1234"], [4], "buffers to write"), ([bytes(65540)], [], "message of 65540")],
)
def test_a_message_that_is_no_list_of_pages_is_an_error(
    balloon: Driver, readable: list[bytes], room: list[int], says: str
) -> None:
    inflate, _, _ = balloon.start()
    inflate.add(readable, room)
    inflate.kick()
    stopped(balloon, says)


def test_a_host_that_keeps_the_pages_is_noted_and_nothing_else(
    balloon: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Ram, at: int, length: int) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    inflate, _, _ = balloon.start()
    monkeypatch.setattr(Ram, "discard", refuse)
    inflate.call([frames(BASE)])
    assert balloon.read("Status") & DRIVER_OK
    assert balloon.read("Status") & NEEDS_RESET == 0
    assert balloon.device.statistics().host_errors == 1


def statistics(**values: int) -> bytes:
    return b"".join(struct.pack("<HQ", TAGS.index(name), value) for name, value in values.items())


def test_statistics_are_asked_for_by_handing_the_buffer_back(balloon: Driver) -> None:
    _, _, queue = balloon.start()
    assert not balloon.device.ask_statistics()
    first = queue.add([statistics(free=1000, total=5000) + struct.pack("<HQ", 999, 1) + b"rest"])
    queue.kick()
    balloon.bench.run()
    assert balloon.device.memory() == {"free": 1000, "total": 5000}
    assert queue.collect() == []
    queue.want_interrupt()
    assert balloon.device.ask_statistics()
    assert queue.collect() == [(first.head, 0)]
    assert balloon.interrupt() == 1
    assert not balloon.device.ask_statistics()
    queue.add([statistics(free=900)])
    queue.kick()
    balloon.bench.run()
    assert balloon.device.memory() == {"free": 900}


def test_a_second_statistics_buffer_replaces_the_first(balloon: Driver) -> None:
    _, _, queue = balloon.start()
    first = queue.add([statistics(free=1)])
    queue.add([statistics(free=2)])
    queue.kick()
    balloon.bench.run()
    assert queue.collect() == [(first.head, 0)]
    assert balloon.device.memory() == {"free": 2}


def test_a_statistics_buffer_with_room_is_an_error(balloon: Driver) -> None:
    _, _, queue = balloon.start()
    queue.add([], [10])
    queue.kick()
    stopped(balloon, "buffers to write to")


def test_the_held_statistics_buffer_survives_a_snapshot(balloon: Driver) -> None:
    _, _, queue = balloon.start()
    held = queue.add([statistics(free=1)])
    queue.kick()
    balloon.bench.run()
    balloon.device.restore(balloon.device.save())
    assert balloon.device.ask_statistics()
    assert queue.collect() == [(held.head, 0)]
