"""A machine with every device, and a scripted guest on it that must come to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.hostile.dice import MEM
from tests.hostile.scripted import Script, program
from tests.machines import Machines
from vmm.host.transcript import ExpectError
from vmm.machine.config import Config, Drive
from vmm.machine.lifecycle import State
from vmm.machine.machine import Machine

DEADLINE_S = 60.0
DISK_BYTES = 256 << 10
DISKS, CONSOLE, RNG, BALLOON = (0, 1), 2, 3, 4
"""Virtio slots."""


def everything(folder: Path, bios: Path, **more: Any) -> Config:
    """Two disks, of which one is read-only, and one of each other device."""
    drives = (Drive(folder / "disk0"), Drive(folder / "disk1", readonly=True))
    for drive in drives:
        drive.file.write_bytes(bytes(DISK_BYTES))
    return Config(
        **{"bios": bios, "mem": MEM, "drive": drives, "console": "null", "balloon": True, "check_locks": True, **more}
    )


def survives(
    boot: Machines, folder: Path, scripts: Sequence[Script], *, memory: bytes = b"", rounds: int = 1, **more: Any
) -> Machine:
    """Runs the scripts, and again after a reset of the machine: what they did to its devices is undone by that."""
    bios = program(folder, scripts, memory=memory, rounds=rounds)
    machine = boot(everything(folder, bios, smp=len(scripts), **more))
    finishes(machine)
    machine.reset()
    finishes(machine)
    machine.pause()
    machine.resume()
    return machine


def finishes(machine: Machine) -> None:
    try:
        machine.serial.expect("\ndone", DEADLINE_S)
    except ExpectError as error:
        error.add_note(f"how it ended: {machine.wait(1)}")
        raise
    assert machine.state is State.RUNNING, machine.outcome
