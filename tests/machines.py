"""Machines of one test: started for it, stopped after it, and when it fails described in a directory of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

from vmm import stacks
from vmm.fabric.bus import Bus
from vmm.fabric.dma import Dma
from vmm.lockreport import joined
from vmm.machine.config import Config
from vmm.machine.machine import Machine

REPORTS = Path(__file__).parents[1] / "build" / "failures"


class Machines:
    """Calling it starts a machine."""

    def __init__(self, test: str) -> None:
        self._test = test
        self.all: list[Machine] = []

    def __call__(self, config: Config) -> Machine:
        machine = self.make(config)
        machine.start()
        return machine

    def make(self, config: Config) -> Machine:
        """The same without starting it."""
        machine = Machine(config)
        self.all.append(machine)
        return machine

    def keep(self) -> Path:
        """Describe all machines, and every thread, in files; returns their directory."""
        directory = REPORTS / "".join(c if c.isalnum() or c in "-_." else "_" for c in self._test)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "threads.txt").write_text(stacks.dump())
        for number, machine in enumerate(self.all):
            (directory / f"console{number}.txt").write_text(machine.serial.text)
            (directory / f"machine{number}.txt").write_text("\n".join(description(machine)))
        return directory

    def stop(self) -> None:
        """Raises what stopping a machine raises, and LockOrderError for what checked locks have reported."""
        while self.all:
            machine = self.all.pop()
            machine.stop()
            check_lock_reports(machine)


def description(machine: Machine) -> Iterator[str]:
    yield repr(machine)
    yield repr(machine.config)
    yield f"outcome: {machine.outcome}"
    yield machine.hang_report("a test failed")
    yield pformat(machine.statistics(), width=120)
    for thread in harts(machine):
        yield thread.report("")


# -- what a test may want of a machine's inside ------------------------------------------------------------------------


def harts(machine: Machine) -> list[Any]:
    """The VCPU threads; for reports, and registers while the machine is paused."""
    return list(machine._board.harts._threads)  # type: ignore[attr-defined]


def device(machine: Machine, name: str) -> Any:
    """A virtio device by its name on the board, such as "disk0" or "balloon"."""
    return next(device for device in machine._board.virtio if device.name == name)


def memory(machine: Machine) -> Dma:
    """Guest memory as devices access it."""
    return Dma(machine._board.ram)


def bus(machine: Machine) -> Bus:
    return machine._board.bus


def check_lock_reports(machine: Machine) -> None:
    checker = machine._board.locking.checker
    if checker and checker.reports:
        raise AssertionError(joined(checker.reports))
