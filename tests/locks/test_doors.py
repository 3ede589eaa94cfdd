"""Doors, call-outs and policies of the plain variant."""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vmm.errors import InternalError
from vmm.locks import Device, DeviceLock, Locking, Rank, entry, lockfree
from vmm.state import DeviceState


@dataclass(slots=True)
class State(DeviceState):
    value: int = 0


class Counter(Device):
    """Counts, and tells a listener what it counted once it is out of its lock."""

    State = State

    def __init__(self, name: str, locking: Locking, *, heard: Callable[[int], object] = lambda value: None) -> None:
        super().__init__(name, locking)
        self._heard = heard
        self._state = self.State()

    @entry
    def add(self, amount: int, /, times: int = 1, *rest: int, scale: int = 1, **more: int) -> int:
        """Add to the count."""
        self._state.value += (amount * times + sum(rest) + sum(more.values())) * scale
        return self._state.value

    @entry(posts=True)
    def tell(self, value: int) -> None:
        self._post(self._heard, value)

    @entry(posts=True)
    def tell_twice(self, value: int) -> None:
        self.tell(value)
        self.tell(value + 1)

    @entry(posts=True)
    def tell_and_fail(self, *values: int) -> None:
        for value in values:
            self._post(self._heard, value)
        raise ValueError("after posting")

    @entry
    def tell_from_a_door_that_does_not_post(self) -> None:
        self._post(self._heard, 0)

    @entry
    def fail(self) -> None:
        raise ValueError("inside")

    @lockfree("reads one reference")
    def held(self) -> bool:
        return self._lock.held()

    @property
    @lockfree("never changes")
    def lock(self) -> DeviceLock:
        return self._lock


def make(heard: Callable[[int], object] = lambda value: None, policy: str = "device") -> Counter:
    return Locking(policy).make(Counter, "counter0", heard=heard)  # type: ignore[arg-type]


def test_a_door_keeps_the_signature_of_its_method() -> None:
    signature = inspect.signature(Counter.add)
    assert str(signature) == (
        "(self, amount: 'int', /, times: 'int' = 1, *rest: 'int', scale: 'int' = 1, **more: 'int') -> 'int'"
    )
    assert Counter.add.__doc__ == "Add to the count."
    counter = make()
    assert counter.add(1) == 1
    assert counter.add(2, 3, 4, scale=2, five=5) == 31


def test_a_wrong_call_is_refused_as_the_method_itself_would() -> None:
    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'amount'"):
        make().add()  # type: ignore[call-arg]


def test_a_door_holds_the_lock_and_frees_it_when_the_body_raises() -> None:
    counter = make()
    with pytest.raises(ValueError, match="inside") as caught:
        counter.fail()
    assert not counter.held()
    assert "return __body(self)" in "".join(traceback.format_exception(caught.value))


def test_a_call_out_goes_after_the_lock_is_free() -> None:
    held: list[bool] = []
    counter = make(heard=lambda value: held.append(counter.held()))
    counter.tell(1)
    assert held == [False]


def test_call_outs_wait_for_the_outermost_door_and_keep_their_order() -> None:
    heard: list[tuple[int, bool]] = []
    counter = make(heard=lambda value: heard.append((value, counter.held())))
    counter.tell_twice(7)
    assert heard == [(7, False), (8, False)]


def test_call_outs_wait_for_the_lock_of_the_device_above() -> None:
    class Above(Device):
        def __init__(self, name: str, locking: Locking, below: Counter) -> None:
            super().__init__(name, locking)
            self._below = below

        @entry(posts=True)
        def pass_on(self) -> None:
            self._below.tell(1)
            assert heard == []

        @lockfree("asks about the caller")
        def held(self) -> bool:
            return self._lock.held()

    heard: list[bool] = []
    above = Locking().make(Above, "above", make(heard=lambda value: heard.append(above.held())))
    above.pass_on()
    assert heard == [False]


