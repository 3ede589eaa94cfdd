"""How an instruction is defined: one row holds its encoding, spelling, semantics and meaning.

An encoding is written as the tables of the RISC-V manual write it, most significant bit first:

    imm[12|10:5] rs2 rs1 000 imm[4:1|11] 1100011        beq
    011 nzimm[9] 00010 nzimm[4|6|8:7|5] 01              c.addi16sp

| token                      | stands for                                                                            |
|----------------------------|---------------------------------------------------------------------------------------|
| `0`, `1`                   | fixed bits                                                                            |
| `-`                        | bits that are ignored                                                                 |
| `rd rs1 rs2 rs3`           | a register number of five bits                                                        |
| `rd' rs1' rs2'`            | a register number of three bits, for registers 8 to 15                                |
| `imm[7:6]`, `uimm[7:6]`    | these bits of operand `imm`, which is signed or unsigned                              |
| `nzimm[...] nzuimm[...]`   | the same, and an immediate of zero is another instruction or reserved                 |
| `rm`                       | a rounding mode; 5 and 6 are reserved (unpriv. spec, "F", rounding modes)             |
| `aq rl pred succ`          | the fields of those names                                                             |
| `rd!=0,2`                  | the field, except for these values                                                    |

A spelling is a list of the words of `WORDS` with the assembler's punctuation. A compressed instruction has no
semantics of its own: its row says which 32-bit instruction it stands for, in assembler.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm.isa.context import Context

if TYPE_CHECKING:  # types only, see context.py
    from vmm.codegen.ir import Val

#: The value for rd, or None if the instruction has no integer result.
Semantics = Callable[[Context], "Val | None"]


class Flag(enum.Flag):
    """What a pre-decoder or an interpreter must know of an instruction beyond its semantics."""

    NONE = 0
    LOAD = enum.auto()
    STORE = enum.auto()
    AMO = enum.auto()  #: lr, sc and the read-modify-write instructions
    BRANCH = enum.auto()  #: conditional, pc-relative
    JAL = enum.auto()
    JALR = enum.auto()
    CSR = enum.auto()
    SYSTEM = enum.auto()  #: may trap by design, or changes what the following instructions mean
    FP = enum.auto()  #: illegal while mstatus.FS is Off
    ROUNDS = enum.auto()  #: has a rounding mode field
    ENDS_BLOCK = enum.auto()  #: what runs next is not surely what follows in memory, or not in the same mode


class Piece(NamedTuple):
    """Bits `hi`..`lo` of an instruction, which are bits `at`, `at` + 1, ... of an operand."""

    hi: int
    lo: int
    at: int


@dataclass(frozen=True, slots=True)
class BitField:
    """Where an operand's bits are in an instruction. A field without pieces is the constant `add`."""

    pieces: tuple[Piece, ...] = ()
    signed: bool = False
    add: int = 0

    @property
    def width(self) -> int:
        """One more than the highest bit of the operand; an immediate's implied low zeros count."""
        return max((p.at + p.hi - p.lo + 1 for p in self.pieces), default=0)

    @property
    def mask(self) -> int:
        """The bits of the instruction that hold this operand."""
        return sum((1 << (p.hi + 1)) - (1 << p.lo) for p in self.pieces)

    def extract(self, word: int) -> int:
        value = 0
        for hi, lo, at in self.pieces:
            value |= ((word >> lo) & ((1 << (hi - lo + 1)) - 1)) << at
        if self.signed and value >> (self.width - 1):
            value -= 1 << self.width
        return value + self.add

    def insert(self, value: int) -> int:
        """The instruction bits that hold `value`; ValueError if it cannot be encoded."""
        word = 0
        for hi, lo, at in self.pieces:
            word |= (((value - self.add) >> at) & ((1 << (hi - lo + 1)) - 1)) << lo
        if self.extract(word) != value:
            raise ValueError(f"{value} does not fit")
        return word


@dataclass(frozen=True, slots=True)
class Excluding:
    """A word is this instruction only if `operand` has none of `values`."""

    operand: str
    values: tuple[int, ...]


class Slot(NamedTuple):
    """Where a packing keeps an operand in the 32 bits that follow a record's handler address."""

    operand: str
    low: int
    width: int
    signed: bool = False


