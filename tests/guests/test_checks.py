"""The bare-metal checks on this machine: traps, interrupts, page tables, PMP, code that changes, memory order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.guests import qemu
from tests.programs.build import CHECKS, program
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome, Reason
from vmm.machine.machine import Machine

pytestmark = qemu.needs_cross_compiler

HARTS = {"litmus": 2, "interrupts": 3, "atomics": 2, "smc": 2}


def passes(name: str, seconds: float = 100, **more: Any) -> None:
    """The program prints PASS lines and no other kind, and powers off with code 0."""
    with Machine(Config(bios=program(name), **{"smp": HARTS.get(name, 1), "check_locks": True, **more})) as machine:
        machine.start()
        outcome = machine.wait(seconds)
        lines = machine.serial.text.splitlines()
    assert not [line for line in lines if line.startswith("FAIL")], machine.serial.text
    assert outcome == Outcome(Reason.POWER_OFF), machine.serial.text
    assert sum(line.startswith("PASS") for line in lines) > 8


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes(name: str) -> None:
    passes(name)


def test_page_tables_are_right_where_hardware_sets_accessed_and_dirty() -> None:
    passes("paging", svadu=True)


@pytest.mark.parametrize("name", ["interrupts", "atomics"])
def test_a_check_passes_under_the_big_lock(name: str) -> None:
    passes(name, locking="bql")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["litmus", "atomics", "smc", "interrupts"])
def test_a_check_passes_on_four_harts(name: str) -> None:
    passes(name, seconds=300, smp=4)
