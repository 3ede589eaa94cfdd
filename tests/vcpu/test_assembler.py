"""The tests' own assembler says what the disassembler reads."""

from __future__ import annotations

import pytest

from tests.vcpu.asm import assemble
from vmm.isa.disasm import disassemble


@pytest.mark.parametrize(
    "line",
    [
        "addi x5,x0,-1",
        "lui x5,0x80000",
        "ld x5,8(x6)",
        "c.sdsp x5,16(x2)",
        "amoadd.w.aqrl x5,x6,(x7)",
        "lr.d x5,(x7)",
        "fmadd.s f1,f2,f3,f4,rmm",
        "fadd.d f1,f2,f3",
        "fcvt.w.d x5,f6,rtz",
        "csrrw x5,mscratch,x6",
        "csrrsi x0,fflags,3",
        "fence rw,w",
        "cbo.zero (x5)",
        "sfence.vma x0,x0",
        "c.addi16sp x2,-16",
        "wfi",
    ],
)
def test_lines_survive_a_round_trip(line: str) -> None:
    word = int.from_bytes(assemble(line), "little")
    assert disassemble(word, numeric=True) == line


def test_places_are_targets() -> None:
    code = assemble("top: c.nop; beq x5,x6,top\njal x1,over; .word 0x12345678\nover: c.nop")
    assert disassemble(int.from_bytes(code[2:6], "little"), 2, numeric=True) == "beq x5,x6,0x0"
    assert disassemble(int.from_bytes(code[6:10], "little"), 6, numeric=True) == "jal x1,0xe"
    assert len(code) == 16


def test_a_line_that_is_spelled_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="not like ld"):
        assemble("ld x5,x6")
