"""A whole machine under the scheduler: the real lifecycle, board, slots, bus, gate and VCPU threads, with harts that
are scripts and an I/O thread, workers, clocks and wires that are the schedule's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from vmm.bql import Policy
from vmm.fabric.ram import Ram
from vmm.host.terminal import Command
from vmm.machine.boot import Entry
from vmm.machine.config import Config, Pluggable, Rng
from vmm.machine.harts import Make, Surroundings
from vmm.machine.lifecycle import Lifecycle
from vmm.machine.machine import Machine
from vmm.machine.slots import DEADLINE_S, Slots
from vmm.machine.software import SoftwareHarts
from vmm.machine.virt import RAM_BASE, VIRTIO, Board
from vmm.testing.schedule.core import Scheduler
from vmm.testing.schedule.surroundings import (
    ScheduledBus,
    ScheduledClock,
    ScheduledHome,
    ScheduledLine,
    ScheduledWire,
    ScheduledWorkers,
)
from vmm.testing.schedule.vcpus import Guest, ScriptedVcpu
from vmm.watchdog import Watchdog

START = RAM_BASE
"""Where a guest begins, and begins again after a reset."""
MEMORY = 1 << 18

Guests = Callable[[int, int], Guest]
"""The guest that hart `hart` runs from address `pc`."""


class ScheduledMachine(Machine):
    """`guests` are what its harts run: hart 0 from `START`, the others where they are started."""

    def __init__(
        self,
        scheduler: Scheduler,
        guests: Guests,
        *,
        harts: int = 2,
        plugged: Sequence[Pluggable] = (Rng(),),
        policy: Policy = "device",
        checked: bool = True,
    ) -> None:
        self.config = Config(smp=harts, locking=policy, check_locks=checked, rng_seed=bytes(32))
        self.timeline = None
        self.locking = scheduler.locking(policy, checked)
        self._lifecycle = Lifecycle(self.locking.kit)
        self.board = self._board = _ScheduledBoard(scheduler, self, guests, plugged)
        # Never started: what hangs in a schedule ends it.
        self._watchdog = Watchdog(cast(Any, None), 0.0, print, kit=self.locking.kit)
        self._lifecycle.begin(self._board)


@dataclass(frozen=True)
class _Boot:
    """Nothing is loaded: guests are scripts."""

    entry = Entry(START, 0, 0, machine_mode=False)
    rom = b""

    def load(self, ram: Ram) -> None:
        """Memory is empty."""


class _ScheduledBoard(Board):
    """The board; of another make are only the parts that the operating system, and not the scheduler, would run."""

    line: ScheduledLine

    def __init__(
        self, scheduler: Scheduler, machine: ScheduledMachine, guests: Guests, plugged: Sequence[Pluggable]
    ) -> None:
        self._scheduler = scheduler
        self._guests = guests
        self._plugged = plugged
        super().__init__(
            machine.config,
            locking=machine.locking,
            make_harts=SoftwareHarts,
            ended=machine._ended,
            restart=machine._restarted,
            commands={},
        )

    def _build(self, stack: contextlib.ExitStack, make_harts: Make, commands: Mapping[str, Command]) -> None:
        scheduler = self._scheduler
        self.boot = cast(Any, _Boot())
        self.ram = Ram(RAM_BASE, MEMORY, minimum=MEMORY)
        scheduler.cleanup(self.ram.close)
        self.bus = ScheduledBus(scheduler)
        home = ScheduledHome(scheduler, kit=self.locking.kit)
        self.io = cast(Any, home)
        stack.callback(self.io.stop, DEADLINE_S)
        self.clock = ScheduledClock(scheduler, home)
        self.wall_clock = ScheduledClock(scheduler, home, name="wall")
        self.clock.pause()
        self.wall_clock.pause()
        self.workers = cast(Any, ScheduledWorkers(scheduler, 1, kit=self.locking.kit))
        stack.callback(self.workers.stop, DEADLINE_S)
        self.slots = Slots(
            VIRTIO,
            bus=self.bus,
            ram=self.ram,
            clock=self.clock,
            io=self.io,
            workers=self.workers,
            locking=self.locking,
            line=lambda source: self.harts.line(source),
            failed=self._io_failed,
        )
        stack.callback(self.slots.close)
        self.harts = _ScriptedHarts(
            scheduler,
            self._guests,
            Surroundings(
                count=self.config.smp,
                ram=self.ram,
                bus=self.bus,
                clock=self.clock,
                locking=self.locking,
                firmware=False,
                svadu=True,
                jit=False,
                call=self._call,
                resumed=self._resumed,
                ended=self._ended,
                trace_exits=None,
                trace_exec=None,
            ),
        )
        self.line = ScheduledLine(scheduler)
        self._make_devices(cast(Any, self.line))
        for what in self._plugged:
            self.slots.publish(self.slots.open(what))
        self.harts.reset(self.boot.entry)


class _ScriptedHarts(SoftwareHarts):
    """The software harts' threads and gate, around scripts."""

    def __init__(self, scheduler: Scheduler, guests: Guests, around: Surroundings) -> None:
        self._scheduler = scheduler
        self._guests = guests
        super().__init__(around)

    def _new_backend(self) -> Any:
        return _Scripts(self._scheduler, self._guests, self._around.count)


class _Scripts:
    """What stands where the backend with its native code does."""

    def __init__(self, scheduler: Scheduler, guests: Guests, count: int) -> None:
        self._scheduler = scheduler
        self._wires: dict[int, ScheduledWire] = {}
        self.vcpus = [ScriptedVcpu(scheduler, index, partial(guests, index)) for index in range(count)]

    def wire(self, source: int) -> ScheduledWire:
        return self._wires.setdefault(source, ScheduledWire(self._scheduler, f"irq {source}"))

    def reset(self) -> None:
        """Scripts begin anew when they are entered."""

    def forget_code(self) -> None:
        """There is none."""
