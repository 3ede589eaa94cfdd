"""Debian under each policy, with its locks measured: who takes the big one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.boot.linux import INIT_S, POWER_OFF, REPLY_S, script
from tests.machines import Machines
from vmm.bql import Policy
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORK = """\
dd if=/dev/vda of=/dev/null bs=64k count=64 2>/dev/null
dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null
dd if=/dev/hwrng of=/dev/null bs=1k count=4 2>/dev/null
echo hello >/dev/hvc0
hwclock -r >/dev/null
"""
DEVICES = ("balloon", "console", "disk0", "rng", "rtc", "uart")
OTHERS = {"lifecycle", "worker", "MainThread"}
"""Causes that are no VCPU's, I/O thread's or timer's."""


def locks(machine: Any) -> dict[str, dict[str, Any]]:
    return {lock["name"]: lock for lock in machine.lock_statistics()["locks"]}


def inner(lock: dict[str, Any]) -> int:
    """Acquisitions by VCPU, I/O and timer threads."""
    return sum(counts["acquired"] for cause, counts in lock["causes"].items() if cause not in OTHERS)


@pytest.mark.parametrize("policy", ["device", "bql"])
def test_vcpu_io_and_timer_threads_take_the_big_lock_under_its_own_policy_alone(
    boot: Machines, guest: DebianGuest, policy: Policy
) -> None:
    disk = Drive(guest.scratch_disk(), snapshot=True)
    machine = boot(
        script(guest, WORK, smp=2, locking=policy, lock_stat=True, drive=(disk,), console="null", balloon=True)
    )
    machine.serial.expect("vmm: init reached", INIT_S)
    before = locks(machine)
    assert machine.wait(REPLY_S) == POWER_OFF
    after = locks(machine)
    for name in DEVICES:
        assert inner(after[name]) > inner(before[name]), f"{name} was not used"
    taken = inner(after["bql"]) - inner(before["bql"])
    if policy == "device":
        assert taken == 0
        assert after["bql"]["acquired"] == 0
    else:
        assert all(after[name]["around"] == "bql" for name in DEVICES)
        causes = after["bql"]["causes"]
        assert {"exit MMIO_READ", "exit MMIO_WRITE", "exit SBI", "io", "lifecycle"} <= causes.keys()
        exits = sum(counts["acquired"] for cause, counts in causes.items() if cause.startswith("exit"))
        stalls = machine.lock_statistics()["outside_guest"].values()
        assert exits >= sum(stall["count"] for stall in stalls) > 0  # each exit takes it, those without a return too
