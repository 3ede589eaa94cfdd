"""The bare-metal checks on our machine. `tests/guests/test_programs.py` holds them against QEMU."""

from __future__ import annotations

import re

import pytest

from tests.guests.qemu import needs_cross_compiler
from tests.machines import Machines
from tests.programs.build import CHECKS, program
from vmm.bql import Policy
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome, Reason

pytestmark = needs_cross_compiler

#: Programs that have something to say only with so many harts; the others use hart 0.
HARTS = {"litmus": (2, 4), "atomics": (1, 2, 4), "smc": (1, 2, 4), "interrupts": (1, 3)}


def passes(boot: Machines, name: str, harts: int, locking: Policy) -> None:
    machine = boot(Config(bios=program(name), smp=harts, locking=locking, check_locks=True))
    outcome = machine.wait(100)
    assert re.search(r"[1-9]\d* passed, 0 failed", machine.serial.text), machine.serial.text
    assert outcome == Outcome(Reason.POWER_OFF)


@pytest.mark.parametrize(("name", "harts"), [(name, harts) for name in CHECKS for harts in HARTS.get(name, (1,))])
def test_a_check_passes(boot: Machines, name: str, harts: int) -> None:
    passes(boot, name, harts, "device")


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_under_the_big_lock(boot: Machines, name: str) -> None:
    passes(boot, name, HARTS.get(name, (1,))[-1], "bql")


@pytest.mark.stress
@pytest.mark.parametrize("name", ["atomics", "interrupts", "litmus", "smc"])
def test_a_check_with_harts_that_race_passes_again_and_again(boot: Machines, name: str) -> None:
    for _ in range(3):
        passes(boot, name, 4, "device")