def test_what_a_call_out_posts_runs_after_those_already_queued_on_a_flat_stack() -> None:
    heard: list[int] = []
    depths: list[int] = []

    def hear(value: int) -> None:
        heard.append(value)
        depths.append(len(inspect.stack(0)))
        if value < 100:
            counter.tell(value + 10)

    counter = make(heard=hear)
    counter.tell_twice(0)
    assert heard[:6] == [0, 1, 10, 11, 20, 21]
    assert heard[-2:] == [100, 101]
    assert len(set(depths)) == 1


def test_call_outs_go_out_when_the_body_raises() -> None:
    heard: list[int] = []
    with pytest.raises(ValueError, match="after posting"):
        make(heard=heard.append).tell_and_fail(1, 2)
    assert heard == [1, 2]


def test_a_call_out_that_raises_does_not_swallow_those_behind_it() -> None:
    heard: list[int] = []

    def hear(value: int) -> None:
        if value == 7:
            raise RuntimeError("a bad listener")
        heard.append(value)

    counter = make(heard=hear)
    with pytest.raises(RuntimeError, match="a bad listener"):
        counter.tell_twice(7)
    assert heard == [8]
    counter.tell(9)
    assert heard == [8, 9]


def test_posting_from_a_door_that_does_not_post_is_an_error() -> None:
    with pytest.raises(InternalError, match=r"outside a door marked @entry\(posts=True\)"):
        make().tell_from_a_door_that_does_not_post()


@pytest.mark.parametrize(
    "attribute",
    [
        lambda self: 0,
        property(lambda self: 0),
        staticmethod(lambda: 0),
        classmethod(lambda cls: 0),
    ],
    ids=["method", "property", "static method", "class method"],
)
def test_an_unmarked_public_method_is_refused_when_the_class_is_made(attribute: object) -> None:
    with pytest.raises(TypeError, match=r"Sloppy\.read is public: mark it @entry or @lockfree"):
        type("Sloppy", (Device,), {"read": attribute})


def test_an_unmarked_public_method_of_a_mixin_is_refused_too() -> None:
    class Mixin:
        def read(self) -> int:
            return 0

    with pytest.raises(TypeError, match=r"Mixin\.read is public"):
        type("Sloppy", (Mixin, Device), {})


def test_data_and_nested_classes_need_no_mark() -> None:
    type("Fine", (Device,), {"registers": (1, 2), "State": State, "_private": lambda self: 0})


def test_a_lockfree_method_needs_a_reason() -> None:
    with pytest.raises(TypeError, match="needs its reason"):
        lockfree("")
    with pytest.raises(TypeError, match="needs its reason"):
        lockfree(lambda self: 0)  # type: ignore[arg-type]


def test_a_generator_cannot_be_a_door() -> None:
    with pytest.raises(TypeError, match="would run after @entry had released the lock"):

        @entry
        def rows(self: Device) -> object:
            yield self


def test_under_the_device_policy_each_device_has_a_lock_of_its_class_and_rank() -> None:
    class Chip(Counter):
        lock_rank = Rank.IRQCHIP

    locking = Locking("device")
    first, second = locking.make(Chip, "chip0"), locking.make(Chip, "chip1")
    assert first.lock is not second.lock
    assert (first.lock.name, first.lock.lock_class, first.lock.rank) == ("chip0", "Chip", Rank.IRQCHIP)
    with locking.outside_guest:
        assert not locking.big.held()


def test_under_the_big_lock_policy_all_devices_and_host_threads_share_one_lock() -> None:
    locking = Locking("bql")
    first, second = locking.make(Counter, "counter0"), locking.make(Counter, "counter1")
    assert first.lock is second.lock is locking.big
    with locking.outside_guest:
        assert first.held()
        assert first.add(1) == 1
    assert not first.held()
    assert locking.lock("ring", rank=Rank.LEAF) is not locking.big


@pytest.mark.parametrize("policy", ["device", "bql"])
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_doors_exclude_each_other_and_lose_no_update(policy: str, checked: bool) -> None:
    counter = Locking(policy, checked).make(Counter, "counter0")  # type: ignore[arg-type]
    threads = [threading.Thread(target=lambda: [counter.add(1) for _ in range(5_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.add(0) == 20_000
    assert not counter.held()
