"""Encodings: no two rows claim one word, operands survive a round trip, compressed rows mean what they stand for."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from vmm.isa.csr import CSRS, NUMBERS, Privilege
from vmm.isa.encoding import BitField, Flag, Instruction, Packing
from vmm.isa.table import BASE, COMPRESSED, INSTRUCTIONS, decode


def words(insn: Instruction, count: int) -> list[int]:
    """Random encodings of a row."""
    r = random.Random(insn.name)
    free = sum(field.mask for field in insn.operands.values())
    found: list[int] = []
    while len(found) < count:
        word = insn.match | r.getrandbits(32) & free
        if insn.matches(word):
            found.append(word)
    return found


def test_no_two_32_bit_rows_match_one_word() -> None:
    for a, b in combinations(BASE.values(), 2):
        assert (a.match ^ b.match) & a.mask & b.mask, f"{a} overlaps {b}"


def test_every_16_bit_word_decodes_to_one_row_at_most() -> None:
    for word in range(1 << 16):
        if word & 3 != 3:
            rows = [insn for insn in COMPRESSED.values() if insn.matches(word)]
            assert len(rows) <= 1, f"{word:#06x}: {rows}"
            assert decode(word) is (rows[0] if rows else None)


def test_lengths_are_in_the_low_bits() -> None:
    for insn in INSTRUCTIONS.values():
        assert insn.mask & 3 == 3
        assert (insn.match & 3 == 3) == (insn.length == 4)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_operands_survive_a_round_trip(name: str) -> None:
    insn = INSTRUCTIONS[name]
    ignored = ~(insn.mask | sum(field.mask for field in insn.operands.values()))
    for word in words(insn, 50):
        assert decode(word) is insn
        assert insn.encode(**insn.extract(word)) == word & ~ignored


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_packed_operands_hold_all_that_semantics_ask_for(name: str) -> None:
    insn = INSTRUCTIONS[name]
    assert {slot.operand for slot in insn.packing.value} >= set(insn.sources)
    for word in words(insn, 50):
        packed = insn.pack(word)
        for slot in insn.packing.value:
            if slot.operand in insn.sources:
                value = packed >> slot.low & ((1 << slot.width) - 1)
                if slot.signed and value >> (slot.width - 1):
                    value -= 1 << slot.width
                assert value == insn.sources[slot.operand].extract(word)


def test_packings() -> None:
    expected = {"add": "RRR", "fmadd.d": "RRR", "addi": "RI", "lw": "RI", "jalr": "RI", "csrrw": "RI", "sd": "SB"}
    expected |= {"beq": "SB", "lui": "U24", "auipc": "U24", "jal": "U24", "c.j": "U24", "c.sdsp": "SB"}
    assert {name: INSTRUCTIONS[name].packing.name for name in expected} == expected
    assert BASE["fmadd.s"].pack(BASE["fmadd.s"].encode(rd=1, rs1=2, rs2=3, rs3=31, rm=7)) == 0xFF030201


def test_operands_that_cannot_be_encoded_are_refused() -> None:
    for name, operands in {
        "addi": {"imm": 2048},
        "jal": {"imm": 3},
        "add": {"rd": 32},
        "fadd.s": {"rm": 5},
        "c.addi16sp": {"imm": 0},
        "c.lw": {"rd": 7},
        "c.jr": {"rs1": 0},
        "ecall": {"rd": 1},
    }.items():
        with pytest.raises(ValueError, match=name):
            INSTRUCTIONS[name].encode(**operands)


@pytest.mark.parametrize(
    "word",
    [
        0x0000,  # the defined illegal instruction
        0x0004,  # c.addi4spn without an immediate
        0x6101,  # c.addi16sp, the same
        0x6081,  # c.lui, the same
        0x2001,  # c.addiw of x0
        0x4002,  # c.lwsp to x0
        0x6002,  # c.ldsp to x0
        0x8002,  # c.jr x0
        0x8000,  # quadrant 0, funct3 4
        0x9C41,  # two reserved register operations
        0x9C61,
        0xFFFFFFFF,
        0x0000707F,
        0x02A5D553,  # fadd.d with rounding mode 5
        0x60A51513,  # as clz, but of no defined operation
    ],
)
def test_reserved_words_are_illegal(word: int) -> None:
    assert decode(word) is None


@pytest.mark.parametrize(
    ("word", "name", "meaning"),
    [
        (0x0001, "c.nop", {"rd": 0, "rs1": 0, "imm": 0}),
        (0x0005, "c.nop", {"rd": 0, "rs1": 0, "imm": 0}),
        (0x4005, "c.li", {"rd": 0, "rs1": 0, "imm": 1}),
        (0x6005, "c.lui", {"rd": 0, "imm": 1}),
        (0x0002, "c.slli", {"rd": 0, "rs1": 0, "imm": 0}),
        (0x8006, "c.mv", {"rd": 0, "rs1": 0, "rs2": 1}),
        (0x9006, "c.add", {"rd": 0, "rs1": 0, "rs2": 1}),
    ],
)
def test_hints_do_nothing_to_nothing(word: int, name: str, meaning: dict[str, int]) -> None:
    insn = decode(word)
    assert insn is COMPRESSED[name]
    assert {operand: field.extract(word) for operand, field in insn.sources.items()} == meaning


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_compressed_row_gives_its_base_every_operand_within_range(name: str) -> None:
    insn = COMPRESSED[name]
    assert insn.base.length == 4
    assert insn.flags == insn.base.flags
    assert insn.sources.keys() == insn.base.sources.keys()
    for word in words(insn, 50):
        operands = {operand: field.extract(word) for operand, field in insn.sources.items()}
        expanded = insn.base.encode(**operands)  # refuses what does not fit
        assert insn.pack(word) == insn.base.pack(expanded)


def test_immediates_of_jumps_and_stores_are_reassembled() -> None:
    assert BASE["jal"].extract(0xFE1FF06F) == {"rd": 0, "imm": -32}
    assert BASE["beq"].extract(0xFE208EE3) == {"rs1": 1, "rs2": 2, "imm": -4}
    assert BASE["sd"].extract(0xFE113C23) == {"rs1": 2, "rs2": 1, "imm": -8}
    assert COMPRESSED["c.addi16sp"].extract(0x7139) == {"imm": -64}
    assert COMPRESSED["c.lw"].extract(0x47D4) == {"rd": 13, "rs1": 15, "imm": 12}


def test_a_constant_is_a_field_without_pieces() -> None:
    assert BitField(add=2).extract(0xFFFF) == 2
    assert COMPRESSED["c.jalr"].sources["rd"] == BitField(add=1)


def test_flags() -> None:
    assert BASE["fld"].flags == Flag.LOAD | Flag.FP
    assert BASE["fadd.s"].flags == Flag.FP | Flag.ROUNDS
    assert BASE["lr.w"].flags == Flag.AMO
    assert COMPRESSED["c.beqz"].flags == Flag.BRANCH | Flag.ENDS_BLOCK
    assert BASE["csrrs"].flags == Flag.CSR | Flag.ENDS_BLOCK
    assert BASE["fence"].flags == Flag.NONE
    for insn in BASE.values():
        fp = insn.extension in ("F", "D")
        assert bool(insn.flags & Flag.FP) == fp
        assert bool(insn.flags & Flag.ROUNDS) == ("rm" in insn.operands)
        assert insn.packing in Packing


def test_registers_are_told_apart_by_the_spelling() -> None:
    assert BASE["fcvt.w.d"].is_fp_register("rs1")
    assert not BASE["fcvt.w.d"].is_fp_register("rd")
    assert BASE["fsw"].is_fp_register("rs2")
    assert not BASE["fsw"].is_fp_register("rs1")


def test_fences_ignore_the_fields_that_are_reserved() -> None:
    assert decode(0x8330000F) is BASE["fence"], "fence.tso"
    assert decode(0x0FF5058F) is BASE["fence"]
    assert decode(0xFFF0100F) is BASE["fence.i"]


def test_csr_numbers_say_who_may_access_them() -> None:
    assert len(NUMBERS) == len(CSRS)
    assert (CSRS[0xC01].privilege, CSRS[0xC01].read_only) == (Privilege.U, True)
    assert (CSRS[NUMBERS["satp"]].privilege, CSRS[NUMBERS["satp"]].read_only) == (Privilege.S, False)
    assert (CSRS[NUMBERS["mhartid"]].privilege, CSRS[NUMBERS["mhartid"]].read_only) == (Privilege.M, True)


def test_the_page_of_the_docs_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tools.docs_isa", "--check"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
