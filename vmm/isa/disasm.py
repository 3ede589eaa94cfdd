"""Disassembler, in the spelling of `objdump -M no-aliases`. Its one liberty: targets of jumps have their 0x."""

from __future__ import annotations

import re

from vmm.isa.csr import CSRS
from vmm.isa.encoding import WORDS, Instruction
from vmm.isa.table import decode, length

_ABI_X = (
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", *(f"a{n}" for n in range(8)),
    *(f"s{n}" for n in range(2, 12)), "t3", "t4", "t5", "t6",
)  # fmt: skip
_ABI_F = (
    *(f"ft{n}" for n in range(8)), "fs0", "fs1", *(f"fa{n}" for n in range(8)),
    *(f"fs{n}" for n in range(2, 12)), "ft8", "ft9", "ft10", "ft11",
)  # fmt: skip
_ROUNDING = ("rne", "rtz", "rdn", "rup", "rmm", "unknown", "unknown", "dyn")
_WORD = re.compile(r"\w+")


def register_names(numeric: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the integer and the floating-point registers."""
    if numeric:
        return tuple(f"x{n}" for n in range(32)), tuple(f"f{n}" for n in range(32))
    return _ABI_X, _ABI_F


def disassemble(word: int, pc: int = 0, numeric: bool = False) -> str:
    """One instruction at `pc`, of 16 bits or of 32 if the low two are set. Illegal ones are shown as data."""
    insn = decode(word)
    if insn is None:
        return f".4byte {word:#010x}" if length(word) == 4 else f".2byte {word:#06x}"
    operands = insn.extract(word)
    text = _WORD.sub(lambda m: _operand(m[0], operands, pc, numeric), insn.syntax)
    return f"{_mnemonic(insn, operands)} {text.replace(', ', ',').removesuffix(',dyn')}".rstrip()


def _mnemonic(insn: Instruction, operands: dict[str, int]) -> str:
    suffix = "".join(name for name in ("aq", "rl") if operands.get(name))
    return f"{insn.name}.{suffix}" if suffix else insn.name


def _operand(word: str, operands: dict[str, int], pc: int, numeric: bool) -> str:
    integer, floating = register_names(numeric)
    if word[0] == "x":  # a register that the instruction implies
        return integer[int(word[1:])]
    value = operands[WORDS[word]]
    match word:
        case "rd" | "rs1" | "rs2" | "rs3":
            return integer[value]
        case "fd" | "fs1" | "fs2" | "fs3":
            return floating[value]
        case "shamt":
            return f"{value:#x}"
        case "upper":
            return f"{value & 0xFFFFF:#x}"
        case "target":
            return f"{(pc + value) & (1 << 64) - 1:#x}"
        case "csr":
            return CSRS[value].name if value in CSRS else f"{value:#x}"
        case "rm":
            return _ROUNDING[value]
        case "pred" | "succ":
            return "".join(name for bit, name in enumerate("wroi") if value >> bit & 1)[::-1] or "0"
        case _:
            return str(value)
