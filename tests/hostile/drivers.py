"""Scripts of drivers that break every rule of virtqueues, and of one that does as it should."""

from __future__ import annotations

from collections.abc import Sequence

from tests.hostile.dice import INTERESTING, RAM_END, Dice
from tests.hostile.guests import BALLOON, CONSOLE, DISKS, RNG
from tests.hostile.scripted import BOARD, SANDBOX, SANDBOX_BYTES, Line, meet
from vmm.machine import virt
from vmm.testing.virtio_driver import REGISTERS

NEXT, WRITE, INDIRECT = 1, 2, 4
SLOTS = (*DISKS, CONSOLE, RNG, BALLOON)
QUEUES = {**dict.fromkeys(DISKS, 1), CONSOLE: 2, RNG: 1, BALLOON: 3}
QUEUE_SIZE = 8
VERSION_1, INDIRECTION, EVENT_INDEX = 1 << 0, 1 << 28, 1 << 29

Script = list[Line]


def write(slot: int, name: str, value: int) -> Line:
    return Line("store4", virt.VIRTIO[slot].base + REGISTERS[name], value)


def sandbox_area(slot: int, queue: int) -> int:
    """Four kilobytes for the rings of a queue: descriptors, then the available ring, then the used ring."""
    return SANDBOX + 0x1000 * (4 * slot + queue)


def set_up(slot: int, queue: int, area: int, size: int, features: int) -> Script:
    """From a reset to DRIVER_OK with one queue."""
    rings = (("Desc", area), ("Driver", area + 0x400), ("Device", area + 0x800))
    return [
        write(slot, "Status", 0),
        write(slot, "Status", 3),
        *(line for word in (0, 1) for line in accept(slot, word, features if word == 0 else VERSION_1)),
        write(slot, "Status", 11),
        write(slot, "QueueSel", queue),
        write(slot, "QueueNum", size),
        *(write(slot, f"Queue{ring}Low", place) for ring, place in rings),
        *(write(slot, f"Queue{ring}High", 0) for ring, _ in rings),
        write(slot, "QueueReady", 1),
        write(slot, "Status", 15),
    ]


def accept(slot: int, word: int, value: int) -> Script:
    return [write(slot, "DriverFeaturesSel", word), write(slot, "DriverFeatures", value)]


def descriptor(at: int, address: int, length: int, flags: int, following: int) -> Script:
    return [Line("store8", at, address), Line("store8", at + 8, length | flags << 32 | following << 48)]


# -- a driver that behaves ---------------------------------------------------------------------------------------------


def good(slot: int) -> Script:
    """One request, to which the device must answer before the script goes on. In a page of the board."""
    area, data = BOARD, BOARD + 0xC00
    queue = 1 if slot == CONSOLE else 0  # transmit; inflate
    chains = {
        **{key: [(data, 16, 0), (SANDBOX, 512, WRITE), (data + 16, 1, WRITE)] for key in DISKS},
        CONSOLE: [(data, 16, 0)],
        RNG: [(SANDBOX, 64, WRITE)],
        BALLOON: [(data, 4, 0)],
    }
    page = SANDBOX + SANDBOX_BYTES - 0x1000 >> 12
    first_word = page if slot == BALLOON else 0  # or the type of a request to read, and sector 0
    script = [Line("store8", area + offset) for offset in (0x400, 0x408, 0x800, 0x808)]
    script += [Line("store8", data, first_word), Line("store8", data + 8)]
    script += set_up(slot, queue, area, 4, 0)
    chain = chains[slot]
    for number, (address, length, flags) in enumerate(chain):
        more = number + 1 < len(chain)
        script += descriptor(area + 16 * number, address, length, flags | NEXT * more, number + 1 if more else 0)
    # avail: no flags, index 1, ring[0] = 0; used: no flags, index 1
    return [
        *script,
        Line("store8", area + 0x400, 1 << 16),
        write(slot, "QueueNotify", queue),
        Line("until", area + 0x800, 1 << 16),
        write(slot, "Status", 0),  # the page is the next device's
    ]


