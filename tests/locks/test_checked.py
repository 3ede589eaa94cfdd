"""The checked variant reports whoever breaks the rules, and nobody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.errors import InternalError, LockOrderError
from vmm.locks import Device, Locking, Rank, entry, lockfree


class Model(Device):
    """A device whose doors run whatever a test hands them."""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._sync()

    @entry
    def run(self, inside: Callable[[], object]) -> object:
        return inside()

    @entry(reentrant="its registers are the target of its own DMA by specification")
    def run_again(self, inside: Callable[[], object]) -> object:
        return inside()

    @entry(posts=True)
    def post(self, call: Callable[[], object]) -> None:
        self._post(call)

    @entry
    def reset(self) -> None:
        self.run(self._sync)

    @lockfree("a mistake: it calls a private method")
    def peek(self) -> None:
        self._sync()

    def _sync(self) -> None:
        pass


class Chip(Model):
    lock_rank = Rank.IRQCHIP


class Bridge(Model):
    lock_class = "bridge of any kind"
    lock_children = ("Model",)


@pytest.fixture(params=["device", "bql"])
def locking(request: pytest.FixtureRequest) -> Locking:
    return Locking(request.param, checked=True)


def test_a_device_of_either_variant_looks_the_same(locking: Locking) -> None:
    model = locking.make(Model, "model0")
    assert isinstance(model, Model)
    assert (type(model).__module__, type(model).__qualname__) == (Model.__module__, Model.__qualname__)
    assert type(model) is type(locking.make(Model, "model1"))
    assert Locking().make(Model, "model2").__class__ is Model


def test_locks_taken_in_the_order_of_their_ranks_are_fine(locking: Locking) -> None:
    model, chip = locking.make(Model, "model0"), locking.make(Chip, "chip0")
    leaf = locking.lock("map", rank=Rank.LEAF)
    with locking.lock("lifecycle", rank=Rank.LIFECYCLE), locking.outside_guest:
        model.run(lambda: chip.run(leaf.__enter__))
        leaf.release()
    assert locking.checker is not None
    assert locking.checker.reports == []


def test_locks_taken_against_the_order_are_reported_with_both_stacks(locking: Locking) -> None:
    model, chip = locking.make(Model, "model0"), locking.make(Chip, "chip0")
    with pytest.raises(LockOrderError) as caught:
        chip.run(lambda: model.run(lambda: None))
    report = str(caught.value)
    assert "takes model0 (class Model, rank DEVICE) while it holds chip0 (class Chip, rank IRQCHIP)" in report
    assert "against LIFECYCLE < BQL < BUS < DEVICE" in report
    taken, wanted = report.split("model0 is wanted at")
    assert "chip0 was taken at" in taken
    assert "chip.run(lambda: model.run(lambda: None))" in wanted
    assert locking.checker is not None
    assert list(map(str, locking.checker.reports)) == [report]


def test_a_report_leaves_no_lock_behind(locking: Locking) -> None:
    model, chip = locking.make(Model, "model0"), locking.make(Chip, "chip0")
    with pytest.raises(LockOrderError):
        chip.run(lambda: model.run(lambda: None))
    with pytest.raises(LockOrderError), chip._lock, model._lock:
        pass
    assert {now.holder for now in locking.statistics()} == {None}
    assert model.run(lambda: 7) == 7


def test_entering_another_device_under_the_lock_is_reported_unless_declared(locking: Locking) -> None:
    model, other = locking.make(Model, "model0"), locking.make(Model, "model1")
    bridge = locking.make(Bridge, "bridge0")
    assert bridge.run(lambda: model.run(lambda: 7)) == 7
    with pytest.raises(LockOrderError, match="which does not declare it as a child"):
        model.run(lambda: other.run(lambda: None))
    with pytest.raises(LockOrderError, match=r"class bridge of any kind.* which does not declare it as a child"):
        model.run(lambda: bridge.run(lambda: None))


def test_a_private_method_without_the_lock_is_reported(locking: Locking) -> None:
    model = locking.make(Model, "model0")
    with pytest.raises(LockOrderError, match=r"runs Model\._sync of model0 without its lock"):
        model.peek()


def test_a_private_method_under_another_devices_door_is_reported(locking: Locking) -> None:
    model, other = locking.make(Model, "model0"), locking.make(Model, "model1")
    with pytest.raises(LockOrderError, match=r"runs Model\._sync of model1 without its lock"):
        model.run(other._sync)


def test_a_device_may_use_its_own_doors_from_inside(locking: Locking) -> None:
    locking.make(Model, "model0").reset()
    assert locking.checker is not None
    assert locking.checker.reports == []


def test_coming_back_from_outside_is_reported_unless_the_door_says_why_it_may(locking: Locking) -> None:
    model = locking.make(Model, "model0")

    def dma_into_own_registers() -> object:
        return model.run(lambda: None)

    with pytest.raises(LockOrderError, match=r"re-enters model0 by run from .*dma_into_own_registers"):
        model.run(dma_into_own_registers)
    assert model.run(lambda: model.run_again(lambda: 7)) == 7


def test_a_call_out_finds_nothing_held(locking: Locking) -> None:
    model, other = locking.make(Model, "model0"), locking.make(Model, "model1")
    heard: list[object] = []
    with locking.outside_guest:
        model.post(lambda: heard.append(other.run(lambda: 7)))
    assert heard == [7]


def test_a_call_out_under_the_lock_of_a_door_that_does_not_post_is_reported(locking: Locking) -> None:
    model, bridge = locking.make(Model, "model0"), locking.make(Bridge, "bridge0")
    with pytest.raises(LockOrderError, match=r"the door that took it must be @entry\(posts=True\)"):
        bridge.run(lambda: model.post(lambda: None))


def test_releasing_a_lock_of_somebody_else_is_reported(locking: Locking) -> None:
    with pytest.raises(LockOrderError, match=r"releases map .*, which it does not hold"):
        locking.lock("map").release()


def test_only_devices_have_a_checked_variant(locking: Locking) -> None:
    with pytest.raises(TypeError, match="is no Device"):
        locking.make(lambda name, locking: name, "not a device")


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InternalError, match="'none' is none of device, bql"):
        Locking("none")  # type: ignore[arg-type]
