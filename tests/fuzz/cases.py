"""Two threads' accesses to one device, at the same time: what to do, in which interleaving, and what must hold.

A case is a line of text, so that those which reached something new can be kept (`corpus/`) and run anew after each
change, the same on every Python: the interleaving is that of a seeded schedule.

An operation is a list: what, and its numbers.

    r OFFSET SIZE           a load from the device's window
    w OFFSET SIZE VALUE     a store there
    s FEATURES              a driver sets the device up, from a reset to DRIVER_OK, with rings for all queues
    d QUEUE SLOT ADDRESS LENGTH FLAGS NEXT      it writes a descriptor
    b QUEUE KIND            it writes a good chain
    a QUEUE HEAD            it makes a chain available
    i QUEUE INDEX           it writes avail.idx
    n QUEUE                 it notifies
    m ADDRESS VALUE         it writes a word of memory
    p NUMBER                the host's side does something
"""

from __future__ import annotations

import json
import os
import random
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.fuzz.rigs import RAM, RIGS, SLOT, Rig, VirtioRig
from vmm.fabric.bus import BusFault
from vmm.fabric.ram import DmaFault
from vmm.locks import Locking
from vmm.testing.schedule import Failure, Scheduler, explore
from vmm.testing.virtio_driver import BASE, DESCRIPTOR, REGISTERS

Operation = tuple[str | int, ...]
Stream = tuple[Operation, ...]

CORPUS: Final = Path(__file__).parent / "corpus"
QUEUE_SIZE: Final = 8
DATA: Final = BASE + 0x8000
EVENT_INDEX, INDIRECT_FEATURE = 1 << 29, 1 << 28
NEXT, WRITE, INDIRECT = 1, 2, 4
TICKS: Final = (0, 1_000, 1_000_000, 6_000_000_000)
"""Nanoseconds of guest time between two turns of the I/O thread."""

CONSTANTS: Final = {0x000: 0x7472_6976, 0x004: 2, 0x00C: 0x206D_6D76}
"""Of virtio-mmio: whoever else is in the device, a register that never changes is never read as anything else."""


@dataclass(frozen=True)
class Case:
    rig: str
    seed: int
    """Of the interleaving."""
    tick: int
    streams: tuple[Stream, Stream]

    def text(self) -> str:
        """One line."""
        return json.dumps([self.rig, self.seed, self.tick, self.streams], separators=(",", ":"))

    @staticmethod
    def parse(line: str) -> Case:
        rig, seed, tick, streams = json.loads(line)
        first, second = (tuple(tuple(operation) for operation in stream) for stream in streams)
        return Case(rig, seed, tick, (first, second))


