"""The disassembler against binutils, over random encodings of every row."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmm.isa.csr import CSRS
from vmm.isa.disasm import disassemble
from vmm.isa.encoding import Flag, Instruction
from vmm.isa.table import INSTRUCTIONS, decode

TOOLS = next((t for t in ("riscv64-linux-gnu-", "riscv64-unknown-elf-") if shutil.which(f"{t}objdump")), "")
MARCH = "rv64imafdc_zicsr_zifencei_zba_zbb_zbs_zicbom_zicboz"
PER_ROW = 40
EXACT_CONVERSIONS = ("fcvt.d.w", "fcvt.d.wu", "fcvt.d.s")


def spelled_alike(insn: Instruction, word: int) -> bool:
    """Whether binutils knows this encoding, by the same name."""
    operands = insn.extract(word)
    if insn.name in EXACT_CONVERSIONS:  # it takes no other mode than 0, and hides that
        return False
    if insn.name == "fence":  # an empty set has no spelling
        return operands["pred"] != 0 and operands["succ"] != 0
    if insn.flags & Flag.CSR:
        return operands["imm"] in CSRS
    if insn.name in ("c.slli", "c.srli", "c.srai"):  # a shift by 0 is "c.slli64" there
        return operands["imm"] != 0
    return insn.name != "c.nop"  # "c.addi x0,0" there


def sample() -> list[int]:
    r = random.Random(5)
    words: list[int] = []
    for insn in INSTRUCTIONS.values():
        free = sum(field.mask for field in insn.operands.values())
        candidates = [insn.match | r.getrandbits(32) & free for _ in range(PER_ROW)]
        words += [w for w in candidates if insn.matches(w) and spelled_alike(insn, w)]
    for number in CSRS:
        words.append(INSTRUCTIONS["csrrw"].encode(rd=5, rs1=6, imm=number))
    return words


@pytest.mark.skipif(not TOOLS, reason="no riscv binutils")
def test_spelling_is_that_of_objdump(tmp_path: Path) -> None:
    words = sample()
    source, obj = tmp_path / "words.s", tmp_path / "words.o"
    source.write_text("".join(f".insn {4 if w & 3 == 3 else 2}, {w:#x}\n" for w in words))
    subprocess.run([f"{TOOLS}as", f"-march={MARCH}", source, "-o", obj], check=True)
    dump = subprocess.run(
        [f"{TOOLS}objdump", "-d", "-M", "no-aliases,numeric", obj], check=True, capture_output=True, text=True
    ).stdout
    lines = re.findall(r"^ *([0-9a-f]+):\s+([0-9a-f]+)\s+([^#<\n]*)", dump, re.MULTILINE)
    assert len(lines) == len(words)
    for word, (at, shown, text) in zip(words, lines, strict=True):
        assert int(shown, 16) == word
        insn = decode(word)
        assert insn is not None
        ours = disassemble(word, int(at, 16), numeric=True)
        if "target" in insn.syntax:
            ours = re.sub(r"0x(?=[0-9a-f]+$)", "", ours)
        assert ours == text.strip().replace("\t", " "), hex(word)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (0x00A50533, "add a0,a0,a0"),
        (0x0085B503, "ld a0,8(a1)"),
        (0xFE1FF06F, "jal zero,0x80000000"),
        (0x02B57553, "fadd.d fa0,fa0,fa1"),
        (0x02B51553, "fadd.d fa0,fa0,fa1,rtz"),
        (0x00C5A52F, "amoadd.w a0,a2,(a1)"),
        (0x06C5B52F, "amoadd.d.aqrl a0,a2,(a1)"),
        (0x18051073, "csrrw zero,satp,a0"),
        (0x0330000F, "fence rw,rw"),
        (0x1141, "c.addi sp,-16"),
        (0x6541, "c.lui a0,0x10"),
        (0x8082, "c.jr ra"),
        (0x0001, "c.nop"),
        (0x0000, ".2byte 0x0000"),
        (0x0000707F, ".4byte 0x0000707f"),
    ],
)
def test_registers_have_their_calling_convention_names(word: int, text: str) -> None:
    assert disassemble(word, pc=0x80000020) == text
