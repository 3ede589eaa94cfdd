"""Checked locks and waits: what closes a ring is reported when it is first seen, and nothing has to hang for that."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vmm.errors import LockOrderError
from vmm.fabric.inflight import InFlight
from vmm.fabric.iothread import IoThread
from vmm.fabric.workers import Workers
from vmm.lockcheck import Checker
from vmm.lockreport import Kind, Report
from vmm.locks import Device, Locking, Rank, entry, lockfree


class Hub(Device):
    """Two of one rank that may be held around each other, so that their ranks do not say which goes first."""

    lock_children = ("Port",)

    @entry
    def run(self, inside: Callable[[], object]) -> object:
        return inside()


class Port(Hub):
    lock_children = ("Hub",)


@pytest.fixture
def locking() -> Locking:
    return Locking(checked=True)


def checker(locking: Locking) -> Checker:
    assert locking.checker is not None
    return locking.checker


def edges(locking: Locking) -> set[str]:
    return {str(edge) for edge in checker(locking).graph.edges()}


def only(locking: Locking, kind: Kind) -> Report:
    (report,) = checker(locking).reports
    assert report.kind is kind
    return report


def on_a_thread(name: str, function: Callable[[], object]) -> None:
    """Calls it on a thread of this name, to its end; what it raises is dropped."""

    def run() -> None:
        try:
            function()
        except LockOrderError:
            pass

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()


# -- locks -------------------------------------------------------------------------------------------------------------


def test_the_second_order_is_reported_when_it_is_seen_with_the_stacks_of_both_threads(locking: Locking) -> None:
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    on_a_thread("vcpu0", lambda: hub.run(lambda: port.run(lambda: None)))
    assert checker(locking).reports == []
    on_a_thread("io", lambda: port.run(lambda: hub.run(lambda: None)))
    report = only(locking, Kind.CYCLE)
    assert (report.classes, report.instances, report.thread) == (("Port", "Hub"), ("port0", "hub0"), "io")
    text = str(report)
    assert "takes hub0 (class Hub, rank DEVICE) while it holds port0 (class Port, rank DEVICE), but Hub -> Port" in text
    assert "hub0 was taken at, by vcpu0:" in text
    assert 'on_a_thread("vcpu0", lambda: hub.run(lambda: port.run(lambda: None)))' in text
    assert 'on_a_thread("io", lambda: port.run(lambda: hub.run(lambda: None)))' in text
    assert [witness.thread for witness in report.witnesses] == ["io", "io", "vcpu0", "vcpu0"]


def test_classes_make_a_ring_of_different_devices(locking: Locking) -> None:
    hubs = [locking.make(Hub, f"hub{i}") for i in range(2)]
    ports = [locking.make(Port, f"port{i}") for i in range(2)]
    hubs[0].run(lambda: ports[0].run(lambda: None))
    with pytest.raises(LockOrderError, match=r"takes hub1 .* while it holds port1"):
        ports[1].run(lambda: hubs[1].run(lambda: None))


def test_a_ring_is_reported_each_time_and_kept_once(locking: Locking) -> None:
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    hub.run(lambda: port.run(lambda: None))
    for _ in range(3):
        with pytest.raises(LockOrderError):
            port.run(lambda: hub.run(lambda: None))
    assert only(locking, Kind.CYCLE).count == 3


def test_a_lock_around_both_keeps_the_ring_open(locking: Locking) -> None:
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    gate = locking.lock("gate", rank=Rank.BUS)
    with gate:
        hub.run(lambda: port.run(lambda: None))
        port.run(lambda: hub.run(lambda: None))
    assert checker(locking).reports == []
    with pytest.raises(LockOrderError, match="Port -> Hub was seen before"):
        hub.run(lambda: port.run(lambda: None))


def test_two_gates_of_one_class_are_two_locks(locking: Locking) -> None:
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    gates = [locking.lock(f"gate{i}", "gate", Rank.BUS) for i in range(2)]
    with gates[0]:
        hub.run(lambda: port.run(lambda: None))
    with gates[1], pytest.raises(LockOrderError, match="was seen before"):
        port.run(lambda: hub.run(lambda: None))


def test_taking_a_lock_again_is_no_edge(locking: Locking) -> None:
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    hub.run(lambda: port.run(lambda: hub._lock.__enter__()))
    hub._lock.release()
    assert edges(locking) == {"Hub -> Port"}
    assert checker(locking).reports == []


def test_a_lock_against_the_ranks_closes_a_ring_too_when_the_right_order_was_seen(locking: Locking) -> None:
    """The HPET of another monitor: its register access took its own lock and then the big one, its timer the big one
    and then its own."""
    hub = locking.make(Hub, "hpet")
    with locking.big:
        hub.run(lambda: None)
    with pytest.raises(LockOrderError, match="against LIFECYCLE"):
        hub.run(lambda: locking.big.__enter__())
    assert [report.kind for report in checker(locking).reports] == [Kind.RANK, Kind.CYCLE]


# -- waits -------------------------------------------------------------------------------------------------------------


def test_waiting_with_a_lock_that_the_other_side_needs_is_reported_before_anything_hangs(locking: Locking) -> None:
    turn = checker(locking).progress("a turn")
    hub = locking.make(Hub, "hub0")

    def serve() -> None:
        with turn.serving():
            hub.run(lambda: None)

    on_a_thread("io", serve)
    with hub._lock, pytest.raises(LockOrderError, match=r"waits for a turn .* while it holds hub0"):
        with turn.waiting():
            raise AssertionError("nobody may get here: this would hang")
    report = only(locking, Kind.CYCLE)
    assert report.classes == ("Hub", "a turn")
    assert "a turn: begun at, by io:" in str(report)


def test_the_side_that_needs_the_lock_is_reported_when_the_wait_came_first(locking: Locking) -> None:
    turn = checker(locking).progress("a turn")
    hub = locking.make(Hub, "hub0")
    with hub._lock, turn.waiting():
        pass
    with turn.serving(), pytest.raises(LockOrderError, match=r"takes hub0 .* while it serves a turn"):
        hub.run(lambda: None)


def test_two_that_wait_for_each_other_are_a_ring(locking: Locking) -> None:
    harts, lifecycle = (checker(locking).progress(name) for name in ("harts at the gate", "a transition"))
    with lifecycle.serving(), harts.waiting():
        pass
    with harts.serving(), pytest.raises(LockOrderError, match="waits for a transition"):
        lifecycle.waiting().__enter__()


def test_one_that_waits_for_itself_is_reported(locking: Locking) -> None:
    turn = checker(locking).progress("a turn")
    with turn.serving(), pytest.raises(LockOrderError, match="which it is to bring about itself"):
        turn.waiting().__enter__()
    only(locking, Kind.SELF)


def test_waits_for_others_of_ones_own_class_are_reported(locking: Locking) -> None:
    ours, theirs = (checker(locking).progress(f"copies of disk{i}", "copies") for i in range(2))
    with ours.serving(), pytest.raises(LockOrderError, match="another of its class"):
        theirs.waiting().__enter__()


def test_a_wait_under_a_lock_that_nobody_needs_is_fine(locking: Locking) -> None:
    turn = checker(locking).progress("a turn")
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    with hub._lock, turn.waiting():
        pass
    with turn.serving():
        port.run(lambda: None)
    assert checker(locking).reports == []
    assert edges(locking) == {"Hub -> a turn", "a turn -> Port"}


def test_holding_a_device_under_the_big_lock_policy_is_holding_the_big_lock() -> None:
    locking = Locking("bql", checked=True)
    turn = checker(locking).progress("a turn")
    hub = locking.make(Hub, "hub0")
    with hub._lock, turn.waiting():
        pass
    with turn.serving(), pytest.raises(LockOrderError, match=r"takes bql .* while it serves a turn"):
        locking.make(Port, "port0").run(lambda: None)


def test_a_server_that_has_the_big_lock_already_needs_it_no_more() -> None:
    locking = Locking("bql", checked=True)
    turn = checker(locking).progress("a turn")
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    with hub._lock, turn.waiting():
        pass
    with locking.big, turn.serving():
        port.run(lambda: None)
    assert checker(locking).reports == []


# -- the waits of the fabric -------------------------------------------------------------------------------------------


def test_waiting_for_copies_with_the_devices_lock_is_reported(locking: Locking) -> None:
    hub = locking.make(Hub, "hub0")
    copies = InFlight("hub0", locking.kit)
    with copies.progress.serving():
        hub.run(lambda: None)
    with pytest.raises(LockOrderError, match=r"waits for copies in flight of hub0 .* while it holds hub0"):
        hub.run(lambda: copies.wait(0))


def test_waiting_for_the_io_thread_with_a_lock_that_its_callbacks_take_is_reported(locking: Locking) -> None:
    hub = locking.make(Hub, "hub0")
    io = IoThread("io", kit=locking.kit)
    io.start()
    ran = threading.Event()
    io.call_soon(lambda: (hub.run(lambda: None), ran.set()))  # type: ignore[arg-type]
    ran.wait()
    with pytest.raises(LockOrderError, match=r"waits for callbacks of io \(class I/O callbacks\) while it holds hub0"):
        hub.run(io.stop)
    io.stop()


def test_draining_a_pool_with_a_lock_that_its_calls_take_is_reported(locking: Locking) -> None:
    hub = locking.make(Hub, "hub0")
    pool = Workers(1, "worker", locking.kit)
    ran = threading.Event()

    class Home:
        def call_soon(self, function: Callable[..., None], *arguments: object) -> None:
            ran.set()

    pool.submit(hub.run, lambda: None, done=lambda _: None, home=Home())
    ran.wait()
    with pytest.raises(LockOrderError, match=r"waits for calls of worker \(class worker calls\)"):
        hub.run(pool.stop)
    pool.stop()


def test_joining_a_thread_with_something_held_needs_a_name(locking: Locking) -> None:
    thread = locking.kit.thread(lambda: None, "helper")
    thread.start()
    hub = locking.make(Hub, "hub0")
    with pytest.raises(LockOrderError, match="waits for the end of the thread helper while it has hub0"):
        hub.run(thread.join)
    only(locking, Kind.WAIT)
    turn = checker(locking).progress("a turn")
    with hub._lock, turn.waiting():
        thread.join()
    assert not thread.is_alive()


def test_waiting_on_a_condition_with_something_held_needs_a_name(locking: Locking) -> None:
    condition = locking.kit.condition("ready")
    hub = locking.make(Hub, "hub0")

    def wait() -> None:
        with condition:
            condition.wait_for(lambda: True, 0)

    wait()
    with pytest.raises(LockOrderError, match="waits on the condition ready while it has hub0"):
        hub.run(wait)
    assert edges(locking) == {"Hub -> ready"}


def test_nothing_is_taken_under_a_condition(locking: Locking) -> None:
    hub = locking.make(Hub, "hub0")
    condition = locking.kit.condition("ready")
    with condition, pytest.raises(LockOrderError, match=r"takes hub0 .* while it holds ready \(class ready, rank LEAF"):
        hub.run(lambda: None)


def test_a_condition_taken_twice_is_reported_and_not_waited_for(locking: Locking) -> None:
    condition = locking.kit.condition("ready")
    with condition, pytest.raises(LockOrderError, match=r"takes ready .* which it holds"):
        condition.__enter__()
    with condition:
        pass


# -- homes and doors ---------------------------------------------------------------------------------------------------


class Homely(Hub):
    def __init__(self, name: str, locking: Locking, *, home: IoThread) -> None:
        super().__init__(name, locking)
        self._home = home

    @lockfree("takes the lock for each step", home=True)
    def serve(self) -> str:
        return threading.current_thread().name

    @entry(home=True)
    def complete(self) -> str:
        return threading.current_thread().name


@pytest.mark.parametrize("door", ["serve", "complete"])
def test_work_away_from_its_home_is_reported(locking: Locking, door: str) -> None:
    io = IoThread("io", kit=locking.kit)
    io.start()
    made = locking.make(Homely, "disk0", home=io)
    heard: list[str] = []
    io.call_soon(lambda: heard.append(getattr(made, door)()))
    with pytest.raises(LockOrderError, match=f"runs Homely.{door} of disk0, whose home is the thread io"):
        getattr(made, door)()
    io.stop()
    assert heard == ["io"]
    only(locking, Kind.HOME)


def test_the_io_thread_itself_reports_to_its_kit(locking: Locking) -> None:
    io = IoThread("io", kit=locking.kit)
    io.assert_home()  # not started: nobody is in the way
    io.start()
    with pytest.raises(LockOrderError, match="runs work of io, whose home is the thread io"):
        io.assert_home()
    io.stop()


def test_a_body_that_runs_without_its_door_is_reported(locking: Locking) -> None:
    hub = locking.make(Hub, "hub0")
    body = type(hub).run.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(LockOrderError, match=r"runs the body of Hub\.run of hub0 without its lock"):
        body(hub, lambda: None)
    only(locking, Kind.BYPASS)
    with hub._lock:
        assert body(hub, lambda: 7) == 7


# -- keeping reports instead of raising them ---------------------------------------------------------------------------


def test_without_raising_a_thread_goes_on_and_leaves_no_lock_behind() -> None:
    locking = Locking(checked=True, raising=False)
    hub, port = locking.make(Hub, "hub0"), locking.make(Port, "port0")
    turn = checker(locking).progress("a turn")
    hub.run(lambda: port.run(lambda: None))
    assert port.run(lambda: hub.run(lambda: 7)) == 7
    with turn.serving():
        hub.run(lambda: None)
    with hub._lock, turn.waiting():
        pass
    assert [report.classes for report in checker(locking).reports] == [("Port", "Hub"), ("Hub", "a turn")]
    assert {now.holder for now in locking.statistics()} == {None}


def test_what_a_thread_cannot_go_on_after_is_raised_all_the_same() -> None:
    locking = Locking(checked=True, raising=False)
    turn = checker(locking).progress("a turn")
    with turn.serving(), pytest.raises(LockOrderError):
        turn.waiting().__enter__()
    with pytest.raises(LockOrderError):
        locking.lock("map").release()
