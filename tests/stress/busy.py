"""A machine whose harts do what they like to every device, and threads that do what they like to the machine.

Everybody draws from a seed of his own. What the threads do in what order is the host's affair: a failure says the seed,
and comes again with it soon rather than surely.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile.dice import Dice
from tests.hostile.drivers import Driver
from tests.hostile.guests import DISK_BYTES, everything
from tests.hostile.scripted import BOARD, SCRIPT_BYTES, Line, program
from tests.machines import Machines, check_lock_reports, device, harts, memory
from vmm.bql import Policy
from vmm.machine.config import VIRTIO_SLOTS, Balloon, Console, Drive, Pluggable, Rng
from vmm.machine.lifecycle import LifecycleError, Outcome, Reason, State
from vmm.machine.machine import Machine

HARTS = 4
FOR_EVER = 1 << 60
LINES = SCRIPT_BYTES // 24 - 32
PATIENCE_S = 60.0
"""For what must happen, on a host with much else to do."""


# -- the guest ---------------------------------------------------------------------------------------------------------


def scripts(seed: int) -> list[list[Line]]:
    """All registers of all windows, rings good and bad in every slot, interrupts; each hart counts its turns."""
    made = []
    for hart in range(HARTS):
        dice = Dice(seed * 64 + hart)
        driver = Driver(dice, range(VIRTIO_SLOTS))
        script = [Line("enable", value=8)]
        while len(script) < LINES - 200:
            match dice.randrange(8):
                case 0 | 1 | 2:
                    script += driver.turn()
                case 3:
                    script.append(Line("interrupts", value=0xAAA))
                case _:
                    script += [dice.access() for _ in range(8)]
        made.append([*script, Line("interrupts"), Line("amo4", BOARD + 8 * hart, 1)])
    return made


def turns(machine: Machine) -> list[int]:
    dma = memory(machine)
    return [dma.u64(BOARD + 8 * hart) for hart in range(HARTS)]


def gets_on(machine: Machine) -> None:
    """Every hart comes through its script."""
    before = turns(machine)
    for _ in range(int(PATIENCE_S * 1000)):
        if all(now > then for then, now in zip(before, turns(machine), strict=True)):
            return
        assert machine.wait(0.001) is None, machine.outcome
    raise AssertionError(f"harts are stuck: {before} -> {turns(machine)}\n{machine.hang_report('harts are stuck')}")


def rests(machine: Machine) -> None:
    """Paused, nothing moves."""

    def all_of_it() -> object:
        return turns(machine), [thread.vcpu.instructions for thread in harts(machine)]

    machine.pause()
    before = all_of_it()
    assert machine.wait(0.01) is None
    assert all_of_it() == before
    machine.resume()


# -- the others --------------------------------------------------------------------------------------------------------


class Crowd:
    """Threads that press buttons, plug, unplug, type and fire timers until the time is over."""

    def __init__(self, machine: Machine, folder: Path, seed: int) -> None:
        self.machine = machine
        self.done: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._folder = folder
        self._over = threading.Event()
        roles = (self._button, self._plug, self._plug, self._peer, self._timer)
        self._threads = [
            threading.Thread(target=self._live, args=(role, random.Random(seed * 16 + number)), name=f"crowd{number}")
            for number, role in enumerate(roles)
        ]

    def run(self, seconds: float) -> None:
        """Raises what went wrong."""
        for thread in self._threads:
            thread.start()
        ended = self.machine.wait(seconds)
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        assert not stuck, f"{stuck} are stuck\n{self.machine.hang_report('threads are stuck')}"
        assert ended is None, ended
        if self.errors:
            raise self.errors[0]

    def _live(self, role: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self._over.is_set() and not self.errors:
                try:
                    role(rng)
                except LifecycleError:
                    self.done["refused"] += 1
                self.machine.wait(rng.uniform(0, 0.004))
        except BaseException as error:
            self.errors.append(error)

    def _button(self, rng: random.Random) -> None:
        name = rng.choice(["pause", "resume", "reset"])
        getattr(self.machine, name)()
        self.done[name] += 1
        if name == "pause" and rng.random() < 0.8:  # else somebody presses it while the others find a paused machine
            self.machine.resume()

    def _plug(self, rng: random.Random) -> None:
        """Slots 0 and 1 keep their disks, so that there is always one."""
        slot = rng.randrange(2, VIRTIO_SLOTS)
        if rng.random() < 0.5:
            self.machine.plug(self._device(rng, slot), slot)
            self.done["plug"] += 1
        else:
            self.machine.unplug(slot, timeout=PATIENCE_S)
            self.done["unplug"] += 1

    def _device(self, rng: random.Random, slot: int) -> Pluggable:
        disk = self._folder / f"slot{slot}"
        if not disk.exists():
            disk.write_bytes(bytes(DISK_BYTES))
        plugs: list[Pluggable] = [
            Drive(disk, snapshot=rng.random() < 0.2, readonly=rng.random() < 0.2),
            Console(f"file:{self._folder / f'console{slot}'}"),
            Console("null"),
            Rng(),
            Balloon(),
        ]
        return rng.choice(plugs)

    def _peer(self, rng: random.Random) -> None:
        """Whoever sits at the host's side: types, asks for memory, looks."""
        match rng.randrange(4):
            case 0:
                self.machine.serial.send(rng.randbytes(rng.randrange(1, 64)))
                self.done["typed"] += 1
            case 1:
                try:
                    balloon = device(self.machine, "balloon")
                except StopIteration:
                    return
                balloon.set_target(4096 * rng.randrange(64))
                balloon.ask_statistics()
                self.done["balloon"] += 1
            case _:
                self.machine.statistics()
                repr(self.machine.locking)
                self.done["looked"] += 1

    def _timer(self, rng: random.Random) -> None:
        """Callbacks on the I/O thread that go into devices by their doors, as those of the devices' own timers do."""
        board: Any = self.machine._board
        fired = threading.Event()

        def callback() -> None:
            board.rtc.read(4 * rng.randrange(8), 4)
            board.uart.read(5, 1)
            for one in board.virtio:
                one.config_generation()
            self.done["timer"] += 1
            fired.set()

        clock = rng.choice([board.clock, board.wall_clock])
        timer = clock.timer(callback, "stress")
        timer.arm(clock.now() + rng.choice([0, 1000, 1_000_000]))
        if rng.random() < 0.2:
            timer.cancel()
        else:
            fired.wait(0.05)  # in a paused machine it does not come


