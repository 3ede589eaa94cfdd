"""Zba, Zbb and Zbs: address generation, basic and single-bit manipulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.isa.context import Context
from vmm.isa.encoding import Flag, family
from vmm.isa.integer import word, zext32

if TYPE_CHECKING:  # types only, see context.py
    from vmm.codegen.ir import Val


def _unary(c: Context, intrinsic: str, value: Val, raw: str = "") -> Val:
    return c.f.intrinsic(f"llvm.{intrinsic}.{value.ty}", value.ty, value, raw=raw)


def _clz(c: Context, value: Val) -> Val:
    return _unary(c, "ctlz", value, raw="i1 false")  # false: a value of zero has an answer, the width


def _ctz(c: Context, value: Val) -> Val:
    return _unary(c, "cttz", value, raw="i1 false")


def _cpop(c: Context, value: Val) -> Val:
    return _unary(c, "ctpop", value)


def _rol(c: Context, value: Val, n: Val) -> Val:
    return c.f.intrinsic(f"llvm.fshl.{value.ty}", value.ty, value, value, n)  # takes n modulo the width


def _ror(c: Context, value: Val, n: Val) -> Val:
    return c.f.intrinsic(f"llvm.fshr.{value.ty}", value.ty, value, value, n)


def _orc_b(value: Val) -> Val:
    """Each byte that has a bit set becomes 0xff."""
    low7 = 0x7F7F7F7F7F7F7F7F
    any_set = (((value & low7) + low7) | value) & ~low7  # bit 7 of each byte
    return (any_set << 1) - (any_set >> 7)


def _bit(c: Context, n: Val) -> Val:
    return c.const(1) << (n & 63)


# fmt: off
ZBA = (
    *family("Zba", "rd, rs1, rs2", Flag.NONE, [
        ("add.uw",    "0000100 rs2 rs1 000 rd 0111011", lambda c: c.rs2 + zext32(c.rs1),        "add, rs1 its low word"),
        ("sh1add",    "0010000 rs2 rs1 010 rd 0110011", lambda c: c.rs2 + (c.rs1 << 1),         "scale by 2 and add"),
        ("sh2add",    "0010000 rs2 rs1 100 rd 0110011", lambda c: c.rs2 + (c.rs1 << 2),         "scale by 4 and add"),
        ("sh3add",    "0010000 rs2 rs1 110 rd 0110011", lambda c: c.rs2 + (c.rs1 << 3),         "scale by 8 and add"),
        ("sh1add.uw", "0010000 rs2 rs1 010 rd 0111011", lambda c: c.rs2 + (zext32(c.rs1) << 1), "scale low word by 2 and add"),
        ("sh2add.uw", "0010000 rs2 rs1 100 rd 0111011", lambda c: c.rs2 + (zext32(c.rs1) << 2), "scale low word by 4 and add"),
        ("sh3add.uw", "0010000 rs2 rs1 110 rd 0111011", lambda c: c.rs2 + (zext32(c.rs1) << 3), "scale low word by 8 and add"),
    ]),
    *family("Zba", "rd, rs1, shamt", Flag.NONE, [
        ("slli.uw", "000010 uimm[5:0] rs1 001 rd 0011011", lambda c: zext32(c.rs1) << c.imm, "shift low word left"),
    ]),
)

ZBB = (
    *family("Zbb", "rd, rs1, rs2", Flag.NONE, [
        ("andn", "0100000 rs2 rs1 111 rd 0110011", lambda c: c.rs1 & ~c.rs2,                           "and inverted"),
        ("orn",  "0100000 rs2 rs1 110 rd 0110011", lambda c: c.rs1 | ~c.rs2,                           "or inverted"),
        ("xnor", "0100000 rs2 rs1 100 rd 0110011", lambda c: ~(c.rs1 ^ c.rs2),                         "exclusive nor"),
        ("max",  "0000101 rs2 rs1 110 rd 0110011", lambda c: c.select(c.rs1.lts(c.rs2), c.rs2, c.rs1), "maximum"),
        ("maxu", "0000101 rs2 rs1 111 rd 0110011", lambda c: c.select(c.rs1.ltu(c.rs2), c.rs2, c.rs1), "maximum, unsigned"),
        ("min",  "0000101 rs2 rs1 100 rd 0110011", lambda c: c.select(c.rs1.lts(c.rs2), c.rs1, c.rs2), "minimum"),
        ("minu", "0000101 rs2 rs1 101 rd 0110011", lambda c: c.select(c.rs1.ltu(c.rs2), c.rs1, c.rs2), "minimum, unsigned"),
        ("rol",  "0110000 rs2 rs1 001 rd 0110011", lambda c: _rol(c, c.rs1, c.rs2),                    "rotate left"),
        ("ror",  "0110000 rs2 rs1 101 rd 0110011", lambda c: _ror(c, c.rs1, c.rs2),                    "rotate right"),
    ]),
    *family("Zbb", "rd, rs1, rs2", Flag.NONE, [
        ("rolw", "0110000 rs2 rs1 001 rd 0111011", lambda c: _rol(c, word(c.rs1), word(c.rs2)).sext(), "rotate left, 32 bits"),
        ("rorw", "0110000 rs2 rs1 101 rd 0111011", lambda c: _ror(c, word(c.rs1), word(c.rs2)).sext(), "rotate right, 32 bits"),
    ]),
    *family("Zbb", "rd, rs1, shamt", Flag.NONE, [
        ("rori", "011000 uimm[5:0] rs1 101 rd 0010011", lambda c: _ror(c, c.rs1, c.imm), "rotate right"),
    ]),
    *family("Zbb", "rd, rs1, shamt", Flag.NONE, [
        ("roriw", "0110000 uimm[4:0] rs1 101 rd 0011011", lambda c: _ror(c, word(c.rs1), word(c.imm)).sext(), "rotate right, 32 bits"),
    ]),
    *family("Zbb", "rd, rs1", Flag.NONE, [
        ("clz",    "011000000000 rs1 001 rd 0010011", lambda c: _clz(c, c.rs1),               "count leading zeros"),
        ("ctz",    "011000000001 rs1 001 rd 0010011", lambda c: _ctz(c, c.rs1),               "count trailing zeros"),
        ("cpop",   "011000000010 rs1 001 rd 0010011", lambda c: _cpop(c, c.rs1),              "count bits set"),
        ("clzw",   "011000000000 rs1 001 rd 0011011", lambda c: _clz(c, word(c.rs1)).zext(),  "leading zeros of word"),
        ("ctzw",   "011000000001 rs1 001 rd 0011011", lambda c: _ctz(c, word(c.rs1)).zext(),  "trailing zeros of word"),
        ("cpopw",  "011000000010 rs1 001 rd 0011011", lambda c: _cpop(c, word(c.rs1)).zext(), "bits set in word"),
        ("sext.b", "011000000100 rs1 001 rd 0010011", lambda c: c.rs1.trunc("i8").sext(),     "sign-extend byte"),
        ("sext.h", "011000000101 rs1 001 rd 0010011", lambda c: c.rs1.trunc("i16").sext(),    "sign-extend halfword"),
        ("zext.h", "000010000000 rs1 100 rd 0111011", lambda c: c.rs1 & 0xFFFF,               "zero-extend halfword"),
        ("orc.b",  "001010000111 rs1 101 rd 0010011", lambda c: _orc_b(c.rs1),                "set all bits of each byte that has one"),
        ("rev8",   "011010111000 rs1 101 rd 0010011", lambda c: _unary(c, "bswap", c.rs1),    "reverse bytes"),
    ]),
)

ZBS = (
    *family("Zbs", "rd, rs1, rs2", Flag.NONE, [
        ("bclr", "0100100 rs2      rs1 001 rd 0110011", lambda c: c.rs1 & ~_bit(c, c.rs2),     "clear bit"),
        ("bext", "0100100 rs2      rs1 101 rd 0110011", lambda c: (c.rs1 >> (c.rs2 & 63)) & 1, "extract bit"),
        ("binv", "0110100 rs2      rs1 001 rd 0110011", lambda c: c.rs1 ^ _bit(c, c.rs2),      "invert bit"),
        ("bset", "0010100 rs2      rs1 001 rd 0110011", lambda c: c.rs1 | _bit(c, c.rs2),      "set bit"),
    ]),
    *family("Zbs", "rd, rs1, shamt", Flag.NONE, [
        ("bclri", "010010 uimm[5:0] rs1 001 rd 0010011", lambda c: c.rs1 & ~_bit(c, c.imm), "clear bit"),
        ("bexti", "010010 uimm[5:0] rs1 101 rd 0010011", lambda c: (c.rs1 >> c.imm) & 1,    "extract bit"),
        ("binvi", "011010 uimm[5:0] rs1 001 rd 0010011", lambda c: c.rs1 ^ _bit(c, c.imm),  "invert bit"),
        ("bseti", "001010 uimm[5:0] rs1 001 rd 0010011", lambda c: c.rs1 | _bit(c, c.imm),  "set bit"),
    ]),
)
# fmt: on
