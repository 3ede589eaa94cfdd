"""RV64I and M: integer computation, memory, control flow, multiplication and division."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.isa.context import Context
from vmm.isa.encoding import Flag, family

if TYPE_CHECKING:  # types only, see context.py
    from vmm.codegen.ir import Val


def sext32(value: Val) -> Val:
    """The low 32 bits, sign-extended: how every W instruction leaves its result."""
    return value.trunc("i32").sext()


def zext32(value: Val) -> Val:
    return value & 0xFFFFFFFF


def word(value: Val) -> Val:
    return value.trunc("i32")


def _jal(c: Context) -> Val:
    c.jal()
    return c.next_pc


def _jalr(c: Context) -> Val:
    c.jalr((c.rs1 + c.imm) & ~1)
    return c.next_pc


def _mulh(c: Context, rs1_signed: bool, rs2_signed: bool) -> Val:
    """The high half of the product."""
    a = c.rs1.sext("i128") if rs1_signed else c.rs1.zext("i128")
    b = c.rs2.sext("i128") if rs2_signed else c.rs2.zext("i128")
    return ((a * b) >> 64).trunc("i64")


def _div(c: Context, a: Val, b: Val, signed: bool) -> Val:
    """Quotient as the unpriv. spec's table "Semantics for division by zero and division overflow" wants it.

    The divisor is made 1 where LLVM's division has no answer: that is also the right quotient of the overflow.
    """
    by_zero = b.eq(0)
    if not signed:
        return c.select(by_zero, -1, a.udiv(c.select(by_zero, 1, b)))
    overflow = b.eq(-1) & a.eq(-1 << (a.bits - 1))
    return c.select(by_zero, -1, a.sdiv(c.select(by_zero | overflow, 1, b)))


def _rem(c: Context, a: Val, b: Val, signed: bool) -> Val:
    """Remainder, likewise: of the overflow it is 0, of a division by zero the dividend."""
    by_zero = b.eq(0)
    if not signed:
        return c.select(by_zero, a, a.urem(c.select(by_zero, 1, b)))
    overflow = b.eq(-1) & a.eq(-1 << (a.bits - 1))
    return c.select(by_zero, a, a.srem(c.select(by_zero | overflow, 1, b)))


def _divw(c: Context, signed: bool) -> Val:
    return _div(c, word(c.rs1), word(c.rs2), signed).sext()


def _remw(c: Context, signed: bool) -> Val:
    return _rem(c, word(c.rs1), word(c.rs2), signed).sext()


# fmt: off
I = (
    *family("I", "rd, upper", Flag.NONE, [
        ("lui",   "imm[19:0]             rd 0110111", lambda c: c.imm << 12,          "load upper immediate"),
        ("auipc", "imm[19:0]             rd 0010111", lambda c: c.pc + (c.imm << 12), "add upper immediate to pc"),
    ]),
    *family("I", "rd, target", Flag.JAL, [
        ("jal", "imm[20|10:1|11|19:12] rd 1101111", _jal, "jump and link"),
    ]),
    *family("I", "rd, imm(rs1)", Flag.JALR, [
        ("jalr", "imm[11:0]    rs1 000  rd 1100111", _jalr, "jump to register and link"),
    ]),
    *family("I", "rs1, rs2, target", Flag.BRANCH, [
        ("beq",  "imm[12|10:5] rs2 rs1 000 imm[4:1|11] 1100011", lambda c: c.branch(c.rs1.eq(c.rs2)),  "branch if equal"),
        ("bne",  "imm[12|10:5] rs2 rs1 001 imm[4:1|11] 1100011", lambda c: c.branch(c.rs1.ne(c.rs2)),  "branch if unequal"),
        ("blt",  "imm[12|10:5] rs2 rs1 100 imm[4:1|11] 1100011", lambda c: c.branch(c.rs1.lts(c.rs2)), "branch if less"),
        ("bge",  "imm[12|10:5] rs2 rs1 101 imm[4:1|11] 1100011", lambda c: c.branch(c.rs1.ges(c.rs2)), "branch if not less"),
        ("bltu", "imm[12|10:5] rs2 rs1 110 imm[4:1|11] 1100011", lambda c: c.branch(c.rs1.ltu(c.rs2)), "branch if less, unsigned"),
        ("bgeu", "imm[12|10:5] rs2 rs1 111 imm[4:1|11] 1100011", lambda c: c.branch(c.rs1.geu(c.rs2)), "branch if not less, unsigned"),
    ]),
    *family("I", "rd, imm(rs1)", Flag.LOAD, [
        ("lb",  "imm[11:0] rs1 000 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 1, True),  "load byte"),
        ("lh",  "imm[11:0] rs1 001 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 2, True),  "load halfword"),
        ("lw",  "imm[11:0] rs1 010 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 4, True),  "load word"),
        ("ld",  "imm[11:0] rs1 011 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 8, True),  "load doubleword"),
        ("lbu", "imm[11:0] rs1 100 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 1, False), "load byte, zero-extended"),
        ("lhu", "imm[11:0] rs1 101 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 2, False), "load halfword, zero-extended"),
        ("lwu", "imm[11:0] rs1 110 rd 0000011", lambda c: c.load(c.rs1 + c.imm, 4, False), "load word, zero-extended"),
    ]),
    *family("I", "rs2, imm(rs1)", Flag.STORE, [
        ("sb", "imm[11:5] rs2 rs1 000 imm[4:0] 0100011", lambda c: c.store(c.rs1 + c.imm, 1, c.rs2), "store byte"),
        ("sh", "imm[11:5] rs2 rs1 001 imm[4:0] 0100011", lambda c: c.store(c.rs1 + c.imm, 2, c.rs2), "store halfword"),
        ("sw", "imm[11:5] rs2 rs1 010 imm[4:0] 0100011", lambda c: c.store(c.rs1 + c.imm, 4, c.rs2), "store word"),
        ("sd", "imm[11:5] rs2 rs1 011 imm[4:0] 0100011", lambda c: c.store(c.rs1 + c.imm, 8, c.rs2), "store doubleword"),
    ]),
    *family("I", "rd, rs1, imm", Flag.NONE, [
        ("addi",  "imm[11:0]         rs1 000 rd 0010011", lambda c: c.rs1 + c.imm,           "add immediate"),
        ("slti",  "imm[11:0]         rs1 010 rd 0010011", lambda c: c.rs1.lts(c.imm).zext(), "1 if less, else 0"),
        ("sltiu", "imm[11:0]         rs1 011 rd 0010011", lambda c: c.rs1.ltu(c.imm).zext(), "1 if less, unsigned"),
        ("xori",  "imm[11:0]         rs1 100 rd 0010011", lambda c: c.rs1 ^ c.imm,           "exclusive or"),
        ("ori",   "imm[11:0]         rs1 110 rd 0010011", lambda c: c.rs1 | c.imm,           "or"),
        ("andi",  "imm[11:0]         rs1 111 rd 0010011", lambda c: c.rs1 & c.imm,           "and"),
        ("addiw", "imm[11:0]         rs1 000 rd 0011011", lambda c: sext32(c.rs1 + c.imm),   "add immediate, 32 bits"),
    ]),
    *family("I", "rd, rs1, shamt", Flag.NONE, [
        ("slli", "000000 uimm[5:0]  rs1 001 rd 0010011", lambda c: c.rs1 << c.imm,   "shift left"),
        ("srli", "000000 uimm[5:0]  rs1 101 rd 0010011", lambda c: c.rs1 >> c.imm,   "shift right"),
        ("srai", "010000 uimm[5:0]  rs1 101 rd 0010011", lambda c: c.rs1.sar(c.imm), "shift right, arithmetic"),
    ]),
    *family("I", "rd, rs1, shamt", Flag.NONE, [
        ("slliw", "0000000 uimm[4:0] rs1 001 rd 0011011", lambda c: sext32(c.rs1 << c.imm),              "shift left, 32 bits"),
        ("srliw", "0000000 uimm[4:0] rs1 101 rd 0011011", lambda c: (word(c.rs1) >> word(c.imm)).sext(), "shift right, 32 bits"),
        ("sraiw", "0100000 uimm[4:0] rs1 101 rd 0011011", lambda c: word(c.rs1).sar(word(c.imm)).sext(), "shift right, arithmetic, 32 bits"),
    ]),
    *family("I", "rd, rs1, rs2", Flag.NONE, [
        ("add",  "0000000 rs2       rs1 000 rd 0110011", lambda c: c.rs1 + c.rs2,           "add"),
        ("sub",  "0100000 rs2       rs1 000 rd 0110011", lambda c: c.rs1 - c.rs2,           "subtract"),
        ("sll",  "0000000 rs2       rs1 001 rd 0110011", lambda c: c.rs1 << (c.rs2 & 63),   "shift left"),
        ("slt",  "0000000 rs2       rs1 010 rd 0110011", lambda c: c.rs1.lts(c.rs2).zext(), "1 if less, else 0"),
        ("sltu", "0000000 rs2       rs1 011 rd 0110011", lambda c: c.rs1.ltu(c.rs2).zext(), "1 if less, unsigned"),
        ("xor",  "0000000 rs2       rs1 100 rd 0110011", lambda c: c.rs1 ^ c.rs2,           "exclusive or"),
        ("srl",  "0000000 rs2       rs1 101 rd 0110011", lambda c: c.rs1 >> (c.rs2 & 63),   "shift right"),
        ("sra",  "0100000 rs2       rs1 101 rd 0110011", lambda c: c.rs1.sar(c.rs2 & 63),   "shift right, arithmetic"),
        ("or",   "0000000 rs2       rs1 110 rd 0110011", lambda c: c.rs1 | c.rs2,           "or"),
        ("and",  "0000000 rs2       rs1 111 rd 0110011", lambda c: c.rs1 & c.rs2,           "and"),
    ]),
    *family("I", "rd, rs1, rs2", Flag.NONE, [
        ("addw", "0000000 rs2 rs1 000 rd 0111011", lambda c: sext32(c.rs1 + c.rs2),                      "add, 32 bits"),
        ("subw", "0100000 rs2 rs1 000 rd 0111011", lambda c: sext32(c.rs1 - c.rs2),                      "subtract, 32 bits"),
        ("sllw", "0000000 rs2 rs1 001 rd 0111011", lambda c: sext32(c.rs1 << (c.rs2 & 31)),              "shift left, 32 bits"),
        ("srlw", "0000000 rs2 rs1 101 rd 0111011", lambda c: (word(c.rs1) >> (word(c.rs2) & 31)).sext(), "shift right, 32 bits"),
        ("sraw", "0100000 rs2 rs1 101 rd 0111011", lambda c: word(c.rs1).sar(word(c.rs2) & 31).sext(),   "shift right, arithmetic, 32 bits"),
    ]),
    *family("I", "pred, succ", Flag.NONE, [  # what `fm`, rs1 and rd would add is reserved, and to be ignored
        ("fence", "---- pred succ ----- 000 ----- 0001111", lambda c: c.system("fence"), "order memory accesses"),
    ]),
)

M = family("M", "rd, rs1, rs2", Flag.NONE, [
    ("mul",    "0000001 rs2 rs1 000 rd 0110011", lambda c: c.rs1 * c.rs2,                "multiply"),
    ("mulh",   "0000001 rs2 rs1 001 rd 0110011", lambda c: _mulh(c, True, True),         "high half of product"),
    ("mulhsu", "0000001 rs2 rs1 010 rd 0110011", lambda c: _mulh(c, True, False),        "high half, rs2 unsigned"),
    ("mulhu",  "0000001 rs2 rs1 011 rd 0110011", lambda c: _mulh(c, False, False),       "high half, unsigned"),
    ("div",    "0000001 rs2 rs1 100 rd 0110011", lambda c: _div(c, c.rs1, c.rs2, True),  "divide"),
    ("divu",   "0000001 rs2 rs1 101 rd 0110011", lambda c: _div(c, c.rs1, c.rs2, False), "divide, unsigned"),
    ("rem",    "0000001 rs2 rs1 110 rd 0110011", lambda c: _rem(c, c.rs1, c.rs2, True),  "remainder"),
    ("remu",   "0000001 rs2 rs1 111 rd 0110011", lambda c: _rem(c, c.rs1, c.rs2, False), "remainder, unsigned"),
    ("mulw",   "0000001 rs2 rs1 000 rd 0111011", lambda c: sext32(c.rs1 * c.rs2),        "multiply, 32 bits"),
    ("divw",   "0000001 rs2 rs1 100 rd 0111011", lambda c: _divw(c, True),               "divide, 32 bits"),
    ("divuw",  "0000001 rs2 rs1 101 rd 0111011", lambda c: _divw(c, False),              "divide, unsigned, 32 bits"),
    ("remw",   "0000001 rs2 rs1 110 rd 0111011", lambda c: _remw(c, True),               "remainder, 32 bits"),
    ("remuw",  "0000001 rs2 rs1 111 rd 0111011", lambda c: _remw(c, False),              "remainder, unsigned, 32 bits"),
])
# fmt: on
