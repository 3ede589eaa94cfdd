"""Who holds the one lock under `--locking bql`, and that nobody takes it under `device`: shown by the statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.programs import FOREVER, SPIN, program, say
from tests.machines import Machines
from vmm.bql import Policy
from vmm.machine.config import Config, Rng
from vmm.machine.machine import Machine


def causes(machine: Machine, lock: str = "bql") -> dict[str, int]:
    (found,) = (entry for entry in machine.lock_statistics()["locks"] if entry["name"] == lock)
    return {cause: counts["acquired"] for cause, counts in found["causes"].items()}


def made(boot: Machines, tmp_path: Path, locking: Policy, *guest: list[int], **more: Any) -> Machine:
    machine = boot(Config(bios=program(tmp_path, say("ready"), *guest), locking=locking, lock_stat=True, **more))
    machine.serial.expect("ready")
    return machine


def test_a_vcpu_gives_it_up_on_guest_entry(boot: Machines, tmp_path: Path) -> None:
    machine = made(boot, tmp_path, "bql", SPIN)
    assert machine.locking.big.acquire(timeout=30)  # the hart is in guest code, and stays there
    machine.locking.big.release()
    assert causes(machine)["exit MMIO_WRITE"] == len("ready")


@pytest.mark.parametrize("check_locks", [False, True], ids=["plain", "checked"])
def test_lifecycle_and_monitor_hold_it(boot: Machines, tmp_path: Path, check_locks: bool) -> None:
    machine = made(boot, tmp_path, "bql", FOREVER, check_locks=check_locks)
    for change in (machine.pause, machine.resume, machine.reset):
        before = causes(machine).get("lifecycle", 0)
        change()
        assert causes(machine)["lifecycle"] > before
    machine.serial.expect("ready")
    before = causes(machine)["lifecycle"]
    slot = machine.plug(Rng())
    machine.unplug(slot)
    assert causes(machine)["lifecycle"] > before
    assert set(causes(machine, "rng")) <= {"lifecycle", "io", "doorbell"}


def test_the_io_thread_holds_it_for_its_callbacks(boot: Machines, tmp_path: Path) -> None:
    machine = made(boot, tmp_path, "bql", FOREVER)
    machine.serial.send("x")  # the I/O thread offers it to the UART
    machine.stop()
    assert causes(machine)["io"] > 0
    assert any(cause.startswith("posted by") for cause in causes(machine, "uart"))


def test_nobody_takes_it_under_the_device_policy(boot: Machines, tmp_path: Path) -> None:
    machine = made(boot, tmp_path, "device", FOREVER)
    machine.pause()
    machine.resume()
    machine.reset()
    machine.serial.expect("ready")
    machine.unplug(machine.plug(Rng()))
    machine.stop()
    assert causes(machine) == {}
