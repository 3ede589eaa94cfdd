"""A: atomic memory operations. All are sequentially consistent, so `aq` and `rl` are only shown, not obeyed."""

from __future__ import annotations

from vmm.isa.encoding import Flag, family

# fmt: off
A = (
    *family("A", "rd, (rs1)", Flag.AMO, [
        ("lr.w", "00010 aq rl 00000 rs1 010 rd 0101111", lambda c: c.lr(c.rs1, 4), "load and reserve word"),
        ("lr.d", "00010 aq rl 00000 rs1 011 rd 0101111", lambda c: c.lr(c.rs1, 8), "load and reserve doubleword"),
    ]),
    *family("A", "rd, rs2, (rs1)", Flag.AMO, [
        ("sc.w",      "00011 aq rl rs2 rs1 010 rd 0101111", lambda c: c.sc(c.rs1, 4, c.rs2),          "store word if still reserved"),
        ("sc.d",      "00011 aq rl rs2 rs1 011 rd 0101111", lambda c: c.sc(c.rs1, 8, c.rs2),          "store doubleword if still reserved"),
        ("amoswap.w", "00001 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("xchg", c.rs1, 4, c.rs2), "exchange word"),
        ("amoswap.d", "00001 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("xchg", c.rs1, 8, c.rs2), "exchange doubleword"),
        ("amoadd.w",  "00000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("add", c.rs1, 4, c.rs2),  "add to word"),
        ("amoadd.d",  "00000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("add", c.rs1, 8, c.rs2),  "add to doubleword"),
        ("amoxor.w",  "00100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("xor", c.rs1, 4, c.rs2),  "exclusive or to word"),
        ("amoxor.d",  "00100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("xor", c.rs1, 8, c.rs2),  "exclusive or to doubleword"),
        ("amoand.w",  "01100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("and", c.rs1, 4, c.rs2),  "and to word"),
        ("amoand.d",  "01100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("and", c.rs1, 8, c.rs2),  "and to doubleword"),
        ("amoor.w",   "01000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("or", c.rs1, 4, c.rs2),   "or to word"),
        ("amoor.d",   "01000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("or", c.rs1, 8, c.rs2),   "or to doubleword"),
        ("amomin.w",  "10000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("min", c.rs1, 4, c.rs2),  "minimum with word"),
        ("amomin.d",  "10000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("min", c.rs1, 8, c.rs2),  "minimum with doubleword"),
        ("amomax.w",  "10100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("max", c.rs1, 4, c.rs2),  "maximum with word"),
        ("amomax.d",  "10100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("max", c.rs1, 8, c.rs2),  "maximum with doubleword"),
        ("amominu.w", "11000 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("umin", c.rs1, 4, c.rs2), "minimum with word, unsigned"),
        ("amominu.d", "11000 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("umin", c.rs1, 8, c.rs2), "minimum with doubleword, unsigned"),
        ("amomaxu.w", "11100 aq rl rs2 rs1 010 rd 0101111", lambda c: c.amo("umax", c.rs1, 4, c.rs2), "maximum with word, unsigned"),
        ("amomaxu.d", "11100 aq rl rs2 rs1 011 rd 0101111", lambda c: c.amo("umax", c.rs1, 8, c.rs2), "maximum with doubleword, unsigned"),
    ]),
)
# fmt: on
