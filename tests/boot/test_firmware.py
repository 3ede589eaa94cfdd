"""Firmware in machine mode: OpenSBI alone, OpenSBI with Linux, and the demo that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.linux import booted, report
from tests.machines import Machines
from vmm.bql import Policy
from vmm.guests import demo
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome, Reason

OPENSBI = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic")
needs_opensbi = pytest.mark.skipif(not OPENSBI.exists(), reason=f"{OPENSBI} is not installed (Debian: opensbi)")


@needs_opensbi
@pytest.mark.parametrize("name", ["fw_jump.bin", "fw_jump.elf", "fw_dynamic.elf"])
@pytest.mark.parametrize("harts", [1, 4])
def test_opensbi_comes_up_on_all_harts(boot: Machines, name: str, harts: int) -> None:
    machine = boot(Config(bios=OPENSBI / name, smp=harts, check_locks=True))
    machine.serial.expect(rf"Platform HART Count +: {harts}\r?\n", 60)
    machine.serial.expect("Boot HART MEDELEG", 60)


@needs_opensbi
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "harts", "locking"),
    [("fw_dynamic.bin", 4, "device"), ("fw_dynamic.elf", 1, "bql"), ("fw_jump.elf", 2, "bql")],
)
def test_opensbi_boots_debian(boot: Machines, guest: DebianGuest, name: str, harts: int, locking: Policy) -> None:
    machine = boot(report(guest, smp=harts, locking=locking, bios=OPENSBI / name))
    machine.serial.expect(rf"Platform HART Count +: {harts}\r?\n", 60)
    machine.serial.expect("SBI implementation ID=0x1 ", 100)
    booted(machine, harts)


@pytest.mark.parametrize("locking", ["device", "bql"])
@pytest.mark.parametrize("harts", [1, 4])
def test_the_demo_finds_nothing_wrong_with_the_devices(boot: Machines, locking: Policy, harts: int) -> None:
    machine = boot(Config(bios=demo.PROGRAM, smp=harts, locking=locking, check_locks=True))
    assert machine.wait(100) == Outcome(Reason.POWER_OFF), machine.serial.text
    assert "PASS: powering off" in machine.serial.text