class Packing(enum.Enum):
    """The layouts of the four operand bytes of a pre-decoded record (little-endian u32)."""

    RRR = (Slot("rd", 0, 8), Slot("rs1", 8, 8), Slot("rs2", 16, 8), Slot("rs3", 24, 5), Slot("rm", 29, 3))
    RI = (Slot("rd", 0, 8), Slot("rs1", 8, 8), Slot("imm", 16, 16, True))
    SB = (Slot("rs2", 0, 8), Slot("rs1", 8, 8), Slot("imm", 16, 16, True))
    U24 = (Slot("rd", 0, 8), Slot("imm", 8, 24, True))

    @classmethod
    def of(cls, operands: Mapping[str, BitField]) -> Packing:
        """The layout that has room for these operands."""
        if "imm" not in operands:
            return cls.RRR
        if operands["imm"].width > 16:
            return cls.U24
        return cls.SB if "rs2" in operands else cls.RI


#: Operands that only the disassembler wants: every access is ordered as strongly as these can ask.
UNPACKED = frozenset({"aq", "rl", "pred", "succ"})

#: The words of a spelling, with the operand each one shows.
WORDS = {
    "rd": "rd", "rs1": "rs1", "rs2": "rs2", "rs3": "rs3",  # integer registers
    "fd": "rd", "fs1": "rs1", "fs2": "rs2", "fs3": "rs3",  # floating-point registers
    "imm": "imm",  # decimal
    "shamt": "imm",  # hexadecimal
    "upper": "imm",  # 20 bits, hexadecimal
    "target": "imm",  # pc-relative, shown as an address
    "csr": "imm",  # by name
    "zimm": "rs1",  # the field itself, decimal
    "rm": "rm", "pred": "pred", "succ": "succ",
}  # fmt: skip

