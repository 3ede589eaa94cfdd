"""Each device of the board under schedules of all its doors."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module

import pytest

from tests.schedules import devices
from vmm import machine
from vmm.devices.virtio.queue import Virtqueue
from vmm.fabric.inflight import InFlight
from vmm.locks import Device
from vmm.testing.schedule import Scheduler, assert_holds, explore

Program = Callable[[Scheduler], None]


def named(program: Program) -> str:
    return program.__name__


def test_every_device_of_the_board_has_a_program() -> None:
    """Those that `vmm.machine` names: no other part does."""
    modules = [import_module(f"vmm.machine.{found.name}") for found in pkgutil.iter_modules(machine.__path__)]
    named = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    assert {one for one in named if issubclass(one, Device) and "kind" in vars(one)} == set(devices.PROGRAMS)


@pytest.mark.parametrize("program", devices.ALL, ids=named)
def test_a_device_holds_under_a_hundred_schedules(program: Program) -> None:
    result = assert_holds(program, strategy="pct", depth=3, schedules=100)
    assert result.schedules == 100


@pytest.mark.stress
@pytest.mark.parametrize("strategy", ["random", "pct"])
@pytest.mark.parametrize("program", devices.ALL, ids=named)
def test_a_device_holds_under_many_schedules(program: Program, strategy: str, schedules: int, seed: int) -> None:
    assert_holds(program, strategy=strategy, depth=3, schedules=schedules, seed=seed)


@pytest.mark.parametrize("program", [devices.blk_reset, devices.blk_quiesce, devices.rng_reset], ids=named)
def test_a_reset_that_does_not_wait_for_copies_in_flight_is_found(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs are no formality: break what they rest on, and they notice."""
    monkeypatch.setattr(InFlight, "wait", lambda self, timeout: True)
    assert explore(program, strategy="pct", depth=3, schedules=500, shrink=False).failure


def test_an_interrupt_that_is_lost_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that looks whether the driver wants one before it has published what it has done."""
    complete = Virtqueue.complete

    def early(self: Virtqueue, done: Sequence[tuple[int, int]]) -> bool:
        s = self.state
        event = self._dma.u16(s.driver + 4 + 2 * s.size)
        old = s.next_used
        complete(self, done)
        return (s.next_used - event - 1) & 0xFFFF < (s.next_used - old) & 0xFFFF

    monkeypatch.setattr(Virtqueue, "complete", early)
    failure = explore(devices.rng_interrupts, strategy="pct", depth=3, schedules=1000).failure
    assert failure
    assert "the driver sleeps, and chains wait for it" in failure.report
