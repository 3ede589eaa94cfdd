"""What the measured locks write down, alone and inside the checked ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from vmm.lockcheck import Checker
from vmm.locks import PLAIN, Device, Kit, Locking, Rank, entry, lockfree
from vmm.lockstat import LOCKED, PAUSED, Histogram, Meter, Stalls


class Model(Device):
    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._value = 0

    @entry
    def add(self, count: int) -> None:
        for _ in range(count):
            self._value += 1

    @entry
    def twice(self) -> None:
        self.add(1)
        self.add(1)

    @entry
    def run(self, inside: Callable[[], object]) -> object:
        return inside()

    @lockfree("takes the lock by hand")
    def by_hand(self) -> None:
        with self._lock:
            self._value += 1


@pytest.fixture(params=[False, True], ids=["alone", "inside a checker"])
def checked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def lock_of(meter: Meter, name: str) -> dict[str, Any]:
    return next(lock for lock in meter.report()["locks"] if lock["name"] == name)


def on_a_thread(name: str, work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join()


# -- histograms --------------------------------------------------------------------------------------------------------


def test_quantiles_are_at_most_an_eighth_too_long() -> None:
    histogram = Histogram()
    for ns in range(1, 10_001):
        histogram.add(ns)
    assert (histogram.count, histogram.total, histogram.longest) == (10_000, 50_005_000, 10_000)
    for share in (0.01, 0.5, 0.9, 0.99):
        assert share * 10_000 <= histogram.quantile(share) <= share * 10_000 * 1.125
    assert histogram.quantile(1) == 10_000


def test_an_empty_histogram_has_no_times() -> None:
    figures = {"count": 0, "total_ns": 0, "p50_ns": 0, "p99_ns": 0, "max_ns": 0, "buckets": []}
    assert Histogram().as_json(buckets=True) == figures


@pytest.mark.parametrize("ns", [0, 1, 7, 8, 15, 16, 17, 1000, 123_456_789, (1 << 44) - 1])
def test_each_time_is_in_the_bucket_that_says_so(ns: int) -> None:
    histogram = Histogram()
    histogram.add(ns)
    ((bound, count),) = histogram.as_json(buckets=True)["buckets"]
    assert count == 1
    assert ns <= bound <= ns * 1.125


def test_a_time_beyond_all_buckets_is_kept_as_the_longest() -> None:
    histogram = Histogram()
    histogram.add(1 << 50)
    assert histogram.longest == 1 << 50


def test_merged_histograms_are_as_one() -> None:
    apart, together = (Histogram(), Histogram()), Histogram()
    for ns in range(0, 5000, 7):
        apart[ns % 2].add(ns)
        together.add(ns)
    apart[0].merge(apart[1])
    assert apart[0].as_json(buckets=True) == together.as_json(buckets=True)


# -- locks -------------------------------------------------------------------------------------------------------------


def test_acquisitions_are_filed_by_door_and_by_line(checked: bool) -> None:
    meter = Meter()
    model = Locking(checked=checked, kit=meter).make(Model, "model0")
    model.add(1)
    model.add(1)
    model.by_hand()
    lock = lock_of(meter, "model0")
    assert (lock["class"], lock["rank"], lock["acquired"], lock["hold"]["count"]) == ("Model", "DEVICE", 3, 3)
    door, line = lock["sites"].items()
    assert (door[0], door[1]["acquired"]) == ("Model.add", 2)
    assert line[0].startswith("Model.by_hand (test_lockstat.py:")
    assert line[1]["acquired"] == 1


def test_only_the_outermost_acquisition_counts(checked: bool) -> None:
    meter = Meter()
    model = Locking(checked=checked, kit=meter).make(Model, "model0")
    model.twice()
    lock = lock_of(meter, "model0")
    assert (lock["acquired"], lock["nested"], list(lock["sites"])) == (1, 2, ["Model.twice"])


def test_a_thread_without_a_better_cause_counts_under_its_name_without_the_number() -> None:
    meter = Meter()
    model = Locking(kit=meter).make(Model, "model0")
    for name in ("worker0", "worker1", "lifecycle"):
        on_a_thread(name, lambda: model.add(1))
    causes = lock_of(meter, "model0")["causes"]
    assert {cause: counts["acquired"] for cause, counts in causes.items()} == {"worker": 2, "lifecycle": 1}


def test_a_hand_off_is_when_another_thread_held_it_last() -> None:
    meter = Meter()
    model = Locking(kit=meter).make(Model, "model0")
    for name in ("one", "two"):
        on_a_thread(name, lambda: (model.add(1), model.add(1)))  # type: ignore[func-returns-value]
    lock = lock_of(meter, "model0")
    assert (lock["handoffs"], lock["contended"]) == (1, 0)


def test_a_wait_is_laid_to_who_held_the_lock_and_where(checked: bool) -> None:
    meter = Meter()
    model = Locking(checked=checked, kit=meter).make(Model, "model0")
    waiter = threading.Thread(target=model.add, args=(1,), name="vcpu1")

    def hold() -> None:
        waiter.start()
        while not model._lock.statistics().waiters:
            pass

    on_a_thread("io", lambda: model.run(hold))
    waiter.join()
    lock = lock_of(meter, "model0")
    assert (lock["contended"], lock["handoffs"], lock["wait"]["count"]) == (1, 1, 1)
    (blocker,) = lock["blockers"]
    assert (blocker["thread"], blocker["site"], blocker["count"]) == ("io", "Model.run", 1)
    assert 0 < blocker["max_ns"] == lock["wait"]["max_ns"]


def test_the_big_lock_shows_what_it_was_taken_for_and_its_devices_who_was_entered(checked: bool) -> None:
    meter = Meter()
    locking = Locking("bql", checked=checked, kit=meter)
    model, other = locking.make(Model, "model0"), locking.make(Model, "model1")
    with locking.outside_guest:
        model.add(1)
        other.add(1)
    other.add(1)
    big = lock_of(meter, "bql")
    assert (big["acquired"], big["nested"]) == (2, 2)
    assert "Model.add" in big["sites"]
    assert [(lock_of(meter, name)["acquired"], lock_of(meter, name)["around"]) for name in ("model0", "model1")] == [
        (1, "bql"),
        (2, "bql"),
    ]
    assert meter.report()["classes"]["Model"]["acquired"] == 3
    assert [lock["name"] for lock in meter.report()["locks"]] == ["bql", "model0", "model1"]


def test_a_wait_for_the_big_lock_is_laid_to_its_holder_at_both(checked: bool) -> None:
    meter = Meter()
    locking = Locking("bql", checked=checked, kit=meter)
    model, other = locking.make(Model, "model0"), locking.make(Model, "model1")
    waiter = threading.Thread(target=model.add, args=(1,), name="vcpu1")

    def hold() -> None:
        waiter.start()
        while not locking.big.statistics().waiters:
            pass

    on_a_thread("io", lambda: other.run(hold))
    waiter.join()
    for name in ("bql", "model0"):
        (blocker,) = lock_of(meter, name)["blockers"]
        assert (blocker["thread"], blocker["site"]) == ("io", "Model.run")


def test_no_count_is_lost_between_threads() -> None:
    meter = Meter()
    model = Locking(kit=meter).make(Model, "model0")

    def many() -> None:
        for _ in range(2000):
            model.add(1)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lock = lock_of(meter, "model0")
    assert lock["acquired"] == lock["hold"]["count"] == model._value == 8000
    assert lock["contended"] == lock["wait"]["count"] == model._lock.statistics().contended
    assert lock["handoffs"] >= 3


def test_a_failed_try_counts_nothing_and_leaves_nothing() -> None:
    meter = Meter()
    lock = meter.lock("map")
    taken: list[bool] = []
    with lock:
        on_a_thread("other", lambda: taken.append(lock.acquire(False)))
        on_a_thread("patient", lambda: taken.append(lock.acquire(timeout=0.001)))
    assert taken == [False, False]
    assert lock_of(meter, "map")["acquired"] == 1
    assert repr(lock) == "<MeteredLock 'map' of class map, LEAF: free>"


def test_a_lock_that_the_thread_does_not_hold_cannot_be_released() -> None:
    with pytest.raises(RuntimeError, match="cannot release map"):
        Meter().lock("map").release()


def test_locks_that_come_and_go_under_one_name_share_one_record() -> None:
    meter = Meter()
    for _ in range(3):
        with meter.lock("hotplugged"):
            pass
    (lock,) = meter.report()["locks"]
    assert lock["acquired"] == 3


def test_a_holder_is_named_while_it_holds(checked: bool) -> None:
    meter = Meter()
    model = Locking(checked=checked, kit=meter).make(Model, "model0")
    assert f"held by {threading.current_thread().name} (depth 1)" in str(model.run(lambda: repr(model._lock)))


def test_a_meter_is_found_inside_a_checker() -> None:
    meter = Meter()
    assert Locking(checked=True, kit=meter).kit.meter is meter
    assert Locking(kit=meter).kit.meter is meter
    assert Locking(checked=True).kit.meter is None
    assert Locking().kit.meter is None


# -- waits and stalls --------------------------------------------------------------------------------------------------


def test_waits_for_progress_are_timed_by_name() -> None:
    meter = Meter()
    for _ in range(2):
        with meter.progress("the gate").serving(), meter.progress("the gate").waiting():
            pass
    assert meter.report()["waits"]["the gate"]["count"] == 2
    assert meter.here.activity.paused_ns == meter.report()["waits"]["the gate"]["total_ns"]


def test_a_stall_is_split_into_waits_and_the_exit_itself() -> None:
    stalls = Stalls("vcpu0")
    stalls.add("exit SBI", total=100, locked=60, paused=0)
    stalls.add("exit KICK", total=1000, locked=0, paused=990)
    assert (stalls.whole.count, stalls.whole.total) == (2, 1100)
    assert {cause: part.total for cause, part in stalls.parts.items()} == {
        LOCKED: 60,
        "exit SBI": 40,
        PAUSED: 990,
        "exit KICK": 10,
    }


def test_a_lock_that_is_no_device_s_is_measured_too() -> None:
    meter = Meter()
    with Locking(kit=meter).lock("map", rank=Rank.LEAF):
        pass
    assert lock_of(meter, "map")["acquired"] == 1


@pytest.mark.parametrize(
    "kit", [PLAIN, Meter(), Checker(), Checker(Meter())], ids=["plain", "metered", "checked", "both"]
)
def test_progress_names_who_waits_for_it(kit: Kit) -> None:
    progress = kit.progress("the ball")
    me = threading.current_thread().name
    with progress.waiting():
        assert progress.statistics().waiters == (me,)
        assert repr(progress).endswith(f"Progress the ball: {me} waiting>")
    assert repr(progress).endswith("Progress the ball>")
