from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import InternalError
from vmm.fabric.bus import Bus, BusFault, BusOverlap


class Recorder:
    """Answers reads with its number and keeps what it was asked."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.seen: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size))
        return self.number

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))


def test_a_target_is_asked_by_the_offset_in_its_window():
    bus, target = Bus(), Recorder(7)
    bus.map(0x1000, 0x100, target, "device")
    assert bus.read(0x1004, 4) == 7
    bus.write(0x10FF, 1, 0xAB)
    assert target.seen == [("read", 4, 4), ("write", 0xFF, 1, 0xAB)]


@pytest.mark.parametrize("address", [0, 0xFFF, 0x1100, 0x10FE, 2**64 - 4])
def test_an_access_that_no_window_holds_wholly_is_a_fault(address):
    bus, target = Bus(), Recorder()
    bus.map(0x1000, 0x100, target, "device")
    with pytest.raises(BusFault):
        bus.read(address, 4)
    with pytest.raises(BusFault):
        bus.write(address, 4, 0)
    assert target.seen == []


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(1, 16)), max_size=12), st.integers(0, 90))
def test_every_address_leads_where_the_first_window_that_was_accepted_there_says(wanted, probe):
    bus = Bus()
    model: dict[int, int] = {}
    for number, (base, size) in enumerate(wanted):
        span = range(base, base + size)
        if any(at in model for at in span):
            with pytest.raises(BusOverlap):
                bus.map(base, size, Recorder(number), f"w{number}")
        else:
            bus.map(base, size, Recorder(number), f"w{number}")
            model.update(dict.fromkeys(span, number))
    found = bus.snapshot.find(probe)
    assert (found and found.target.number) == model.get(probe)


@pytest.mark.parametrize(("base", "size"), [(-1, 4), (0, 0), (2**64 - 1, 2), (2**64, 1)])
def test_a_window_outside_the_address_space_is_refused(base, size):
    with pytest.raises(BusOverlap):
        Bus().map(base, size, Recorder(), "device")


def test_each_change_makes_a_new_snapshot_and_leaves_the_old_one_as_it_was():
    bus, target = Bus(), Recorder()
    empty = bus.snapshot
    bus.map(0x1000, 0x100, target, "device")
    mapped = bus.snapshot
    bus.move(0x1000, 0x5000)
    bus.unmap(0x5000)
    assert empty.find(0x1000) is None
    assert mapped.find(0x1000).target is target
    assert bus.snapshot.find(0x5000) is None
    assert [s.generation for s in (empty, mapped, bus.snapshot)] == [0, 1, 3]


def test_a_move_onto_another_window_is_refused_and_changes_nothing():
    bus, low, high = Bus(), Recorder(1), Recorder(2)
    bus.map(0x1000, 0x100, low, "low")
    bus.map(0x2000, 0x100, high, "high")
    with pytest.raises(BusOverlap):
        bus.move(0x1000, 0x2080)
    assert bus.read(0x1000, 4) == 1
    assert bus.read(0x2080, 4) == 2


def test_a_device_can_move_its_own_window_inside_its_own_access():
    bus = Bus()

    class Movable(Recorder):
        def write(self, offset: int, size: int, value: int) -> None:
            bus.move(0x1000, value)
            super().write(offset, size, value)

    device = Movable(3)
    bus.map(0x1000, 0x100, device, "movable")
    bus.write(0x1010, 4, 0x9000)
    assert device.seen == [("write", 0x10, 4, 0x9000)]
    assert bus.read(0x9010, 4) == 3
    with pytest.raises(BusFault):
        bus.read(0x1010, 4)


def test_what_a_removed_window_needs_is_given_back_once_every_reader_has_let_go():
    bus = Bus()
    bus.map(0x1000, 0x100, Recorder(), "device")
    kicked: list[str] = []
    first, second = (bus.reader(name, lambda name=name: kicked.append(name)) for name in ("vcpu0", "vcpu1"))
    first.refresh()
    second.refresh()
    bus.unmap(0x1000)
    given_back: list[int] = []
    bus.retire(lambda: given_back.append(1))
    assert kicked == ["vcpu0", "vcpu1"]
    first.refresh()
    assert given_back == []
    second.refresh()
    assert given_back == [1]


def test_every_reader_is_told_that_the_map_has_changed():
    bus = Bus()
    first, second = (bus.reader(name, lambda: None) for name in ("vcpu0", "vcpu1"))
    for reader in (first, second):
        reader.refresh()
    assert not first.stale
    for change in (
        lambda: bus.map(0x1000, 0x100, Recorder(), "device"),
        lambda: bus.move(0x1000, 0x2000),
        lambda: bus.replace(0x2000, Recorder(), "another"),
        lambda: bus.doorbell(0x2000, 4, None, 3),
        lambda: bus.unmap(0x2000),
    ):
        change()
        assert first.stale
        assert second.stale
        first.refresh()
        second.refresh()
        assert not first.stale
        assert not second.stale


def test_a_reader_that_leaves_holds_nothing_up_and_without_readers_nothing_waits():
    bus = Bus()
    given_back: list[int] = []
    reader = bus.reader("vcpu0", lambda: None)
    reader.refresh()
    bus.map(0x1000, 0x100, Recorder(), "device")
    bus.retire(lambda: given_back.append(1))
    assert given_back == []
    reader.leave()
    assert given_back == [1]
    bus.retire(lambda: given_back.append(2))
    assert given_back == [1, 2]


def test_a_reader_at_rest_holds_nothing_up_until_it_reads_again():
    bus = Bus()
    kicks: list[int] = []
    given_back: list[int] = []
    reader = bus.reader("vcpu0", lambda: kicks.append(1))
    bus.map(0x1000, 0x100, Recorder(), "device")
    bus.retire(lambda: given_back.append(1))
    assert given_back == [1]
    reader.refresh()
    bus.unmap(0x1000)
    bus.retire(lambda: given_back.append(2))
    assert (given_back, kicks) == ([1], [1])
    reader.rest()
    assert given_back == [1, 2]


def test_a_window_is_replaced_in_one_step_and_its_doorbells_with_it():
    bus = Bus()
    old, new, other = Recorder(1), Recorder(2), Recorder(3)
    bus.map(0x1000, 0x1000, old, "old")
    bus.map(0x2000, 0x1000, other, "other")
    bus.doorbell(0x1050, 4, 0, fd=8)
    kept = bus.doorbell(0x2050, 4, 0, fd=9)
    before = bus.snapshot
    bus.replace(0x1000, new, "new", [(0x50, 4, 1, 10)])
    assert bus.generation == before.generation + 1
    assert (bus.read(0x1FFC, 4), bus.read(0x2000, 4), before.find(0x1000).target) == (2, 3, old)
    assert [(bell.gpa, bell.value, bell.fd) for bell in bus.snapshot.doorbells] == [(0x2050, 0, 9), (0x1050, 1, 10)]
    assert bus.snapshot.doorbells[0] is kept
    with pytest.raises(InternalError):
        bus.replace(0x1800, new, "new")


def test_nothing_is_given_back_under_an_access_by_a_thread_that_keeps_no_snapshot():
    bus = Bus()
    given_back: list[str] = []

    class Removing(Recorder):
        def read(self, offset: int, size: int) -> int:
            bus.unmap(0x1000)
            bus.retire(lambda: given_back.append("device"))
            assert given_back == []
            return 0

    bus.map(0x1000, 0x100, Removing(), "device")
    bus.read(0x1000, 4)
    assert given_back == ["device"]


def test_a_doorbell_is_announced_to_the_readers_and_taken_away_again():
    bus = Bus()
    kicks: list[int] = []
    reader = bus.reader("vcpu0", lambda: kicks.append(1))
    reader.refresh()
    bell = bus.doorbell(0x1050, 4, 0, fd=9)
    assert kicks == [1]
    assert reader.refresh().doorbells == (bell,)
    bus.remove_doorbell(bell)
    assert bus.snapshot.doorbells == ()


def test_threads_that_map_at_once_lose_none_of_their_windows():
    bus = Bus()

    def add(first: int) -> None:
        for n in range(40):
            bus.map((first + n) * 0x1000, 0x1000, Recorder(first + n), f"w{first + n}")

    threads = [threading.Thread(target=add, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bus.generation == 160
    assert {m.target.number for m in bus.snapshot.mappings} == {1000 * i + n for i in range(4) for n in range(40)}


def test_dispatch_beside_changes_finds_a_window_in_one_place_or_the_other_always():
    bus = Bus()
    bus.map(0x1000, 0x1000, Recorder(1), "moves")
    bus.map(0x9000, 0x1000, Recorder(2), "stays")
    stop = threading.Event()

    def wander() -> None:
        while not stop.is_set():
            bus.move(0x1000, 0x5000)
            bus.move(0x5000, 0x1000)

    mover = threading.Thread(target=wander)
    mover.start()
    try:
        for _ in range(2000):
            snapshot = bus.snapshot
            assert (snapshot.find(0x1000) is None) != (snapshot.find(0x5000) is None)
            assert snapshot.find(0x9000) is not None
    finally:
        stop.set()
        mover.join()


def test_a_bus_names_who_keeps_what_was_removed():
    bus = Bus()
    reader = bus.reader("vcpu0", lambda: None)
    reader.refresh()
    bus.map(0x1000, 0x1000, Recorder(), "echo")
    bus.unmap(0x1000)
    bus.retire(lambda: None)
    assert repr(bus) == "<Bus generation 2, 0 windows, 0 doorbells, 1 retired until vcpu0 refresh>"
    reader.refresh()
    assert (bus.statistics().behind, bus.statistics().retired) == ((), 0)
    assert repr(bus) == "<Bus generation 2, 0 windows, 0 doorbells>"
