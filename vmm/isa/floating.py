"""F and D: single and double precision floating point."""

from __future__ import annotations

from vmm.isa.encoding import Flag, family

# fmt: off
D = (
    *family("D", "fd, imm(rs1)", Flag.LOAD | Flag.FP, [
        ("fld", "imm[11:0] rs1 011 rd 0000111", lambda c: c.set_freg(c.load(c.rs1 + c.imm, 8, False)), "load"),
    ]),
    *family("D", "fs2, imm(rs1)", Flag.STORE | Flag.FP, [
        ("fsd", "imm[11:5] rs2 rs1 011 imm[4:0] 0100111", lambda c: c.store(c.rs1 + c.imm, 8, c.freg(2)), "store"),
    ]),
)
# fmt: on