def corpus(rig: str) -> list[Case]:
    path = CORPUS / f"{rig}.txt"
    return [Case.parse(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- making them -------------------------------------------------------------------------------------------------------

_INTERESTING: Final = (0, 1, 2, 3, 4, 7, 8, 15, 16, 0x1F, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF)


def table(queue: int) -> int:
    return BASE + 0x1000 * (queue + 1)


class Maker:
    """Draws cases for one rig; every second one builds on a case that is known to lead somewhere."""

    def __init__(self, rig: str, rng: random.Random, known: Iterable[Case] = ()) -> None:
        self._rig = rig
        self._rng = rng
        self._known = list(known)
        probe = RIGS[rig](Locking())
        self._rows = probe.registers()
        self._queues = probe.queues
        self._span = getattr(probe.device, "span", 0x140)
        probe.close()

    def case(self) -> Case:
        rng = self._rng
        seed, tick = rng.randrange(1, 1 << 32), rng.choice(TICKS)
        if self._known and rng.random() < 0.5:
            base = rng.choice(self._known)
            first, second = (self._mutated(stream) for stream in base.streams)
            return Case(self._rig, seed, tick, (first, second))
        return Case(self._rig, seed, tick, (self._stream(True), self._stream(rng.random() < 0.3)))

    def add(self, case: Case) -> None:
        self._known.append(case)

    def _mutated(self, stream: Stream) -> Stream:
        rng = self._rng
        operations = list(stream)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(operations) + 1)
            match rng.randrange(3):
                case 0:
                    operations[at:at] = self._turn()
                case 1:
                    del operations[at : at + rng.randrange(1, 3)]
                case _ if self._known:
                    other = rng.choice(rng.choice(self._known).streams)
                    operations[at:at] = other[: rng.randrange(len(other) + 1)]
        return tuple(operations[:14])

    def _stream(self, sets_up: bool) -> Stream:
        rng = self._rng
        operations: list[Operation] = []
        if self._queues and sets_up and rng.random() < 0.8:
            operations.append(("s", rng.choice([0, EVENT_INDEX, EVENT_INDEX | INDIRECT_FEATURE])))
        while len(operations) < 8:
            operations += self._turn()
        return tuple(operations)

    def _turn(self) -> list[Operation]:
        rng = self._rng
        if not self._queues or rng.random() < 0.5:
            return [self._access()]
        queue = rng.randrange(self._queues)
        match rng.randrange(8):
            case 0:
                return [("s", rng.choice([0, EVENT_INDEX, EVENT_INDEX | INDIRECT_FEATURE, 1 << 63]))]
            case 1 | 2 | 3:
                return [("b", queue, rng.randrange(16)), ("a", queue, 0), ("n", queue)]
            case 4:
                slots = [self._descriptor(queue) for _ in range(rng.randrange(1, 4))]
                return [*slots, ("a", queue, rng.randrange(QUEUE_SIZE + 1)), ("n", queue)]
            case 5:
                return [("i", queue, rng.choice([0, 1, 2, 8, 9, 0x7FFF, 0xFFFF])), ("n", queue)]
            case 6:
                return [("m", table(queue) + 2 * rng.randrange(0x480), rng.choice(_INTERESTING) & 0xFFFF)]
            case _:
                return [("w", 0x70, 4, rng.choice([0, 0, 1, 3, 11, 15, 128]))]

    def _access(self) -> Operation:
        rng = self._rng
        if rng.random() < 0.15:
            return ("p", rng.randrange(64))
        row = rng.choice(self._rows)
        offset, size = row.offset, row.width
        if rng.random() < 0.15:
            offset, size = rng.randrange(self._span + 8), rng.choice([1, 2, 4, 8])
        elif self._queues and rng.random() < 0.15:
            offset, size = 0x100 + rng.randrange(0x40), rng.choice([1, 2, 4, 8])
        if "w" not in row.access or ("r" in row.access and rng.random() < 0.4):
            return ("r", offset, size)
        value = rng.choice([*_INTERESTING, rng.getrandbits(8 * size), self._address()])
        return ("w", offset, size, value & (1 << 8 * size) - 1)

    def _address(self) -> int:
        """For DMA: its data, its own rings, the ends of RAM, nowhere, and the registers of the device itself."""
        rng = self._rng
        return rng.choice(
            [
                DATA + rng.randrange(0x1000),
                table(0) + rng.randrange(0xC00),
                BASE + RAM - rng.randrange(64),
                SLOT + rng.randrange(0x140),
                SLOT + REGISTERS["QueueNotify"],
                SLOT + REGISTERS["Status"],
                0,
                (1 << 64) - 8,
            ]
        )

    def _descriptor(self, queue: int) -> Operation:
        rng = self._rng
        length = rng.choice([0, 1, 4, 15, 16, 17, 20, 512, 513, 4096, 0xFFFF_FFFF])
        flags = rng.choice([0, NEXT, WRITE, WRITE | NEXT, INDIRECT, INDIRECT | NEXT, 7])
        following = rng.randrange(QUEUE_SIZE + 1)
        return ("d", queue, rng.randrange(QUEUE_SIZE), self._address(), length, flags, following)


# -- running them ------------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """What must hold does not."""


class Hand:
    """Does operations on a rig, on whichever thread, and notes the situations that it met."""

    def __init__(self, rig: Rig, step: Callable[[str], None] = lambda _: None) -> None:
        self.rig = rig
        self.met: set[tuple[object, ...]] = set()
        self._step = step

    def run(self, stream: Stream) -> None:
        for operation in stream:
            self._step("next operation")
            what, *numbers = operation
            self.met.add((*self._about(operation), self.rig.state()))
            getattr(self, f"_{what}")(*numbers)

    def _about(self, operation: Operation) -> tuple[object, ...]:
        what = operation[0]
        if what in ("r", "w"):
            offset = int(operation[1])
            row = next((row.name for row in self.rig.registers() if row.offset == offset), None)
            return (what, row or ("configuration" if offset >= 0x100 else "nothing"))
        return (what, operation[1] if what in "banid" else None)

    def _r(self, offset: int, size: int) -> None:
        try:
            value = self.rig.bus.read(SLOT + offset, size)
        except BusFault:
            return
        if not 0 <= value < 1 << 8 * size:
            raise Broken(f"a load of {size} bytes at {offset:#x} answered {value:#x}")
        if isinstance(self.rig, VirtioRig) and size == 4 and value != CONSTANTS.get(offset, value):
            raise Broken(f"register {offset:#x}, which never changes, was read as {value:#x}")

    def _w(self, offset: int, size: int, value: int) -> None:
        try:
            self.rig.bus.write(SLOT + offset, size, value)
        except BusFault:
            pass

    def _register(self, name: str, value: int) -> None:
        self._w(REGISTERS[name], 4, value & 0xFFFF_FFFF)

    def _s(self, features: int) -> None:
        register = self._register
        register("Status", 0)
        register("Status", 3)
        for word, part in ((0, features & 0xFFFF_FFFF), (1, features >> 32 | 1)):
            register("DriverFeaturesSel", word)
            register("DriverFeatures", part)
        register("Status", 11)
        for queue in range(self.rig.queues):
            self.rig.store(table(queue) + 0x400, bytes(0x800))
            register("QueueSel", queue)
            register("QueueNum", QUEUE_SIZE)
            for ring, at in (("Desc", 0), ("Driver", 0x400), ("Device", 0x800)):
                register(f"Queue{ring}Low", table(queue) + at)
                register(f"Queue{ring}High", 0)
            register("QueueReady", 1)
        register("Status", 15)

    def _d(self, queue: int, slot: int, address: int, length: int, flags: int, following: int) -> None:
        self.rig.store(table(queue) + 16 * slot, DESCRIPTOR.pack(address, length, flags, following))

    def _b(self, queue: int, kind: int) -> None:
        """For a disk a request, else memory to read or to write."""
        self.rig.store(DATA, struct.pack("<IIQ", kind, 0, kind % 3) + bytes(8))
        if self.rig.queues == 1 and kind < 14:
            direction = WRITE if kind in (0, 8) else 0
            self._d(queue, 0, DATA, 16, NEXT, 1)
            self._d(queue, 1, DATA + 0x100, 512, NEXT | direction, 2)
            self._d(queue, 2, DATA + 0x400, 1, WRITE, 0)
        else:
            self._d(queue, 0, DATA, 4 * (kind + 1), WRITE if kind & 1 else 0, 0)

    def _a(self, queue: int, head: int) -> None:
        available = table(queue) + 0x400
        index = self._u16(available + 2)
        self._m(available + 4 + 2 * (index % QUEUE_SIZE), head)
        self._m(available + 2, index + 1)

    def _i(self, queue: int, index: int) -> None:
        self._m(table(queue) + 0x402, index)

    def _n(self, queue: int) -> None:
        self._w(REGISTERS["QueueNotify"], 4, queue)

    def _m(self, address: int, value: int) -> None:
        self.rig.store(address, (value & 0xFFFF).to_bytes(2, "little"))

    def _u16(self, address: int) -> int:
        assert isinstance(self.rig, VirtioRig)
        try:
            return self.rig.bench.dma.u16(address)
        except DmaFault:
            return 0

    def _p(self, number: int) -> None:
        self.rig.peer(number)


def ends_well(rig: Rig, tick: int) -> None:
    """On the home thread, with both streams at their end: the device comes to rest, whole, and is as good as new."""
    rig.turn(tick)
    rig.rest()
    if wrong := rig.broken():
        raise Broken("; ".join(wrong))
    rig.still_good()


def program(case: Case, met: set[tuple[object, ...]], rigs: list[Rig]) -> Callable[[Scheduler], None]:
    """The case as a program for the scheduler: two harts, the thread that serves the device, and a worker."""

    def two_streams(s: Scheduler) -> None:
        rig = RIGS[case.rig](s.locking())
        rigs.append(rig)
        running = [2]
        working = [True]

        def hart(stream: Stream) -> None:
            hand = Hand(rig, s.point)
            try:
                hand.run(stream)
            finally:
                running[0] -= 1
                met.update(hand.met)

        def home() -> None:
            turns = 0
            while running[0] or working[0]:
                s.point("home turn")
                rig.turn(case.tick)
                turns += 1
                if turns % 16 == 0 and (wrong := rig.broken()):
                    raise Broken("; ".join(wrong))
            ends_well(rig, case.tick)

        def worker() -> None:
            while running[0]:
                s.point("worker turn")
                rig.work()
            working[0] = False

        for number, stream in enumerate(case.streams):
            s.spawn(f"vcpu{number}", hart, stream)
        s.spawn("io", home)
        s.spawn("worker0", worker)

    return two_streams


def run(case: Case, schedules: int = 1) -> tuple[set[tuple[object, ...]], Failure | None]:
    """Run a case under the calm schedule and `schedules` seeded ones: the situations it met, and how it failed."""
    met: set[tuple[object, ...]] = set()
    rigs: list[Rig] = []
    try:
        # A switch after each step, as likely as not; or few of them, so that one thread gets far ahead.
        strategy = ("random", "pct")[case.seed % 2]
        result = explore(
            program(case, met, rigs), strategy=strategy, depth=3, seed=case.seed, schedules=1 + schedules, shrink=False
        )
    finally:
        for rig in rigs:
            rig.close()
    return met, result.failure


def run_on_threads(case: Case) -> None:
    """The same with threads that run when they like: for what lies between two points of a schedule, and on builds
    without a GIL at the same time. Raises what a stream raised, and Broken."""
    locking = Locking(checked=True)
    rig = RIGS[case.rig](locking)
    errors: list[BaseException] = []

    def hart(stream: Stream) -> None:
        try:
            Hand(rig).run(stream)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hart, args=(stream,), name=f"vcpu{n}") for n, stream in enumerate(case.streams)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        rig.turn(case.tick)
        rig.work()
        os.sched_yield()  # whoever looks all the time would never let the harts have a lock
    for thread in threads:
        thread.join()
    try:
        if errors:
            raise errors[0]
        ends_well(rig, case.tick)
        if locking.checker and locking.checker.reports:
            raise Broken(str(locking.checker.reports[0]))
    finally:
        rig.close()


def shrunk(case: Case, failure: Failure) -> Case:
    """The same failure with fewer operations, as far as leaving out one at a time goes."""
    best = case
    for which in (0, 1):
        at = 0
        while at < len(best.streams[which]):
            fewer = list(best.streams)
            fewer[which] = best.streams[which][:at] + best.streams[which][at + 1 :]
            candidate = replace(best, streams=(fewer[0], fewer[1]))
            again = run(candidate, 4)[1]
            if again and again.kind is failure.kind:
                best = candidate
            else:
                at += 1
    return best


def check(case: Case, schedules: int = 1) -> set[tuple[object, ...]]:
    """Raises AssertionError with the shrunk case; returns the situations that were met."""
    met, failure = run(case, schedules)
    if failure:
        small = shrunk(case, failure)
        raise AssertionError(
            f"{case.rig}: {failure.kind.value}\n{failure.report}\n"
            f"the case, to run again: python -m tests.fuzz.again '{small.text()}'"
        )
    return met
