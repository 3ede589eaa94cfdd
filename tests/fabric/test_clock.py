from __future__ import annotations

import ctypes
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.errors import InternalError
from vmm.fabric.clock import Clock
from vmm.testing.fakes import FakeClock, FakeIoThread

SECOND = 1_000_000_000


def native_now(clock: Clock, monotonic: int) -> int:
    """The clock as generated code reads it."""
    offset, frozen = (ctypes.c_int64 * 2).from_address(clock.words_host)
    return frozen if frozen >= 0 else offset + monotonic


def test_a_new_clock_is_paused_at_its_start():
    clock = Clock(FakeIoThread(), start=5)
    assert clock.paused
    assert clock.now() == 5


def test_guest_time_stands_still_while_paused_and_goes_on_from_there():
    clock = FakeClock(start=100)
    clock.advance(SECOND)
    clock.pause()
    clock.advance(5 * SECOND)
    assert clock.now() == 100 + SECOND
    clock.resume()
    assert clock.now() == 100 + SECOND
    clock.advance(3)
    assert clock.now() == 103 + SECOND


def test_pausing_twice_and_resuming_twice_changes_nothing():
    clock = FakeClock()
    for _ in range(2):
        clock.pause()
    clock.advance(9)
    for _ in range(2):
        clock.resume()
    assert clock.now() == 0


def test_native_code_reads_the_time_that_python_reads():
    host = [SECOND]
    clock = Clock(FakeIoThread(), start=42, host_ns=lambda: host[0])
    for step in (clock.resume, clock.pause, clock.resume):
        step()
        host[0] += 77
        assert native_now(clock, host[0]) == clock.now()


def test_native_code_and_python_agree_on_the_hosts_clock():
    clock = Clock(FakeIoThread())
    clock.resume()
    before = clock.now()
    native = native_now(clock, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    assert before <= native <= clock.now()


def test_time_can_be_set_only_while_it_stands():
    clock = FakeClock()
    with pytest.raises(InternalError):
        clock.set(10)
    clock.pause()
    with pytest.raises(InternalError):
        clock.set(-1)
    clock.set(10)
    assert clock.now() == 10


def test_timers_fire_in_order_of_time_and_each_sees_its_own_time():
    clock = FakeClock()
    fired: list[tuple[str, int]] = []
    for name, at in (("late", 30), ("early", 10), ("middle", 20)):
        clock.timer(lambda name=name: fired.append((name, clock.now())), name).arm(at)
    clock.advance(25)
    assert fired == [("early", 10), ("middle", 20)]
    clock.advance(5)
    assert fired[-1] == ("late", 30)


def test_a_timer_fires_once_and_a_time_gone_by_fires_at_once():
    clock = FakeClock(start=100)
    fired: list[int] = []
    timer = clock.timer(lambda: fired.append(clock.now()), "t")
    timer.arm(50)
    clock.advance(0)
    clock.advance(SECOND)
    assert fired == [100]
    assert timer.deadline is None


def test_arming_again_replaces_the_deadline_and_cancelling_removes_it():
    clock = FakeClock()
    fired: list[int] = []
    timer = clock.timer(lambda: fired.append(clock.now()), "t")
    timer.arm(10)
    timer.arm(20)
    assert timer.deadline == 20
    clock.advance(15)
    assert fired == []
    timer.cancel()
    clock.advance(15)
    assert fired == []


def test_a_timer_may_arm_itself_again_from_its_own_callback():
    clock = FakeClock()
    fired: list[int] = []

    def tick() -> None:
        fired.append(clock.now())
        timer.arm(clock.now() + 10)

    timer = clock.timer(tick, "tick")
    timer.arm(10)
    clock.advance(45)
    assert fired == [10, 20, 30, 40]


def test_no_timer_fires_while_paused_and_what_is_due_by_then_fires_on_resume():
    clock = FakeClock()
    fired: list[int] = []
    clock.timer(lambda: fired.append(clock.now()), "t").arm(10)
    clock.pause()
    clock.advance(SECOND)
    assert clock.next_deadline() is None
    clock.set(15)
    clock.resume()
    clock.advance(0)
    assert fired == [15]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["arm", "cancel", "advance"]), st.integers(0, 50))))
def test_each_armed_timer_fires_exactly_once_at_its_last_deadline(steps):
    clock = FakeClock()
    fired: list[tuple[int, int]] = []
    expected: list[tuple[int, int]] = []
    armed: dict[int, int] = {}
    timers = [clock.timer(lambda n=n: fired.append((clock.now(), n)), f"t{n}") for n in range(4)]
    for which, action, amount in steps:
        if action == "arm":
            armed[which] = clock.now() + amount
            timers[which].arm(armed[which])
        elif action == "cancel":
            armed.pop(which, None)
            timers[which].cancel()
        else:
            until = clock.now() + amount
            clock.advance(amount)
            expected += [(at, n) for n, at in armed.items() if at <= until]
            armed = {n: at for n, at in armed.items() if at > until}
    assert sorted(fired) == sorted(expected)
    assert [at for at, _ in fired] == sorted(at for at, _ in fired)
