"""A: atomic memory operations. All are sequentially consistent, so `aq` and `rl` are only shown, not obeyed."""

from __future__ import annotations

from vmm.isa.encoding import Flag, family

# fmt: off
A = (
    *family("A", "rd, (rs1)", Flag.AMO, [
        ("lr.w", "00010 aq rl 00000 rs1 010 rd 0101111", lambda c: c.lr(c.rs1, 4), "load, reserve"),
        ("lr.d", "00010 aq rl 00000 rs1 011 rd 0101111", lambda c: c.lr(c.rs1, 8), "load, reserve"),
    ]),
    *family("A", "rd, rs2, (rs1)", Flag.AMO, [
        ("sc.w",      "00011 aq rl rs2 rs1 010 rd 0101111", lambda c: c.sc(c.rs1, 4, c.rs2),          "conditional"),
        ("sc.d",      "00011 aq rl rs2 rs1 011 rd 0101111", lambda c: c.sc(c.rs1, 8, c.rs2),          "conditional"),
        ("amoswap.w", "00001 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("xchg", c.rs1, 4, c.rs2), "exchange"),
        ("amoswap.d", "00001 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("xchg", c.rs1, 8, c.rs2), "exchange"),
        ("amoadd.w",  "00000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("add", c.rs1, 4, c.rs2),  "add"),
        ("amoadd.d",  "00000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("add", c.rs1, 8, c.rs2),  "add"),
        ("amoxor.w",  "00100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("xor", c.rs1, 4, c.rs2),  "exclusive or"),
        ("amoxor.d",  "00100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("xor", c.rs1, 8, c.rs2),  "exclusive or"),
        ("amoand.w",  "01100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("and", c.rs1, 4, c.rs2),  "and"),
        ("amoand.d",  "01100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("and", c.rs1, 8, c.rs2),  "and"),
        ("amoor.w",   "01000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("or", c.rs1, 4, c.rs2),   "or"),
        ("amoor.d",   "01000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("or", c.rs1, 8, c.rs2),   "or"),
        ("amomin.w",  "10000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("min", c.rs1, 4, c.rs2),  "minimum"),
        ("amomin.d",  "10000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("min", c.rs1, 8, c.rs2),  "minimum"),
        ("amomax.w",  "10100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("max", c.rs1, 4, c.rs2),  "maximum"),
        ("amomax.d",  "10100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("max", c.rs1, 8, c.rs2),  "maximum"),
        ("amominu.w", "11000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("umin", c.rs1, 4, c.rs2), "unsigned"),
        ("amominu.d", "11000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("umin", c.rs1, 8, c.rs2), "unsigned"),
        ("amomaxu.w", "11100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("umax", c.rs1, 4, c.rs2), "unsigned"),
        ("amomaxu.d", "11100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("umax", c.rs1, 8, c.rs2), "unsigned"),
    ]),
)
# fmt: on
