"""Disks that come and go under Linux. It is told by hand, since virtio-mmio has no interrupt for it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.boot.linux import POWER_OFF, REPLY_S, Shell, shell
from tests.machines import Machines
from vmm.bql import Policy
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Balloon, Drive, Rng
from vmm.machine.lifecycle import State
from vmm.machine.machine import Machine

SIZE = 4 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def image(path: Path, seed: int) -> tuple[Drive, str]:
    data = random.Random(seed).randbytes(SIZE)
    path.write_bytes(data)
    return Drive(path, id=path.name), hashlib.sha256(data).hexdigest()


def drive_of(run: Shell, slot: int, verb: str) -> None:
    run(f"echo {0x1000_1000 + 0x1000 * slot:x}.virtio_mmio > /sys/bus/platform/drivers/virtio-mmio/{verb}")


def disks(run: Shell) -> dict[str, str]:
    """SHA-256 by serial number, of all disks that Linux has."""
    lines = run(
        "for disk in /sys/block/vd*; do [ -e $disk/serial ] || continue;"
        "echo $(cat $disk/serial) $(sha256sum /dev/${disk##*/}); done"
    ).splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def exchange(machine: Machine, run: Shell, slot: int, new: Drive) -> None:
    drive_of(run, slot, "unbind")
    machine.unplug(slot)
    machine.plug(new, slot)
    drive_of(run, slot, "bind")


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_linux_reads_what_was_plugged_and_writes_to_it(
    boot: Machines, guest: DebianGuest, tmp_path: Path, locking: Policy
) -> None:
    (first, first_sum), (second, second_sum), (third, third_sum) = (image(tmp_path / f"d{n}", n) for n in range(3))
    machine = boot(shell(guest, smp=2, drive=(first,), locking=locking, check_locks=True))
    run = Shell(machine)
    assert disks(run) == {"d0": first_sum}

    exchange(machine, run, 0, second)
    assert disks(run) == {"d1": second_sum}

    slot = machine.plug(third, 6)  # was empty when Linux looked
    drive_of(run, slot, "bind")
    assert disks(run) == {"d1": second_sum, "d2": third_sum}

    written = run(
        "dd if=/dev/urandom of=/tmp/m bs=64k count=4 2>/dev/null;"
        "for disk in /dev/vd?; do dd if=/tmp/m of=$disk bs=64k seek=8 conv=notrunc,fsync 2>/dev/null; done;"
        "sha256sum /tmp/m"
    ).split()[0]
    for _ in range(5):  # the same ones, in each other's place
        drive_of(run, 0, "unbind")
        drive_of(run, 6, "unbind")
        machine.unplug(0)
        machine.unplug(6)
        machine.plug(third, 0)
        machine.plug(second, 6)
        drive_of(run, 0, "bind")
        drive_of(run, 6, "bind")
    for drive in (second, third):
        content = drive.file.read_bytes()
        assert hashlib.sha256(content[8 << 16 : 12 << 16]).hexdigest() == written
        assert disks(run)[drive.id] == hashlib.sha256(content).hexdigest()

    machine.plug(Rng(), 4)
    drive_of(run, 4, "bind")
    assert "virtio_rng.1" in run("cat /sys/class/misc/hw_random/rng_available")
    run.type("poweroff -f")
    assert machine.wait(REPLY_S) == POWER_OFF


def test_a_disk_that_is_torn_out_under_load_takes_nothing_else_with_it(
    boot: Machines, guest: DebianGuest, tmp_path: Path
) -> None:
    drive, _ = image(tmp_path / "d0", 0)
    machine = boot(shell(guest, smp=2, drive=(drive,), check_locks=True))
    run = Shell(machine)
    run.type("while dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done &")
    run("cat /proc/uptime")
    machine.unplug(0)
    for _ in range(3):
        run("dd if=/dev/hwrng of=/dev/null bs=512 count=8 2>/dev/null")
        machine.pause()
        machine.resume()
        machine.unplug(machine.plug(Balloon(), 0))
    assert machine.state is State.RUNNING
    machine.reset()
    Shell(machine)
