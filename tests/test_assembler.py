"""The assembler of the tests against the disassembler, and against what a program does."""

from __future__ import annotations

import random

import pytest

from tests.assembler import assemble, labels, load_immediate
from vmm.isa.disasm import disassemble

WORDS = {
    "add a0, a1, t6": 0x01F5_8533,
    "ld s0, -8(sp)": 0xFF81_3403,
    "sd ra, 2040(gp)": 0x7E11_BC23,
    "lui t0, 0x80000": 0x8000_02B7,
    "csrrw zero, mtvec, t0": 0x3052_9073,
    "csrrsi a0, mstatus, 8": 0x3004_6573,
    "amoadd.d.aqrl t0, t1, (t2)": 0x0663_B2AF,
    "lr.w t0, (t1)": 0x1003_22AF,
    "fence rw, w": 0x0310_000F,
    "srai a0, a0, 63": 0x43F5_5513,
    "mret": 0x3020_0073,
}


@pytest.mark.parametrize("text", WORDS)
def test_an_instruction_has_its_encoding(text: str) -> None:
    assert int.from_bytes(assemble(text), "little") == WORDS[text]


def test_labels_are_known_before_and_after_their_place() -> None:
    program = "j over; back: .dword back, over\nover: bnez a0, back; la t0, back"
    assert labels(program) == {"back": 0x8000_0004, "over": 0x8000_0014}
    words = memoryview(assemble(program)).cast("I").tolist()
    assert words[1:5] == [0x8000_0004, 0, 0x8000_0014, 0]
    assert disassemble(words[0], 0x8000_0000) == "jal zero,0x80000014"
    assert disassemble(words[5], 0x8000_0014) == "bne a0,zero,0x80000004"


def test_any_constant_can_be_loaded() -> None:
    rng = random.Random(1)
    for bits in range(1, 65):
        for value in (rng.getrandbits(bits), (1 << bits) - 1, 1 << bits - 1, -(1 << bits - 1)):
            register = 0
            for word in load_immediate(5, value):
                register = step(word, register)
            assert register == value % (1 << 64), hex(value)


def step(word: int, register: int) -> int:
    """What lui, addi, addiw and slli on one register make of it."""
    low = (word >> 20 ^ 0x800) - 0x800
    if word & 0x7F == 0x37:
        result = (word & 0xFFFF_F000 ^ 1 << 31) - (1 << 31)
    elif word & 0x7F == 0x1B:
        result = (register + low & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
    elif word >> 12 & 7 == 1:
        result = register << (word >> 20)
    else:
        result = (register if word >> 15 & 31 else 0) + low
    return result % (1 << 64)


@pytest.mark.parametrize("text", ["add a0, a1", "lw a0, a1", "bogus", "addi a0, a0, 4096", "li a0, nothing"])
def test_what_cannot_be_assembled_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.split()[0]):
        assemble(text)
