"""What the scheduler finds, and what it says of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.schedules import examples
from vmm.errors import InternalError
from vmm.locks import Device, Locking, entry
from vmm.testing.schedule import Kind, ScheduleError, Scheduler, assert_holds, core, explore

SEEDED = ("random", "pct")


@pytest.mark.parametrize("strategy", [*SEEDED, "exhaustive"])
@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (examples.two_orders, Kind.DEADLOCK),
        (examples.unlocked_count, Kind.ASSERTION),
        (examples.early_look, Kind.LOST_WAKE_UP),
    ],
)
def test_every_strategy_finds_the_mistake(strategy: str, program: Callable[..., None], kind: Kind) -> None:
    failure = explore(program, strategy=strategy, schedules=200).failure
    assert failure
    assert failure.kind is kind


@pytest.mark.parametrize("strategy", [*SEEDED, "exhaustive"])
@pytest.mark.parametrize(
    "program", [examples.one_order, examples.locked_count, examples.predicate, examples.deadline, examples.handshake]
)
def test_no_strategy_finds_anything_in_the_right_program(strategy: str, program: Callable[..., None]) -> None:
    assert_holds(program, strategy=strategy, schedules=200)


def test_a_deadlock_names_who_holds_what_and_who_waits() -> None:
    failure = explore(examples.two_orders).failure
    assert failure
    assert "deadlock: vcpu0 -> vcpu1 -> vcpu0" in failure.report
    assert "vcpu0 waits for net, held by vcpu1" in failure.report
    assert "vcpu1 waits for disk, held by vcpu0" in failure.report
    assert "examples.py" in failure.report


def test_a_lost_wake_up_says_whether_what_is_waited_for_has_come() -> None:
    def program(s: Scheduler) -> None:
        ready = [False]
        changed = s.condition("ready")

        def wait() -> None:
            with changed:
                changed.wait_for(lambda: ready[0])

        def set_it() -> None:
            ready[0] = True  # and tells nobody

        s.spawn("io", wait)
        s.spawn("vcpu0", set_it)

    failure = explore(program).failure
    assert failure
    assert failure.kind is Kind.LOST_WAKE_UP
    assert "io sleeps on ready although what it waits for is so" in failure.report


def test_a_thread_that_spins_for_ever_makes_no_progress() -> None:
    failure = explore(examples.spinning, limit=2000).failure
    assert failure
    assert failure.kind is Kind.NO_PROGRESS
    assert "after 2000 steps" in failure.report
    assert "vcpu0 is at:" in failure.report


@pytest.mark.parametrize("strategy", SEEDED)
def test_a_thread_that_spins_for_another_lets_it_run_in_the_end(strategy: str) -> None:
    result = assert_holds(examples.spin_and_answer, strategy=strategy, schedules=50, seed=2)
    assert result.schedules == 50


def test_an_exception_is_reported_with_its_line_and_thread() -> None:
    def program(s: Scheduler) -> None:
        def fail() -> None:
            raise ValueError("no such register")

        s.spawn("vcpu0", s.point, "x")
        s.spawn("vcpu1", fail)

    failure = explore(program).failure
    assert failure
    assert failure.kind is Kind.EXCEPTION
    assert "vcpu1 raised ValueError" in failure.report
    assert 'raise ValueError("no such register")' in failure.report


def test_a_lock_that_its_holder_took_with_it_is_a_deadlock() -> None:
    def program(s: Scheduler) -> None:
        lock = s.lock("disk")
        s.spawn("vcpu0", lock.acquire)
        s.spawn("vcpu1", lock.acquire)

    failure = explore(program).failure
    assert failure
    assert "waits for disk, held by vcpu0, which has ended" in failure.report


def test_a_thread_in_service_may_still_wait_at_the_end() -> None:
    def program(s: Scheduler) -> None:
        changed = s.condition("work")

        def serve() -> None:
            with changed:
                changed.wait_for(lambda: False)

        s.kit_thread = s.thread(serve, "io")  # type: ignore[attr-defined]
        s.kit_thread.start()  # type: ignore[attr-defined]
        s.spawn("vcpu0", s.point, "x")

    assert_holds(program, schedules=20)


def test_threads_start_threads_and_join_them() -> None:
    def program(s: Scheduler) -> None:
        done: list[str] = []

        def child() -> None:
            s.point("write done")
            done.append("child")

        def parent() -> None:
            thread = s.thread(child, "child")
            assert not thread.is_alive()
            thread.start()
            thread.join()
            assert not thread.is_alive()
            assert done == ["child"]

        s.spawn("parent", parent)

    assert_holds(program, strategy="exhaustive")


def test_the_order_checker_hears_of_the_wrong_order_under_every_schedule() -> None:
    class Box(Device):
        @entry
        def enter(self, other: Box) -> None:
            other.enter_inner()

        @entry
        def enter_inner(self) -> None:
            pass

    def program(s: Scheduler) -> None:
        locking: Locking = s.locking()
        one, two = locking.make(Box, "one"), locking.make(Box, "two")
        s.spawn("vcpu0", one.enter, two)

    failure = explore(program, schedules=1).failure
    assert failure
    assert failure.kind is Kind.LOCK_RULE
    assert "one" in failure.report


def test_a_report_that_was_swallowed_still_fails_the_schedule() -> None:
    class Box(Device):
        @entry
        def enter(self) -> None:
            pass

        def _inner(self) -> None:
            pass

    def program(s: Scheduler) -> None:
        box = s.locking().make(Box, "box")

        def run() -> None:
            try:
                box._inner()
            except Exception:
                pass

        s.spawn("vcpu0", run)

    failure = explore(program, schedules=1).failure
    assert failure
    assert failure.kind is Kind.LOCK_RULE


def test_devices_of_both_variants_run_under_the_scheduler() -> None:
    class Counter(Device):
        def __init__(self, name: str, locking: Locking) -> None:
            super().__init__(name, locking)
            self.count = 0

        @entry
        def add(self) -> None:
            self._add()

        def _add(self) -> None:
            self.count += 1

    def program(s: Scheduler, checked: bool) -> None:
        counter = s.locking(checked=checked).make(Counter, "counter")
        for index in range(2):
            s.spawn(f"vcpu{index}", counter.add)
        s.check(lambda: counter.count == 2)

    for checked in (False, True):

        def run(s: Scheduler, checked: bool = checked) -> None:
            program(s, checked)

        assert_holds(run, strategy="exhaustive")


def test_an_early_timeout_comes_where_the_program_claims_to_bear_it() -> None:
    def program(s: Scheduler) -> None:
        s.early_timeouts = True
        changed = s.condition("ready")
        ready = [False]

        def wait() -> None:
            with changed:
                assert changed.wait_for(lambda: ready[0], 5.0), "gave up"

        def post() -> None:
            with changed:
                ready[0] = True
                changed.notify_all()

        s.spawn("io", wait)
        s.spawn("vcpu0", post)

    failure = explore(program, strategy="exhaustive").failure
    assert failure
    assert "gave up" in failure.report


def test_assert_holds_raises_the_whole_report() -> None:
    with pytest.raises(ScheduleError) as caught:
        assert_holds(examples.two_orders)
    assert "replay: python -m vmm.testing.schedule replay tests.schedules.examples:two_orders" in str(caught.value)


def test_a_program_that_waits_while_it_builds_is_told_so() -> None:
    def program(s: Scheduler) -> None:
        changed = s.condition("ready")
        with changed:
            changed.wait()

    failure = explore(program).failure
    assert failure
    assert "main would wait for ready where no thread of the schedule runs" in failure.report


def test_a_thread_that_swallows_its_end_is_left_behind() -> None:
    def program(s: Scheduler) -> None:
        lock = s.lock("disk")

        def stubborn() -> None:
            while True:
                try:
                    s.point("x")
                    lock.acquire()
                    s.point("y")
                except BaseException:
                    continue

        s.spawn("vcpu0", stubborn)

    failure = explore(program, limit=50, shrink=False).failure
    assert failure
    assert failure.kind is Kind.NO_PROGRESS


def test_a_thread_that_waits_for_a_real_lock_is_reported_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "PATIENCE_S", 0.3)
    real = threading.Lock()

    def program(s: Scheduler) -> None:
        def wait() -> None:
            s.point("x")
            real.acquire()

        s.spawn("vcpu0", wait)
        s.spawn("vcpu1", s.point, "x")

    with real:
        failure = explore(program, schedules=1, shrink=False).failure
    assert failure
    assert failure.kind is Kind.NO_PROGRESS
    assert "vcpu0 has run for" in failure.report
    assert "real.acquire()" in failure.report


def test_a_thread_from_outside_is_refused() -> None:
    def program(s: Scheduler) -> None:
        def strange() -> None:
            with pytest.raises(InternalError, match="is no thread of this schedule"):
                s.point("x")
            refused.append(True)

        def use() -> None:
            thread = threading.Thread(target=strange)
            thread.start()
            thread.join()

        s.spawn("vcpu0", use)

    refused: list[bool] = []
    assert_holds(program, schedules=1)
    assert refused