def good_in_the_end(harts: int, script: Script) -> Script:
    """Every driver lets go, every device is reset, and each does one thing right."""
    resets = [write(slot, "Status", 0) for slot in SLOTS]
    return [*script, *meet(0, harts), *resets, *(line for slot in SLOTS for line in good(slot))]


# -- drivers that do not -----------------------------------------------------------------------------------------------


class Driver:
    """One hart's: it keeps to a slot for a while and mixes sense with nonsense. What devices come and go in slots that
    have none at first it guesses."""

    def __init__(self, dice: Dice, slots: Sequence[int] = SLOTS) -> None:
        self.dice = dice
        self.slots = slots

    def address(self) -> int:
        """For a device to read or write: never the program's memory."""
        dice = self.dice
        return dice.choice(
            [
                dice.place(),
                dice.place(16),
                dice.place(4096),
                dice.place(),
                RAM_END - dice.randrange(1, 600),
                RAM_END,
                dice.nowhere(),
            ]
        )

    def fill_ring(self, slot: int, queue: int) -> Script:
        """Descriptors with loops, wrong lengths and flags, addresses beyond RAM; indices that wrap and jump."""
        dice, area = self.dice, sandbox_area(slot, queue)
        script: Script = []
        for _ in range(dice.randrange(1, 6)):
            at = area + 16 * dice.randrange(QUEUE_SIZE)
            length = dice.choice([0, 1, 15, 16, 17, 512, 4096, 0x10_0000, 0xFFFF_FFFF, dice.getrandbits(32)])
            flags = dice.choice([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, dice.randrange(16), 0xFFFF])
            following = dice.choice([dice.randrange(QUEUE_SIZE), QUEUE_SIZE, 0xFFFF, 0])
            script += descriptor(at, self.address(), length, flags, following)
        available = area + 0x400
        for _ in range(dice.randrange(3)):
            script.append(
                Line(
                    "store2",
                    available + 4 + 2 * dice.randrange(QUEUE_SIZE),
                    dice.choice([*range(QUEUE_SIZE), 8, 0xFFFF]),
                )
            )
        index = dice.choice([1, 1, 2, 3, 7, 8, 9, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0, dice.getrandbits(16)])
        script.append(Line("store2", available + 2, index))
        if not dice.randrange(4):
            script.append(Line("store2", available, dice.getrandbits(16)))  # flags
            script.append(Line("store2", available + 4 + 2 * QUEUE_SIZE, dice.getrandbits(16)))  # used_event
        return script

    def requests(self, slot: int, queue: int, like: int | None = None) -> Script:
        """Well-formed chains with senseless content: disk requests of any type and size, page numbers of any kind.

        For the device that is in slot `like` at first: this slot's own, unless told."""
        dice, area = self.dice, sandbox_area(slot, queue)
        script: Script = []
        like = slot if like is None else like
        if like not in DISKS:
            answered = like == RNG or (like, queue) == (CONSOLE, 0)
            for number in range(3):
                length = dice.choice([1, 4, 64, 1024, 4096, 0x1_0000, 0x10_0001])
                script += descriptor(area + 16 * number, dice.place(), length, WRITE if answered else 0, 0)
                script.append(Line("store2", area + 0x404 + 2 * number, number))
            return [*script, Line("store2", area + 0x402, dice.choice([1, 2, 3]))]
        for number in range(2):
            data = dice.place(16) & ~0xFFF
            kind = dice.choice([0, 0, 1, 1, 4, 8, 11, 13, 2, 0xFFFF_FFFF])
            sector = dice.choice([0, 1, 500, 511, 512, 1 << 32, (1 << 64) - 1, (1 << 55) - 1])
            script += [Line("store8", data, kind), Line("store8", data + 8, sector)]
            base = 3 * number
            size = dice.choice([512, 4096, 511, 16, 65536, 0])
            direction = dice.choice([WRITE, 0])
            script += descriptor(area + 16 * base, data, dice.choice([16, 16, 8, 17]), NEXT, base + 1)
            script += descriptor(area + 16 * (base + 1), dice.place(512), size, NEXT | direction, base + 2)
            script += descriptor(area + 16 * (base + 2), dice.place(), dice.choice([1, 1, 2]), WRITE, 0)
            script.append(Line("store2", area + 0x404 + 2 * number, base))
        return [*script, Line("store2", area + 0x402, dice.choice([1, 2, 2]))]

    def turn(self) -> Script:
        dice = self.dice
        slot = dice.choice(self.slots)
        like = slot if slot in SLOTS else dice.choice(SLOTS)
        queue = dice.randrange(QUEUES[like])
        area = sandbox_area(slot, queue)
        fresh = [
            *(Line("store8", area + offset) for offset in (0x400, 0x800)),
            *set_up(
                slot, queue, area, QUEUE_SIZE, dice.choice([0, EVENT_INDEX, EVENT_INDEX | INDIRECTION, INDIRECTION])
            ),
        ]
        notify = [write(slot, "QueueNotify", queue), Line("spin", value=dice.choice([1, 1000, 30_000]))]
        match dice.randrange(12):
            case 0 | 1 | 2:
                return [*fresh, *self.fill_ring(slot, queue), *notify]
            case 3 | 4 | 5:
                return [*fresh, *self.requests(slot, queue, like), *notify]
            case 6:
                return [*self.fill_ring(slot, queue), *notify]
            case 7:
                return [*self.requests(slot, queue, like), *notify]
            case 8:
                return self.misplaced_rings(slot, queue)
            case 9:
                name = dice.choice(list(REGISTERS))
                return [write(slot, name, dice.choice([dice.value(), dice.randrange(16)]))]
            case 10:
                place = virt.VIRTIO[slot].base + 0x100 + dice.randrange(64)
                size = dice.choice([1, 2, 4, 8])
                return [Line(f"load{size}", place), Line(f"store{size}", place, dice.value())]
            case _:
                offset = dice.choice([dice.randrange(0x1000), 0x400 + dice.randrange(32), 0x800 + dice.randrange(64)])
                return [Line("store2", area + offset & ~1, dice.choice(INTERESTING)), *notify]

    def misplaced_rings(self, slot: int, queue: int) -> Script:
        """Rings beyond RAM, over each other, not aligned, and of sizes that are none."""
        dice = self.dice
        script = [write(slot, "Status", 0), write(slot, "Status", 3), *accept(slot, 1, 1), write(slot, "Status", 11)]
        script += [write(slot, "QueueSel", dice.choice([queue, queue, 9])), write(slot, "QueueReady", 0)]
        script.append(
            write(slot, "QueueNum", dice.choice([0, 0, 1, 2, 3, 8, 256, 257, 1024, 0x8000, 0x1_0000, 0xFFFF_FFFF]))
        )
        for ring in ("Desc", "Driver", "Device"):
            place = dice.choice([self.address(), dice.place(16), sandbox_area(slot, queue)])
            script += [write(slot, f"Queue{ring}Low", place), write(slot, f"Queue{ring}High", place >> 32)]
        script += [write(slot, "QueueReady", 1), write(slot, "Status", 15), write(slot, "QueueNotify", queue)]
        return [
            *script,
            Line("store2", sandbox_area(slot, queue) + 0x402, dice.getrandbits(16)),
            write(slot, "QueueNotify", queue),
        ]


def scripts(seed: int, harts: int, turns: int, slots: tuple[int, ...] = SLOTS) -> list[Script]:
    made = []
    for hart in range(harts):
        driver = Driver(Dice(seed * 64 + hart), slots)
        script = [line for _ in range(turns) for line in driver.turn()]
        made.append(good_in_the_end(harts, script) if hart == 0 else [*script, *meet(0, harts)])
    return made