_WORD = re.compile(r"-?\w+")


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One row of the tables."""

    name: str
    extension: str
    pattern: str
    mask: int
    match: int
    length: int  #: bytes, 2 or 4
    operands: Mapping[str, BitField]
    where: tuple[Excluding, ...]
    syntax: str
    semantics: Semantics
    flags: Flag
    doc: str
    packing: Packing
    sources: Mapping[str, BitField]  #: the operands of `base`, as bits of this instruction
    stands_for: Instruction | None = None  #: of a compressed instruction

    @property
    def base(self) -> Instruction:
        """The 32-bit instruction that this one stands for; itself if it is one."""
        return self.stands_for or self

    def __repr__(self) -> str:
        return f"<{self.name} {self.pattern}>"

    def matches(self, word: int) -> bool:
        if word & self.mask != self.match:
            return False
        return not any(self.operands[w.operand].extract(word) in w.values for w in self.where)

    def extract(self, word: int) -> dict[str, int]:
        """The operands that `word` holds. Registers are numbers, immediates are in the units of the spelling."""
        return {name: field.extract(word) for name, field in self.operands.items()}

    def encode(self, **operands: int) -> int:
        """The word with these operands; those not given are zero. ValueError if one cannot be encoded."""
        word = self.match
        for name, value in operands.items():
            try:
                word |= self.operands[name].insert(value)
            except (KeyError, ValueError) as error:
                raise ValueError(f"{self.name}: {name}={value} cannot be encoded") from error
        if not self.matches(word):
            raise ValueError(f"{self.name}: {operands} is another instruction or reserved")
        return word

    def pack(self, word: int) -> int:
        """The operand bytes of the pre-decoded record of `word`, as a u32. The native decoder does the same."""
        packed = 0
        for slot in self.packing.value:
            if slot.operand in self.sources:
                packed |= (self.sources[slot.operand].extract(word) & ((1 << slot.width) - 1)) << slot.low
        return packed

    def is_fp_register(self, operand: str) -> bool:
        """Whether register operand `operand` (rd, rs1, rs2, rs3) names a floating-point register."""
        return operand.replace("r", "f", 1) in _WORD.findall(self.syntax)


# -- reading a row ----------------------------------------------------------------------------------------------------

_WIDTHS = {"rd": 5, "rs1": 5, "rs2": 5, "rs3": 5, "rm": 3, "aq": 1, "rl": 1, "pred": 4, "succ": 4}
_TOKEN = re.compile(r"(?P<name>[a-z]\w*)(?P<short>')?(\[(?P<bits>[\d:|]+)\])?(!=(?P<not>[\d,]+))?$")


class _Pattern:
    """An encoding, read from its text."""

    def __init__(self, text: str) -> None:
        self.mask = self.match = 0
        self.where: dict[str, Excluding] = {}
        self._pieces: dict[str, list[Piece]] = {}
        self._signed: set[str] = set()
        self._add: dict[str, int] = {}
        self._pos = 0
        for token in reversed(text.split()):
            if set(token) <= {"0", "1"}:
                self.match |= int(token, 2) << self._pos
                self.mask |= ((1 << len(token)) - 1) << self._pos
                self._pos += len(token)
            elif set(token) == {"-"}:
                self._pos += len(token)
            else:
                self._field(token)
        if self._pos not in (16, 32):
            raise ValueError(f"{text!r} has {self._pos} bits")
        self.length = self._pos // 8
        self.operands = {
            name: BitField(tuple(pieces), name in self._signed, self._add.get(name, 0))
            for name, pieces in self._pieces.items()
        }

    def _field(self, token: str) -> None:
        m = _TOKEN.match(token)
        if m is None:
            raise ValueError(f"cannot read {token!r}")
        name = m["name"]
        if m["bits"]:
            if name.startswith("nz"):
                self.where["imm"] = Excluding("imm", (0,))
            if "u" not in name:
                self._signed.add("imm")
            for part in reversed(m["bits"].split("|")):
                hi, _, lo = part.partition(":")
                self._take("imm", int(hi) - int(lo or hi) + 1, int(lo or hi))
        elif m["short"]:
            self._add[name] = 8
            self._take(name, 3, 0)
        else:
            self._take(name, _WIDTHS[name], 0)
        if name == "rm":
            self.where["rm"] = Excluding("rm", (5, 6))
        if m["not"]:
            self.where[name] = Excluding(name, tuple(int(v) for v in m["not"].split(",")))

    def _take(self, name: str, width: int, at: int) -> None:
        self._pieces.setdefault(name, []).append(Piece(self._pos + width - 1, self._pos, at))
        self._pos += width


#: (name, encoding, semantics, meaning)
Row = tuple[str, str, Semantics, str]

#: (name, encoding, spelling, the 32-bit instruction in assembler)
CompressedRow = tuple[str, str, str, str]

_ENDS_BLOCK = Flag.BRANCH | Flag.JAL | Flag.JALR | Flag.CSR | Flag.SYSTEM


def family(extension: str, syntax: str, flags: Flag, rows: Iterable[Row]) -> tuple[Instruction, ...]:
    """Instructions of one extension that are spelled alike."""
    return tuple(_base(extension, syntax, flags, *row) for row in rows)


def _base(
    extension: str, syntax: str, flags: Flag, name: str, pattern: str, semantics: Semantics, doc: str
) -> Instruction:
    p = _Pattern(pattern)
    shown = {WORDS[word] for word in _WORD.findall(syntax)}
    if shown != set(p.operands) - {"aq", "rl"}:
        raise ValueError(f"{name}: {pattern!r} is not spelled {syntax!r}")
    if "rm" in p.operands:
        flags |= Flag.ROUNDS
    if flags & _ENDS_BLOCK:
        flags |= Flag.ENDS_BLOCK
    return Instruction(
        name, extension, pattern, p.mask, p.match, p.length, p.operands, tuple(p.where.values()), syntax, semantics,
        flags, doc, Packing.of(p.operands), {k: v for k, v in p.operands.items() if k not in UNPACKED},
    )  # fmt: skip


def compressed(bases: Mapping[str, Instruction], rows: Iterable[CompressedRow]) -> tuple[Instruction, ...]:
    """Instructions of 16 bits, each with the instruction of `bases` that it stands for."""
    return tuple(_compressed(bases, *row) for row in rows)


def _compressed(bases: Mapping[str, Instruction], name: str, pattern: str, syntax: str, meaning: str) -> Instruction:
    p = _Pattern(pattern)
    base_name, _, actual = meaning.partition(" ")
    base = bases[base_name]
    sources: dict[str, BitField] = {}
    for formal, word in zip(_WORD.findall(base.syntax), _WORD.findall(actual), strict=True):
        constant = re.fullmatch(r"x?(-?\d+)", word)
        sources[WORDS[formal]] = BitField(add=int(constant[1])) if constant else p.operands[WORDS[word]]
    return Instruction(
        name, "C", pattern, p.mask, p.match, p.length, p.operands, tuple(p.where.values()), syntax,
        base.semantics, base.flags, meaning, base.packing, sources, base,
    )  # fmt: skip
