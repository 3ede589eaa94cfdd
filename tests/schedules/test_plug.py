"""Plug and unplug under schedules of VCPUs, the lifecycle, the I/O thread and a worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.schedules import plug
from vmm.fabric.bus import Bus
from vmm.testing.schedule import Scheduler, assert_holds, explore

Program = Callable[[Scheduler], None]


def named(program: Program) -> str:
    return program.__name__


@pytest.mark.parametrize("program", plug.ALL, ids=named)
def test_devices_come_and_go_under_a_hundred_schedules(program: Program) -> None:
    assert_holds(program, strategy="pct", depth=3, schedules=100)


@pytest.mark.stress
@pytest.mark.parametrize("strategy", ["random", "pct"])
@pytest.mark.parametrize("program", plug.ALL, ids=named)
def test_devices_come_and_go_under_many_schedules(program: Program, strategy: str, schedules: int, seed: int) -> None:
    assert_holds(program, strategy=strategy, depth=3, schedules=schedules, seed=seed)


def test_giving_back_before_every_vcpu_has_let_go_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bus, "retire", lambda self, reclaim: reclaim())
    failure = explore(plug.unplugged_under_two_vcpus, strategy="pct", depth=3, schedules=1000).failure
    assert failure
    assert "Bad file descriptor" in failure.report
