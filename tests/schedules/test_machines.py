"""The life of a machine under schedules: pause, reset, stop, plug, unplug."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.schedules import machines
from vmm.fabric.bus import Bus
from vmm.machine.virt import Board
from vmm.testing.schedule import Scheduler, assert_holds, explore
from vmm.vcpu.thread import Gate, VcpuThread

Program = Callable[[Scheduler], None]


def named(program: Program) -> str:
    return program.__name__


@pytest.mark.parametrize("program", machines.ALL, ids=named)
def test_a_machine_holds_under_schedules(program: Program) -> None:
    assert_holds(program, strategy="pct", depth=3, schedules=25)


@pytest.mark.stress
@pytest.mark.parametrize("strategy", ["random", "pct"])
@pytest.mark.parametrize("program", machines.ALL, ids=named)
def test_a_machine_holds_under_many_schedules(program: Program, strategy: str, schedules: int, seed: int) -> None:
    assert_holds(program, strategy=strategy, depth=3, schedules=schedules, seed=seed)


# -- the programs are no formality: break what they rest on, and they notice -------------------------------------------


def test_a_pause_that_does_not_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Gate, deadline: float = 10.0) -> None:
        with self._changed:
            self._closers += 1
            for thread in self._threads:
                thread.vcpu.kick()

    monkeypatch.setattr(Gate, "close", close)
    failure = explore(machines.pause_and_resume, strategy="random", schedules=100, shrink=False).failure
    assert failure
    assert "a hart runs while the machine is paused" in failure.report


def test_a_kick_that_is_lost_between_look_and_sleep_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that looks at whether it is open without its lock."""

    def enter(self: Gate, thread: VcpuThread) -> bool:
        self.kit.point("gate read")
        if self._closers or thread.parked:
            with self._changed:
                if not self._ended:
                    self._changed.wait()
        with self._changed:
            self._inside += 1
        return not self._ended

    monkeypatch.setattr(Gate, "enter", enter)
    assert explore(machines.pause_and_resume, depth=3, schedules=300, shrink=False).failure


def test_memory_that_is_given_back_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bus, "retire", lambda self, reclaim: reclaim())
    failure = explore(machines.map_and_access, depth=3, schedules=300, shrink=False).failure
    assert failure
    assert "an access to what has been given back" in failure.report


def test_a_reset_that_leaves_the_harts_running_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "pause", lambda self: None)
    monkeypatch.setattr(Board, "resume", lambda self: None)
    assert explore(machines.reset_while_harts_start, depth=3, schedules=300, shrink=False).failure
