"""Integer semantics, compiled, against Python's integers."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest

from tests.isa.native import Probe, asked
from vmm.isa.encoding import Flag
from vmm.isa.table import BASE

U64 = (1 << 64) - 1
EDGES = sorted(
    {0, 1, 2, 5, 31, 32, 63, 64, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000000}
    | {1 << 63, (1 << 63) - 1, U64, U64 - 1, U64 - 0x7F, U64 << 31 & U64, 0x0123456789ABCDEF, 0x00FF0100800000FF}
)
IMMEDIATES = (0, 1, 2, 31, 2047, -1, -2, -2048)


def s(value: int, bits: int = 64) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def u(value: int, bits: int = 64) -> int:
    return value & ((1 << bits) - 1)


def quotient(a: int, b: int, bits: int) -> int:
    if b == 0:
        return -1
    if a == -(1 << (bits - 1)) and b == -1:
        return a
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else abs(a) % abs(b) * (1 if a >= 0 else -1)


def rotated_left(a: int, n: int, bits: int) -> int:
    n %= bits
    a = u(a, bits)
    return u(a << n | a >> (bits - n), bits)


def leading_zeros(a: int, bits: int) -> int:
    return bits - u(a, bits).bit_length()


def trailing_zeros(a: int, bits: int) -> int:
    a = u(a, bits)
    return (a & -a).bit_length() - 1 if a else bits


def by_byte(a: int, f: Callable[[int], int]) -> int:
    return int.from_bytes(bytes(f(b) for b in a.to_bytes(8, "little")), "little")


#: Of rs1 and rs2, both unsigned 64-bit; the result is taken modulo 2 ** 64.
BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "sll": lambda a, b: a << b % 64,
    "slt": lambda a, b: s(a) < s(b),
    "sltu": lambda a, b: a < b,
    "xor": lambda a, b: a ^ b,
    "srl": lambda a, b: a >> b % 64,
    "sra": lambda a, b: s(a) >> b % 64,
    "or": lambda a, b: a | b,
    "and": lambda a, b: a & b,
    "addw": lambda a, b: s(a + b, 32),
    "subw": lambda a, b: s(a - b, 32),
    "sllw": lambda a, b: s(a << b % 32, 32),
    "srlw": lambda a, b: s(u(a, 32) >> b % 32, 32),
    "sraw": lambda a, b: s(a, 32) >> b % 32,
    "mul": lambda a, b: a * b,
    "mulh": lambda a, b: s(a) * s(b) >> 64,
    "mulhsu": lambda a, b: s(a) * b >> 64,
    "mulhu": lambda a, b: a * b >> 64,
    "div": lambda a, b: quotient(s(a), s(b), 64),
    "divu": lambda a, b: a // b if b else -1,
    "rem": lambda a, b: remainder(s(a), s(b)),
    "remu": lambda a, b: a % b if b else a,
    "mulw": lambda a, b: s(a * b, 32),
    "divw": lambda a, b: s(quotient(s(a, 32), s(b, 32), 32), 32),
    "divuw": lambda a, b: s(u(a, 32) // u(b, 32), 32) if u(b, 32) else -1,
    "remw": lambda a, b: s(remainder(s(a, 32), s(b, 32)), 32),
    "remuw": lambda a, b: s(u(a, 32) % u(b, 32) if u(b, 32) else a, 32),
    "add.uw": lambda a, b: u(a, 32) + b,
    "sh1add": lambda a, b: 2 * a + b,
    "sh2add": lambda a, b: 4 * a + b,
    "sh3add": lambda a, b: 8 * a + b,
    "sh1add.uw": lambda a, b: 2 * u(a, 32) + b,
    "sh2add.uw": lambda a, b: 4 * u(a, 32) + b,
    "sh3add.uw": lambda a, b: 8 * u(a, 32) + b,
    "andn": lambda a, b: a & ~b,
    "orn": lambda a, b: a | ~b,
    "xnor": lambda a, b: ~(a ^ b),
    "max": lambda a, b: max(s(a), s(b)),
    "maxu": max,
    "min": lambda a, b: min(s(a), s(b)),
    "minu": min,
    "rol": lambda a, b: rotated_left(a, b, 64),
    "ror": lambda a, b: rotated_left(a, -b, 64),
    "rolw": lambda a, b: s(rotated_left(a, b, 32), 32),
    "rorw": lambda a, b: s(rotated_left(a, -b, 32), 32),
    "bclr": lambda a, b: a & ~(1 << b % 64),
    "bext": lambda a, b: a >> b % 64 & 1,
    "binv": lambda a, b: a ^ 1 << b % 64,
    "bset": lambda a, b: a | 1 << b % 64,
}

#: Of rs1 and a signed immediate of 12 bits, and the instruction of two registers that they resemble.
IMMEDIATE = {
    "addi": "add",
    "slti": "slt",
    "sltiu": "sltu",
    "xori": "xor",
    "ori": "or",
    "andi": "and",
    "addiw": "addw",
}

SHIFT = {
    "slli": "sll",
    "srli": "srl",
    "srai": "sra",
    "slliw": "sllw",
    "srliw": "srlw",
    "sraiw": "sraw",
    "rori": "ror",
    "roriw": "rorw",
    "bclri": "bclr",
    "bexti": "bext",
    "binvi": "binv",
    "bseti": "bset",
}

UNARY: dict[str, Callable[[int], int]] = {
    "clz": lambda a: leading_zeros(a, 64),
    "ctz": lambda a: trailing_zeros(a, 64),
    "cpop": lambda a: a.bit_count(),
    "clzw": lambda a: leading_zeros(a, 32),
    "ctzw": lambda a: trailing_zeros(a, 32),
    "cpopw": lambda a: u(a, 32).bit_count(),
    "sext.b": lambda a: s(a, 8),
    "sext.h": lambda a: s(a, 16),
    "zext.h": lambda a: u(a, 16),
    "orc.b": lambda a: by_byte(a, lambda b: 0xFF if b else 0),
    "rev8": lambda a: int.from_bytes(a.to_bytes(8, "little"), "big"),
}

BRANCHES: dict[str, Callable[[int, int], bool]] = {
    "beq": lambda a, b: a == b,
    "bne": lambda a, b: a != b,
    "blt": lambda a, b: s(a) < s(b),
    "bge": lambda a, b: s(a) >= s(b),
    "bltu": lambda a, b: a < b,
    "bgeu": lambda a, b: a >= b,
}

OTHERS = {"lui", "auipc", "jal", "jalr", "slli.uw", "fence"}


def numbers() -> list[int]:
    r = random.Random(20)
    return EDGES + [r.getrandbits(64) >> r.randrange(64) for _ in range(12)]


def test_every_integer_instruction_has_a_reference() -> None:
    elsewhere = Flag.LOAD | Flag.STORE | Flag.AMO | Flag.CSR | Flag.SYSTEM | Flag.FP
    here = {name for name, insn in BASE.items() if not insn.flags & elsewhere}
    assert here == set(BINARY) | set(IMMEDIATE) | set(SHIFT) | set(UNARY) | set(BRANCHES) | OTHERS


@pytest.mark.parametrize("name", BINARY)
def test_two_registers(name: str) -> None:
    probe = Probe(name)
    for a, b in product(numbers(), repeat=2):
        assert probe.run(rs1=a, rs2=b)["rd"] == u(BINARY[name](a, b)), (hex(a), hex(b))


@pytest.mark.parametrize("name", UNARY)
def test_one_register(name: str) -> None:
    probe = Probe(name)
    for a in numbers():
        assert probe.run(rs1=a)["rd"] == u(UNARY[name](a)), hex(a)


@pytest.mark.parametrize("name", IMMEDIATE)
def test_register_and_immediate(name: str) -> None:
    probe = Probe(name)
    for a, imm in product(numbers(), IMMEDIATES):
        assert probe.run(rs1=a, imm=u(imm))["rd"] == u(BINARY[IMMEDIATE[name]](a, u(imm))), (hex(a), imm)


@pytest.mark.parametrize("name", SHIFT)
def test_register_and_shift_amount(name: str) -> None:
    probe = Probe(name)
    bits = BASE[name].operands["imm"].width
    for a, n in product(numbers(), range(1 << bits)):
        assert probe.run(rs1=a, imm=n)["rd"] == u(BINARY[SHIFT[name]](a, n)), (hex(a), n)


def test_slli_uw_drops_the_high_word_first() -> None:
    assert Probe("slli.uw").run(rs1=U64, imm=8)["rd"] == 0xFFFFFFFF00


def test_upper_immediates_are_shifted_and_sign_extended() -> None:
    assert Probe("lui").run(imm=u(-1))["rd"] == u(-0x1000)
    assert Probe("auipc").run(imm=0x7FFFF, pc=0x80000000)["rd"] == 0x80000000 + 0x7FFFF000


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name: str) -> None:
    probe = Probe(name)
    for a, b in product(EDGES, repeat=2):
        target = probe.run(rs1=a, rs2=b, pc=0x1000, imm=u(-8))["target"]
        assert target == (0x0FF8 if BRANCHES[name](a, b) else 0x1004), (hex(a), hex(b))


def test_jumps_link_to_the_next_instruction() -> None:
    out = Probe("jal").run(pc=0x1000, imm=u(-0x10))
    assert (out["target"], out["rd"]) == (0x0FF0, 0x1004)
    out = Probe("jalr").run(pc=0x1000, rs1=0x2000, imm=7)
    assert (out["target"], out["rd"]) == (0x2006, 0x1004), "bit 0 of the target is cleared"


@pytest.mark.parametrize(
    ("name", "size", "signed"),
    [("lb", 1, 1), ("lh", 2, 1), ("lw", 4, 1), ("ld", 8, 1), ("lbu", 1, 0), ("lhu", 2, 0), ("lwu", 4, 0)],
)
def test_loads_extend(name: str, size: int, signed: int) -> None:
    out = Probe(name).run(rs1=0x1000, imm=u(-3), memory=0xF1F2F3F4F5F6F7F8)
    value = 0xF1F2F3F4F5F6F7F8 & ((1 << 8 * size) - 1)
    assert (out["asked"], out["address"]) == (asked(f"load{size}"), 0x0FFD)
    assert out["rd"] == u(s(value, 8 * size) if signed else value)


@pytest.mark.parametrize(("name", "size"), [("sb", 1), ("sh", 2), ("sw", 4), ("sd", 8), ("fsw", 4), ("fsd", 8)])
def test_stores(name: str, size: int) -> None:
    out = Probe(name).run(rs1=0x1000, imm=5, rs2=7, f2=7)
    assert (out["asked"], out["address"], out["stored"]) == (asked(f"store{size}"), 0x1005, 7)


@pytest.mark.parametrize("name", [name for name, insn in BASE.items() if name.startswith("amo")])
def test_read_modify_write_asks_for_the_right_operation(name: str) -> None:
    op = {"swap": "xchg", "minu": "umin", "maxu": "umax"}.get(name[3:-2], name[3:-2])
    out = Probe(name).run(rs1=0x1000, rs2=3, memory=9)
    assert (out["asked"], out["address"], out["stored"], out["rd"]) == (
        asked(f"{op}{4 if name.endswith('w') else 8}"), 0x1000, 3, 9,
    )  # fmt: skip


def test_csr_instructions_that_name_x0_do_not_write() -> None:
    for name, op in {"csrrw": "write", "csrrs": "set", "csrrc": "clear"}.items():
        for field in (0, 5):
            out = Probe(name).run(imm=u(-0x400), rs1=77, rs1_field=field, memory=0x55)
            assert (out["asked"], out["address"], out["stored"], out["rd"]) == (asked(op), 0xC00, 77, 0x55)
            assert out["target"] == (op == "write" or field != 0)
            out = Probe(f"{name}i").run(imm=0x300, rs1=77, rs1_field=field)
            assert (out["asked"], out["stored"], out["target"]) == (asked(op), field, op == "write" or field != 0)
