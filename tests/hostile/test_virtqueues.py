"""Drivers that break every rule of virtqueues, several at once on one device, and then one that does as it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.dice import Dice
from tests.hostile.drivers import (
    EVENT_INDEX,
    NEXT,
    QUEUE_SIZE,
    SLOTS,
    Driver,
    Script,
    good_in_the_end,
    sandbox_area,
    scripts,
    set_up,
    write,
)
from tests.hostile.guests import DISKS, survives
from tests.hostile.scripted import SANDBOX, Line, meet
from tests.machines import Machines
from vmm.bql import Policy


def test_the_good_driver_is_answered_by_every_device(boot: Machines, tmp_path: Path) -> None:
    machine = survives(boot, tmp_path, [good_in_the_end(1, [])])
    figures = machine.statistics()
    for name in ("disk0", "disk1", "console", "rng", "balloon"):
        assert figures[name].chains == 2
        assert figures[name].guest_errors == 0


@pytest.mark.parametrize("locking", ["device", "bql"])
@pytest.mark.parametrize("harts", [1, 2, 4])
def test_bad_drivers_do_not_keep_a_good_one_from_its_devices(
    boot: Machines, tmp_path: Path, seed: int, harts: int, locking: Policy
) -> None:
    machine = survives(boot, tmp_path, scripts(seed, harts, 150), locking=locking)
    figures = machine.statistics()
    assert sum(figures[name].guest_errors for name in ("disk0", "disk1", "console", "rng", "balloon")) > 0


@pytest.mark.parametrize("slot", SLOTS)
def test_four_bad_drivers_on_one_device(boot: Machines, tmp_path: Path, seed: int, slot: int) -> None:
    survives(boot, tmp_path, scripts(seed + slot, 4, 100, (slot,)))


def test_what_the_device_reads_changes_while_it_reads_it(boot: Machines, tmp_path: Path, seed: int) -> None:
    """One hart runs a disk as it should; another rewrites its descriptors and indices all the time."""
    dice = Dice(seed)
    slot, area = DISKS[0], sandbox_area(DISKS[0], 0)
    driver: Script = []
    for _ in range(60):
        driver += [*set_up(slot, 0, area, QUEUE_SIZE, EVENT_INDEX), *Driver(dice, (slot,)).requests(slot, 0)]
        driver += [write(slot, "QueueNotify", 0)] * 3
    scribbler: Script = []
    for _ in range(3000):
        place = area + dice.choice([dice.randrange(0x80), 0x400 + dice.randrange(24), 0x800 + dice.randrange(80)])
        scribbler.append(Line("store4", place & ~3, dice.choice([dice.value(), SANDBOX, 1 << 16, NEXT, 512])))
    survives(boot, tmp_path, [good_in_the_end(3, driver), [*scribbler, *meet(0, 3)], [*scribbler[::-1], *meet(0, 3)]])


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(12))
def test_bad_drivers_for_longer(boot: Machines, tmp_path: Path, seed: int, number: int) -> None:
    harts = (1, 2, 4, 4)[number % 4]
    survives(boot, tmp_path, scripts(seed * 1000 + number, harts, 450), locking=("device", "bql")[number % 2])
