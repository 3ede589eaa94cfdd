"""C for RV64 with D: instructions of 16 bits, each with the one it stands for.

Encodings that the manual calls HINTs decode to the harmless instruction they look like (rd = x0, shift by 0);
reserved ones match no row. The word of all zeros matches none.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.isa.encoding import Instruction, compressed


# fmt: off
def rows(bases: Mapping[str, Instruction]) -> tuple[Instruction, ...]:
    """The table, expanding to the 32-bit instructions `bases` (by name)."""
    return compressed(bases, [
        # quadrant 0
        ("c.addi4spn", "000 nzuimm[5:4|9:6|2|3] rd' 00",             "rd, x2, imm",    "addi rd, x2, imm"),
        ("c.fld",      "001 uimm[5:3] rs1' uimm[7:6] rd' 00",        "fd, imm(rs1)",   "fld fd, imm(rs1)"),
        ("c.lw",       "010 uimm[5:3] rs1' uimm[2|6] rd' 00",        "rd, imm(rs1)",   "lw rd, imm(rs1)"),
        ("c.ld",       "011 uimm[5:3] rs1' uimm[7:6] rd' 00",        "rd, imm(rs1)",   "ld rd, imm(rs1)"),
        ("c.fsd",      "101 uimm[5:3] rs1' uimm[7:6] rs2' 00",       "fs2, imm(rs1)",  "fsd fs2, imm(rs1)"),
        ("c.sw",       "110 uimm[5:3] rs1' uimm[2|6] rs2' 00",       "rs2, imm(rs1)",  "sw rs2, imm(rs1)"),
        ("c.sd",       "111 uimm[5:3] rs1' uimm[7:6] rs2' 00",       "rs2, imm(rs1)",  "sd rs2, imm(rs1)"),
        # quadrant 1
        ("c.nop",      "000 - 00000 ----- 01",                       "",               "addi x0, x0, 0"),
        ("c.addi",     "000 imm[5] rd!=0 imm[4:0] 01",               "rd, imm",        "addi rd, rd, imm"),
        ("c.addiw",    "001 imm[5] rd!=0 imm[4:0] 01",               "rd, imm",        "addiw rd, rd, imm"),
        ("c.li",       "010 imm[5] rd imm[4:0] 01",                  "rd, imm",        "addi rd, x0, imm"),
        ("c.addi16sp", "011 nzimm[9] 00010 nzimm[4|6|8:7|5] 01",     "x2, imm",        "addi x2, x2, imm"),
        ("c.lui",      "011 nzimm[5] rd!=2 nzimm[4:0] 01",           "rd, upper",      "lui rd, upper"),
        ("c.srli",     "100 uimm[5] 00 rd' uimm[4:0] 01",            "rd, shamt",      "srli rd, rd, shamt"),
        ("c.srai",     "100 uimm[5] 01 rd' uimm[4:0] 01",            "rd, shamt",      "srai rd, rd, shamt"),
        ("c.andi",     "100 imm[5] 10 rd' imm[4:0] 01",              "rd, imm",        "andi rd, rd, imm"),
        ("c.sub",      "100 0 11 rd' 00 rs2' 01",                    "rd, rs2",        "sub rd, rd, rs2"),
        ("c.xor",      "100 0 11 rd' 01 rs2' 01",                    "rd, rs2",        "xor rd, rd, rs2"),
        ("c.or",       "100 0 11 rd' 10 rs2' 01",                    "rd, rs2",        "or rd, rd, rs2"),
        ("c.and",      "100 0 11 rd' 11 rs2' 01",                    "rd, rs2",        "and rd, rd, rs2"),
        ("c.subw",     "100 1 11 rd' 00 rs2' 01",                    "rd, rs2",        "subw rd, rd, rs2"),
        ("c.addw",     "100 1 11 rd' 01 rs2' 01",                    "rd, rs2",        "addw rd, rd, rs2"),
        ("c.j",        "101 imm[11|4|9:8|10|6|7|3:1|5] 01",          "target",         "jal x0, target"),
        ("c.beqz",     "110 imm[8|4:3] rs1' imm[7:6|2:1|5] 01",      "rs1, target",    "beq rs1, x0, target"),
        ("c.bnez",     "111 imm[8|4:3] rs1' imm[7:6|2:1|5] 01",      "rs1, target",    "bne rs1, x0, target"),
        # quadrant 2
        ("c.slli",     "000 uimm[5] rd uimm[4:0] 10",                "rd, shamt",      "slli rd, rd, shamt"),
        ("c.fldsp",    "001 uimm[5] rd uimm[4:3|8:6] 10",            "fd, imm(x2)",    "fld fd, imm(x2)"),
        ("c.lwsp",     "010 uimm[5] rd!=0 uimm[4:2|7:6] 10",         "rd, imm(x2)",    "lw rd, imm(x2)"),
        ("c.ldsp",     "011 uimm[5] rd!=0 uimm[4:3|8:6] 10",         "rd, imm(x2)",    "ld rd, imm(x2)"),
        ("c.jr",       "100 0 rs1!=0 00000 10",                      "rs1",            "jalr x0, 0(rs1)"),
        ("c.mv",       "100 0 rd rs2!=0 10",                         "rd, rs2",        "add rd, x0, rs2"),
        ("c.ebreak",   "100 1 00000 00000 10",                       "",               "ebreak"),
        ("c.jalr",     "100 1 rs1!=0 00000 10",                      "rs1",            "jalr x1, 0(rs1)"),
        ("c.add",      "100 1 rd rs2!=0 10",                         "rd, rs2",        "add rd, rd, rs2"),
        ("c.fsdsp",    "101 uimm[5:3|8:6] rs2 10",                   "fs2, imm(x2)",   "fsd fs2, imm(x2)"),
        ("c.swsp",     "110 uimm[5:2|7:6] rs2 10",                   "rs2, imm(x2)",   "sw rs2, imm(x2)"),
        ("c.sdsp",     "111 uimm[5:3|8:6] rs2 10",                   "rs2, imm(x2)",   "sd rs2, imm(x2)"),
    ])
# fmt: on