# -- a run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """What a machine that is gone has left behind."""

    files: frozenset[str]
    threads: frozenset[str]
    blocks: int
    """Of Python's allocator."""
    resident: int
    """Bytes of memory."""

    @classmethod
    def now(cls) -> Left:
        gc.collect()
        return cls(
            frozenset(path.name for path in Path("/proc/self/fd").iterdir()),
            frozenset(thread.name for thread in threading.enumerate()),
            sys.getallocatedblocks(),
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        )


def episode(boot: Machines, folder: Path, seed: int, seconds: float, locking: Policy, checked: bool) -> Counter[str]:
    """One machine's life. Returns how often what was done."""
    bios = program(folder, scripts(seed), rounds=FOR_EVER)
    machine = boot.make(everything(folder, bios, smp=HARTS, locking=locking, check_locks=checked))
    machine.start()
    crowd = Crowd(machine, folder, seed)
    crowd.run(seconds)
    machine.resume()
    gets_on(machine)
    rests(machine)
    machine.reset()
    gets_on(machine)
    done = crowd.done
    for thread in harts(machine):
        done["exits"] += sum(thread.exits)
    done["instructions"] = sum(thread.vcpu.instructions for thread in harts(machine))
    boot.stop()
    assert machine.outcome == Outcome(Reason.ASKED)
    assert machine.state is State.STOPPED
    check_lock_reports(machine)
    return done


def lives(seconds: float, longest: float) -> Iterator[float]:
    """How long each machine of a run lives: several, so that what they leave behind shows."""
    count = max(2, round(seconds / longest))
    yield from [seconds / count] * count
