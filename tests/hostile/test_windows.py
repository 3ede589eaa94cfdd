"""Loads and stores at every device and beside it, of every size, from all harts at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.dice import HOLES, SIZES, WINDOWS, Dice
from tests.hostile.guests import DEADLINE_S, everything, survives
from tests.hostile.scripted import Line, meet, program
from tests.machines import Machines
from vmm.bql import Policy
from vmm.machine import virt


@pytest.mark.parametrize("value", [0, (1 << 64) - 1])
def test_every_place_takes_every_size(boot: Machines, tmp_path: Path, value: int) -> None:
    """Each register of each window, its edges, and the holes; aligned or not, over the edge as well."""
    scripts: list[list[Line]] = [[], [], [], []]
    for number, window in enumerate(WINDOWS):
        offsets = {*range(0, min(window.size, 0x120), 4), *range(min(window.size, 0x120)), *range(0x100, 0x140)}
        if window in (virt.PLIC, virt.CLINT):
            offsets = {
                *range(0, 0x300, 4),
                *range(0x1000, 0x1020),
                0x2000,
                0x2080,
                0x3F80,
                0x4000,
                0x4001,
                0xBFF8,
                0xBFFC,
            }
            offsets |= {0x20_0000 + 0x1000 * n + k for n in (0, 1, 7, 8, 63) for k in (0, 1, 4, 8)}
        places = {window.base + offset for offset in offsets if offset < window.size}
        places |= {edge + shift for edge in (window.base, window.end) for shift in range(-8, 8)}
        for place in sorted(places):
            for size in SIZES if place % 4 == 0 or place & 0xFFF > 0xFF0 else (1, 4):
                scripts[number % 4] += [Line(f"load{size}", place), Line(f"store{size}", place, value)]
    for place in HOLES:
        for size in SIZES:
            scripts[0] += [Line(f"load{size}", place), Line(f"store{size}", place, value)]
    survives(boot, tmp_path, [[Dice.harmless(Dice(), line) for line in script] for script in scripts])


def random_accesses(dice: Dice, harts: int, count: int) -> list[list[Line]]:
    """Interrupts are on: what the devices raise is taken, and masked until a line of the script asks for it again."""
    scripts = []
    for _ in range(harts):
        script = [Line("enable", value=8)]
        for _ in range(count):
            script.append(dice.access())
            if not dice.randrange(50):
                script.append(Line("interrupts", value=0xAAA))
        scripts.append([*script, Line("interrupts")])
    return scripts


@pytest.mark.parametrize("locking", ["device", "bql"])
@pytest.mark.parametrize("harts", [1, 2, 4])
def test_random_accesses_of_all_harts_at_once(
    boot: Machines, tmp_path: Path, seed: int, harts: int, locking: Policy
) -> None:
    survives(boot, tmp_path, random_accesses(Dice(seed + harts), harts, 2500), locking=locking)


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_all_harts_at_the_same_register(boot: Machines, tmp_path: Path, seed: int, locking: Policy) -> None:
    dice = Dice(seed)
    scripts: list[list[Line]] = [[], [], [], []]
    for _ in range(150):
        place = dice.register(dice.choice(WINDOWS)) & ~7
        for script in scripts:
            for _ in range(8):
                line = Line(dice.choice(["load4", "store4", "load1", "store1"]), place + 4 * dice.randrange(2))
                script.append(dice.harmless(line._replace(value=dice.value())))
    survives(boot, tmp_path, scripts, locking=locking)


@pytest.mark.parametrize("harts", [1, 4])
def test_power_off_reset_and_exit_asked_for_by_all_harts_at_once(
    boot: Machines, tmp_path: Path, seed: int, harts: int
) -> None:
    dice = Dice(seed)
    for _ in range(8):
        scripts = [
            [
                *meet(0, harts),
                *(Line("store4", virt.FINISHER.base, dice.choice([0x5555, 0x7_3333, 0x7777])) for _ in range(9)),
            ]
            for _ in range(harts)
        ]
        scripts[0].append(Line("store4", virt.FINISHER.base, 0x5555))
        machine = boot(everything(tmp_path, program(tmp_path, scripts), smp=harts))
        outcome = machine.wait(DEADLINE_S)
        assert outcome is not None
        assert (outcome.reason.name, outcome.code) in {("POWER_OFF", 0), ("GUEST_EXIT", 7)}


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(12))
def test_random_accesses_for_longer(boot: Machines, tmp_path: Path, seed: int, number: int) -> None:
    scripts = random_accesses(Dice(seed * 1000 + number), (1, 2, 4)[number % 3], 8000)
    survives(boot, tmp_path, scripts, rounds=4, locking=("device", "bql")[number % 2])
