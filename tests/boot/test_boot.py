"""Whole guests on whole machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.boot.conftest import MEM, Boot
from tests.cli.programs import SPIN, program
from vmm.guests import demo
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Config, Drive
from vmm.machine.lifecycle import Outcome, Reason, State
from vmm.machine.machine import Machine

OPENSBI = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic")
POWER_OFF = Outcome(Reason.POWER_OFF)
SHELL = r"~ # "


def debian_config(guest: DebianGuest, append: str, **more: object) -> Config:
    return Config(kernel=guest.kernel, initrd=guest.initrd, append=append, mem=MEM, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("harts", "locking", "check"), [(1, "device", False), (2, "bql", False), (2, "device", True), (4, "device", False)]
)
def test_debian_boots_reports_and_powers_off(
    boot: Boot, debian_guest: DebianGuest, harts: int, locking: str, check: bool
) -> None:
    machine = boot(
        debian_config(debian_guest, debian_guest.report_append, smp=harts, locking=locking, check_locks=check)
    )
    machine.serial.expect("init reached", 100)
    assert machine.serial.expect(rf"cpus: +{harts} x (\S+), sv48", 60)[1].startswith(b"rv64imafdc_")
    assert machine.wait(60) == POWER_OFF


def test_a_reset_and_a_pause_in_the_middle_of_booting_do_no_harm(boot: Boot, debian_guest: DebianGuest) -> None:
    machine = boot(debian_config(debian_guest, debian_guest.report_append, smp=2))
    machine.serial.expect("Linux version", 60)
    machine.reset()
    machine.serial.expect("Linux version", 60)
    machine.pause()
    assert machine.state is State.PAUSED
    machine.resume()
    machine.serial.expect("init reached", 100)
    assert machine.wait(60) == POWER_OFF


def test_a_disk_keeps_what_a_guest_wrote_over_its_reboot(boot: Boot, debian_guest: DebianGuest, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(8 << 20))
    machine = boot(debian_config(debian_guest, debian_guest.default_append, smp=2, drive=(Drive(disk),)))
    machine.serial.expect(SHELL, 100)
    machine.serial.send("echo written by the guest | dd of=/dev/vda bs=512 conv=sync && sync && reboot -f\n")
    machine.serial.expect("Linux version", 60)
    machine.serial.expect(SHELL, 100)
    machine.serial.send("dd if=/dev/vda bs=512 count=1 | tr -d '\\0' | rev\n")
    machine.serial.expect("tseug eht yb nettirw", 60)
    machine.serial.send("poweroff -f\n")
    assert machine.wait(60) == POWER_OFF
    assert disk.read_bytes().startswith(b"written by the guest\n")


@pytest.mark.skipif(not OPENSBI.exists(), reason="opensbi is not installed")
def test_opensbi_boots_debian(boot: Boot, debian_guest: DebianGuest) -> None:
    bios = OPENSBI / "fw_dynamic.bin"
    machine = boot(debian_config(debian_guest, debian_guest.report_append, smp=2, bios=bios))
    machine.serial.expect(r"Platform HART Count +: 2", 60)
    machine.serial.expect("SBI implementation ID=0x1 ", 60)
    machine.serial.expect("init reached", 100)
    assert machine.wait(60) == POWER_OFF


@pytest.mark.skipif(not OPENSBI.exists(), reason="opensbi is not installed")
@pytest.mark.parametrize("name", ["fw_jump.bin", "fw_jump.elf"])
def test_other_forms_of_opensbi_come_up(boot: Boot, name: str) -> None:
    boot(Config(bios=OPENSBI / name)).serial.expect("Boot HART ID", 60)


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_the_demo_finds_nothing_wrong_with_the_devices(boot: Boot, locking: str) -> None:
    machine = boot(Config(bios=demo.PROGRAM, smp=4, locking=locking, check_locks=True))  # type: ignore[arg-type]
    assert machine.wait(100) == POWER_OFF
    assert "PASS" in machine.serial.text


def test_a_vcpu_thread_that_dies_stops_the_machine_with_registers_and_stack(boot: Boot, tmp_path: Path) -> None:
    class Broken:
        def read(self, offset: int, size: int) -> int:
            raise ValueError("a defect")

        def write(self, offset: int, size: int, value: int) -> None: ...

    load = [0x5000_02B7, 0x0002_A303]  # lui t0, 0x50000; lw t1, 0(t0)
    machine = Machine(Config(bios=program(tmp_path, load, SPIN), smp=2))
    with machine:
        machine._board.bus.map(0x5000_0000, 0x1000, Broken(), "broken")
        machine.start()
        outcome = machine.wait(60)
    assert outcome is not None
    assert outcome.reason is Reason.FAILED
    for words in ("vcpu", "0x0000000080000004", "0000000050000000", "ValueError: a defect"):
        assert words in outcome.report


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_four_harts_boot_many_times_in_a_row(boot: Boot, debian_guest: DebianGuest) -> None:
    """VMM_BOOTS says how many times, 20 unless it is set."""
    for _ in range(int(os.environ.get("VMM_BOOTS", "20"))):
        machine = boot(debian_config(debian_guest, debian_guest.report_append, smp=4))
        machine.serial.expect("init reached", 100)
        assert machine.wait(60) == POWER_OFF
