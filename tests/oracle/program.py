"""Test programs: blocks of user-mode instructions, each between loading all registers and writing all of them down.

The same image runs as a Linux program under `qemu-riscv64` and on bare metal here, at the same addresses. It begins at
address 0, so that the frame around the blocks reaches its variables through x0 and leaves every register to the block.

A `state` is 640 bytes, 80 doublewords: x1 to x31, f0 to f31, fcsr, and a window of 128 bytes of memory. A window lies
across the middle of two pages; nothing else is written to by a block. Each block gets a state of its own to begin with,
and leaves one: what it did, whatever came before.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmm.isa.table import INSTRUCTIONS, length

STATE = 640
X, F, FCSR, WINDOW = 0, 248, 504, 512  # offsets in a state
WINDOW_SIZE = STATE - WINDOW

CODE = 0x1_0000
CODE_LIMIT = CODE + (1 << 20) - 4096  # within reach of a jal from everywhere
INPUTS = 0x100_0000
SCRATCH, SCRATCH_PAGES = 0x180_0000, 8
OUTPUTS = 0x200_0000
END = 0x220_0000
MAX_BLOCKS = (END - OUTPUTS) // STATE - 1

_X5, _OUT, _IN, _X6, _NOWHERE = 0x700, 0x708, 0x710, 0x718, 0x7C0  # the frame's variables
_INPUT = STATE + 8  # a state and the address of its window
_TRANSFER = 12  # bytes between blocks

#: Instructions that belong together: one, or a branch with what it skips.
Item = tuple[int, ...]


def windows() -> list[int]:
    """Addresses of the windows: halves in two pages each."""
    return [SCRATCH + (page << 12) - WINDOW_SIZE // 2 for page in range(1, SCRATCH_PAGES)]


def code(words: Sequence[int]) -> bytes:
    return b"".join(w.to_bytes(length(w), "little") for w in words)


def op(name: str, **operands: int) -> int:
    return INSTRUCTIONS[name].encode(**operands)


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions to be run from `state`, with its window at address `window`."""

    state: bytes
    window: int
    items: tuple[Item, ...]

    @property
    def instructions(self) -> int:
        return sum(len(item) for item in self.items)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program left: a state for each block, and the pages that the windows lie in."""

    states: bytes
    scratch: bytes

    def state(self, block: int) -> bytes:
        return self.states[block * STATE : (block + 1) * STATE]

    def first_difference(self, other: Outcome) -> int | None:
        """The first block whose states differ."""
        if self.states == other.states:
            return None
        return next(i for i in range(len(self.states) // STATE) if self.state(i) != other.state(i))


class Program:
    """Blocks in a random order in memory, with jumps of all kinds and ranges from each to the next.

    `places` are the addresses where they begin; an instruction of the frame comes first.
    """

    def __init__(self, blocks: Sequence[Block], seed: int) -> None:
        assert len(blocks) <= MAX_BLOCKS
        self.blocks = blocks
        self.seed = seed
        self.entry = CODE
        self.states_size = len(blocks) * STATE
        r = random.Random(seed)
        inputs = b"".join(b.state + struct.pack("<Q", b.window) for b in blocks)
        self.segments: dict[int, bytes] = {
            _X5: struct.pack("<4Q", 0, OUTPUTS, INPUTS - _INPUT, 0),
            CODE: self._text(r),
            INPUTS: inputs.ljust(len(inputs) + _INPUT, b"\0"),  # the frame loads once more than there are blocks
        }

    def _text(self, r: random.Random) -> bytes:
        turn, load = _turn()
        entry = CODE + 32
        load_at = entry + len(turn)
        at = load_at + len(load)
        bodies = [code([op("ld", rd=5, imm=_X5), *(w for item in b.items for w in item)]) for b in self.blocks]
        trailer = 4 + 4 + _TRANSFER
        places: list[int] = []
        for group in range(0, len(bodies), 6):  # near each other, in any order
            order = list(range(group, min(group + 6, len(bodies))))
            r.shuffle(order)
            found = {}
            for i in order:
                at += 2 * r.randrange(4)
                if r.random() < 0.02:  # the next one begins at the end of a page, or farther away
                    at = (at & -4096) + r.choice((4096, 8192, 65536)) - 2 * r.randrange(1, 5)
                found[i] = at
                at += len(bodies[i]) + trailer
            places += [found[i] for i in sorted(found)]
        self.places = places
        finish = at
        text = bytearray(finish - CODE)

        def put(address: int, data: bytes) -> None:
            text[address - CODE : address - CODE + len(data)] = data

        put(entry, turn)
        put(load_at, load)
        put(CODE, code([op("jal", rd=5, imm=load_at - CODE)]))
        put(CODE + 4, _transfer(r, CODE + 4, places[0]))
        for i, body in enumerate(bodies):
            here = places[i] + len(body)
            put(places[i], body)
            put(here, code([op("sd", rs2=5, imm=_X5), op("jal", rd=5, imm=entry - here - 4)]))
            put(here + 8, _transfer(r, here + 8, places[i + 1] if i + 1 < len(places) else finish))
        text += self._finish()
        assert len(text) <= CODE_LIMIT - CODE
        return bytes(text)

    def _finish(self) -> bytes:
        """write(1, states), write(1, scratch), exit(0), as Linux wants them; here the first `ecall` ends the run."""
        words = []
        for address, size in ((OUTPUTS, self.states_size), (SCRATCH, SCRATCH_PAGES << 12)):
            words += [op("addi", rd=10, imm=1), *_constant(11, address), *_constant(12, size)]
            words += [op("addi", rd=17, imm=64), op("ecall")]
        words += [op("addi", rd=10, imm=0), op("addi", rd=17, imm=93), op("ecall")]
        return code(words)

    def elf(self) -> bytes:
        """A static Linux executable: one segment of everything from address 0."""
        top = max(start + len(data) for start, data in self.segments.items())
        image = bytearray(top)
        for start, data in self.segments.items():
            image[start : start + len(data)] = data
        header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 243, 1, self.entry, 64, 0, 5, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, 0, 0, top, END, 4096)
        return (header + segment).ljust(4096, b"\0") + image


def _constant(register: int, value: int) -> list[int]:
    low = (value + 0x800 & 0xFFF) - 0x800
    return [op("lui", rd=register, imm=value - low >> 12), op("addiw", rd=register, rs1=register, imm=low)]


def _turn() -> tuple[bytes, bytes]:
    """Between two blocks: write down the state, load the next. Called with the link in x5, and x5 itself saved."""
    sd, ld, fsd, fld = (INSTRUCTIONS[name].encode for name in ("sd", "ld", "fsd", "fld"))
    window = range(0, WINDOW_SIZE, 8)
    turn = [sd(rs2=6, imm=_X6), ld(rd=6, imm=_OUT)]
    turn += [sd(rs1=6, rs2=n, imm=X + 8 * (n - 1)) for n in range(1, 32) if n not in (5, 6)]
    for n, slot in ((5, _X5), (6, _X6)):
        turn += [ld(rd=7, imm=slot), sd(rs1=6, rs2=7, imm=X + 8 * (n - 1))]
    turn += [fsd(rs1=6, rs2=n, imm=F + 8 * n) for n in range(32)]
    turn += [op("csrrs", rd=7, imm=3), sd(rs1=6, rs2=7, imm=FCSR)]
    turn += [ld(rd=8, imm=_IN), ld(rd=9, rs1=8, imm=STATE)]
    for at in window:
        turn += [ld(rd=7, rs1=9, imm=at), sd(rs1=6, rs2=7, imm=WINDOW + at)]
    turn += [op("addi", rd=6, rs1=6, imm=STATE), sd(rs2=6, imm=_OUT)]
    load = [ld(rd=8, imm=_IN), op("addi", rd=8, rs1=8, imm=_INPUT), sd(rs2=8, imm=_IN)]
    load += [ld(rd=9, rs1=8, imm=STATE)]
    for at in window:
        load += [ld(rd=7, rs1=8, imm=WINDOW + at), sd(rs1=9, rs2=7, imm=at)]
    load += [op("addi", rd=7, imm=_NOWHERE), op("sc.w", rs1=7)]  # drops a reservation
    load += [ld(rd=7, rs1=8, imm=FCSR), op("csrrw", rs1=7, imm=3)]
    load += [fld(rd=n, rs1=8, imm=F + 8 * n) for n in range(32)]
    load += [ld(rd=7, rs1=8, imm=X + 8 * 4), sd(rs2=7, imm=_X5)]
    load += [ld(rd=n, rs1=8, imm=X + 8 * (n - 1)) for n in range(1, 32) if n not in (5, 8)]
    load += [ld(rd=8, rs1=8, imm=X + 8 * 7), op("jalr", rs1=5)]
    return code(turn), code(load)


def _transfer(r: random.Random, here: int, there: int) -> bytes:
    """A jump of a random kind that reaches, in `_TRANSFER` bytes; x5 is free, and not 0."""
    low = (there - here + 0x800 & 0xFFF) - 0x800
    high = there - here - low >> 12
    near = there - here
    kinds: list[list[tuple[str, dict[str, int]]]] = [
        [("jal", {"rd": r.choice((0, 5)), "imm": near})],
        [("auipc", {"rd": 5, "imm": high}), ("jalr", {"rd": r.choice((0, 5)), "rs1": 5, "imm": low | r.randrange(2)})],
        [("auipc", {"rd": 5, "imm": high}), ("addi", {"rd": 5, "rs1": 5, "imm": low}), ("c.jr", {"rs1": 5})],
        [("beq", {"rs1": 5, "imm": 8}), ("jal", {"imm": near - 4})],  # not taken
        [("bne", {"rs1": 5, "imm": 8}), ("jal", {"imm": -4}), ("jal", {"imm": near - 8})],
        [("c.j", {"imm": near})],
        [(r.choice(("beq", "bge", "bgeu")), {"rs1": 0, "rs2": 0, "imm": near})],
        [("bltu", {"rs1": 0, "rs2": 5, "imm": near})],
        [("bne", {"rs1": 5, "rs2": 0, "imm": near})],
    ]
    kinds = kinds if abs(near) < 2000 else kinds[:5]
    return code([op(name, **operands) for name, operands in r.choice(kinds)])
