"""Pairs of instructions that run as one: which, and the pre-decoder's choice.

What limits the interpreter is the jump from handler to handler, about four host cycles whatever the instruction, and
the way of a result through the hart's state in memory, about seven. A fused handler saves the first once a pair, and
the second where the pair is chosen for it: `ld.2+bne.2:rs1` stands for a load whose result is the branch's rs1.

The second instruction keeps its own record, with its operands: a jump into the middle of a pair finds it there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmm.codegen.ir import Val
from vmm.isa.table import BASE
from vmm.vcpu.layout import PAGE, RECORD
from vmm.vcpu.native.abi import Native
from vmm.vcpu.native.decoder import INDEX, Variant, fetch, handler_name, variants

#: `first.bytes+second.bytes`, and after a colon the operand of the second that is the first's result. The most frequent
#: pairs of 350,000 instructions of a Debian boot, in 14 windows, and of the programs `mix` and `branchy69k`.
_FREQUENT = """
    add.2+add.2 ld.2+ld.2 sd.2+ld.2 ld.2+add.2 sb.4+sb.4 lb.4+lb.4 ld.2+bne.2:rs1 sd.2+sd.2 add.2+sd.2 addi.2+bne.4
    sd.4+sd.4 ld.2+beq.2:rs1 xor.4+xor.4 addi.2+addi.2 lw.2+addi.2 lw.2+lw.2 ld.4+ld.4 sd.2+addi.2 add.2+addi.2
    lbu.4+addi.2 addi.2+blt.4 srli.4+add.2 addi.2+jalr.2 add.2+jal.2 addi.2+sd.2:rs1 andi.2+bne.2:rs1 andi.4+beq.4:rs1
    ld.2+addi.2 slli.4+add.2:rs1 andi.4+addi.2 lui.4+addiw.4:rs1 addi.2+bltu.4 srli.4+xor.4:rs2 add.2+beq.2 add.2+beq.4
    or.4+sd.4 slli.4+srli.4 slli.2+slli.2 addi.4+addi.4 sb.4+addi.2 lbu.4+andi.2:rs1 add.4+lbu.4:rs1 lbu.4+lbu.4
    lw.4+lw.4 slli.4+xor.4 add.2+ld.2 addi.4+beq.4:rs2 add.4+beq.4 lbu.4+bne.2:rs1 addi.2+andi.2 ld.2+ld.4 add.2+bltu.4
    slli.2+or.4 ld.4+ld.2 ld.4+addi.2 addi.2+beq.2 srliw.4+slliw.4 addi.2+bgeu.4:rs2 addiw.4+add.2:rs2 srli.4+slli.2
    xor.4+ld.4 sltu.4+sd.2 srliw.4+srliw.4 addi.2+bge.4 sd.2+add.2 auipc.4+jalr.4:rs1 xor.4+bge.4:rs1 srli.4+andi.4:rs1
    sd.4+slli.4 srli.4+or.4 lb.4+sb.4 addi.4+add.4 add.2+slli.4:rs1 xor.4+xor.2 add.2+sub.4 andi.2+bne.4:rs1 sd.4+ld.4
    lbu.4+addi.4 lw.4+add.2 mulw.4+addw.2:rs1 mulw.4+addw.4:rs2 addw.2+bne.4 lh.4+lh.4 lh.4+addi.2 addi.2+mulw.4
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two instructions of `BASE`, their lengths in bytes, and how the second uses the first's result."""

    first: str
    first_length: int
    second: str
    second_length: int
    via: str  # "": either has nothing to do with the other, or may have

    def name(self, variant: Variant) -> str:
        """Of the handler whose second half is this variant."""
        second = handler_name(BASE[self.second], self.second_length, variant)
        return f"f_{self.first}_{self.first_length}_{self.via}{second[1:]}"


def _pairs() -> tuple[Pair, ...]:
    found = re.findall(r"(\w+)\.(\d)\+(\w+)\.(\d):?(\w*)", _FREQUENT)
    return tuple(Pair(first, int(n), second, int(m), via) for first, n, second, m, via in found)


PAIRS = _pairs()

#: Every fused handler, in the order of the table behind the plain ones: second halves that may leave the page are not.
FUSED = [(pair, variant) for pair in PAIRS for variant in variants(BASE[pair.second]) if not variant.far]
_NUMBER = {pair.name(variant): len(INDEX) + i for i, (pair, variant) in enumerate(FUSED)}


def define(native: Native) -> None:
    """(st, record, its byte offset in the page, what `decode` said of it) -> number of its handler: its own, or one of
    the pair with what follows, whose record is then decoded too."""
    f, st, (record, offset, decoded) = native.plain("fuse")
    first = decoded & 0xFFFF_FFFF

    firsts = {(p.first, p.first_length) for p in PAIRS}
    labels = {key: f.label("first") for key in sorted(firsts)}
    neither = f.label("neither")
    numbers = {
        (name, length): [INDEX[handler_name(BASE[name], length, v)] for v in variants(BASE[name])]
        for name, length in labels
    }
    f.switch(first, [(numbers[key], label) for key, label in labels.items()], neither)
    for (name, length), label in labels.items():
        f.at(label)
        behind = offset + length
        with f.if_(behind.gtu(PAGE - 4)):  # the second must be whole in this page
            f.ret(first)
        word = fetch(native, st, record, offset, behind)
        after = native.call(st, "decode", word, behind, 0)
        second, operands = after & 0xFFFF_FFFF, after >> 32
        its_record = record.offset(length // 2 * RECORD)
        cases: dict[int, list[tuple[Pair, Variant]]] = {}
        for pair, variant in FUSED:
            if (pair.first, pair.first_length) == (name, length):
                number = INDEX[handler_name(BASE[pair.second], pair.second_length, variant)]
                cases.setdefault(number, []).append((pair, variant))
        targets = {number: f.label("second") for number in cases}
        f.switch(second, [((number,), target) for number, target in targets.items()], neither)
        for number, target in targets.items():
            f.at(target)
            for pair, variant in cases[number]:
                with f.if_(_fits(pair, decoded >> 32, operands)):
                    native.call(st, "commit", its_record, behind, number, operands)
                    # Another hart may have been first, with other bytes: the pair must run on what its record says.
                    same = f.load("i32", its_record, 4, order="acquire").zext().eq(operands)
                    f.ret(f.select(same, f.const(_NUMBER[pair.name(variant)]), first))
            f.goto(neither)
    f.at(neither)
    f.ret(first)


def _fits(pair: Pair, first: Val, second: Val) -> Val:
    """Are the records' operands such that the second uses the first's result as the pair says?"""
    f = first.f
    if not pair.via:
        return f.const(1, "i1")
    slot = next(s for s in BASE[pair.second].packing.value if s.operand == pair.via)
    return (first & 0xFF).eq((second >> slot.low) & 0xFF)
