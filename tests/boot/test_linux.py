"""Debian's stock kernel boots, on any number of harts and under both policies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.boot.linux import INIT_S, booted, report
from tests.machines import Machines
from vmm.guests.debian import DebianGuest
from vmm.machine.lifecycle import Outcome, Reason, State

POLICIES = ("device", "bql")


@pytest.mark.timeout(400)
def test_debian_boots_reports_and_powers_off(boot: Machines, guest: DebianGuest) -> None:
    booted(boot(report(guest, smp=2)), 2)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("harts", "how"),
    [
        (1, {"locking": "device", "check_locks": True}),
        (1, {"locking": "bql"}),
        (2, {"locking": "bql", "check_locks": True}),
        (4, {"locking": "device", "check_locks": True}),
        (4, {"locking": "device", "svadu": True, "balloon": True}),
        (4, {"locking": "bql"}),
    ],
)
def test_debian_boots_on(boot: Machines, guest: DebianGuest, harts: int, how: dict[str, Any]) -> None:
    booted(boot(report(guest, smp=harts, **how)), harts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_reset_and_a_pause_in_the_middle_of_booting_do_no_harm(boot: Machines, guest: DebianGuest) -> None:
    machine = boot(report(guest, smp=2))
    machine.serial.expect("Linux version", INIT_S)
    machine.reset()
    machine.serial.expect("Linux version", INIT_S)
    machine.pause()
    assert machine.state is State.PAUSED
    machine.resume()
    booted(machine, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_panic_asks_for_a_reboot(boot: Machines, guest: DebianGuest) -> None:
    machine = boot(report(guest, smp=2, append="console=ttyS0 panic=-1 rdinit=/nowhere", no_reboot=True))
    machine.serial.expect("Kernel panic - not syncing", INIT_S)
    assert machine.wait(INIT_S) == Outcome(Reason.GUEST_RESET)


@pytest.mark.stress
@pytest.mark.timeout(400)
def test_four_harts_boot_many_times_in_a_row(boot: Machines, guest: DebianGuest, boot_number: int) -> None:
    """As often as --boots says; each failure keeps what is known of its own machine."""
    booted(boot(report(guest, smp=4, locking=POLICIES[boot_number % 2])), 4)
