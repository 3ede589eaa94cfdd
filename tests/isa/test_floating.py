"""Floating point, compiled and run by the host, against exact evaluation with integers; and that against fractions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest

from tests.isa.native import Probe
from vmm.isa.context import NV, NX
from vmm.isa.encoding import Flag
from vmm.isa.softfloat import RDN, RMM, RNE, RTZ, RUP, evaluate
from vmm.isa.table import BASE

ONES = 0xFFFFFFFF << 32
U64 = (1 << 64) - 1
HOST_MODES = (RNE, RTZ, RDN, RUP)
ROUNDING = [insn.name for insn in BASE.values() if insn.flags & Flag.ROUNDS]
NAN = {"s": ONES | 0x7FC00000, "d": 0x7FF8000000000000}
SIGN = {"s": 1 << 31, "d": 1 << 63}

_S = (
    0, 1, 2, 0x007FFFFF, 0x00800000, 0x00800001, 0x33800000, 0x3EFFFFFF, 0x3F000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001,
    0x3FC00000, 0x40000000, 0x4B000001, 0x4B800000, 0x4EFFFFFF, 0x4F000000, 0x4F7FFFFF, 0x4F800000, 0x5EFFFFFF,
    0x5F000000, 0x5F7FFFFF, 0x5F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FC00001,
)  # fmt: skip
_D = (
    0, 1, 2, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x0010000000000001, 0x3690000000000000, 0x36A0000000000000,
    0x380FFFFFE0000000, 0x380FFFFFF0000000, 0x3CA0000000000000, 0x3FDFFFFFFFFFFFFF, 0x3FE0000000000000,
    0x3FEFFFFFFFFFFFFF, 0x3FF0000000000000, 0x3FF0000000000001, 0x3FF0000010000000, 0x3FF8000000000000,
    0x4000000000000000, 0x41DFFFFFFFC00000, 0x41DFFFFFFFE00000, 0x41E0000000000000, 0x41E0000000100000,
    0x41EFFFFFFFE00000, 0x41EFFFFFFFF00000, 0x41F0000000000000, 0x4330000000000001, 0x4340000000000000,
    0x43DFFFFFFFFFFFFF, 0x43E0000000000000, 0x43EFFFFFFFFFFFFF, 0x43F0000000000000, 0x47EFFFFFE0000000,
    0x47EFFFFFEFFFFFFF, 0x47EFFFFFF0000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF0000000000001,
    0x7FF7FFFFFFFFFFFF, 0x7FF8000000000000, 0x7FF8000000000001,
)  # fmt: skip
_UNBOXED = (0, 0x3F800000, 0xFFFFFFFE3F800000)
EDGES = {
    "s": [ONES | x | m for x in _S for m in (0, 1 << 31)] + list(_UNBOXED),
    "d": [x | m for x in _D for m in (0, 1 << 63)],
}
INTEGERS = (
    0, 1, U64, 1 << 63, (1 << 63) - 1, (1 << 24) + 1, (1 << 53) + 1, (1 << 32) - 1, 1 << 31, (1 << 64) - 1025,
    (1 << 64) - 1024, 0x8000008000000000, 0x8000000000000400, 0x8000000000000401, 0xFFFFFF7FFFFFFFFF,
)  # fmt: skip

#: One value of each kind, in the order of the bits of fclass: from minus infinity to quiet NaN.
KINDS = {
    "s": (0xFF800000, 0xBF800000, 0x80000001, 0x80000000, 0, 1, 0x3F800000, 0x7F800000, 0x7F800001, 0x7FC00000),
    "d": (
        0xFFF << 52,
        0xBFF << 52,
        1 << 63 | 1,
        1 << 63,
        0,
        1,
        0x3FF << 52,
        0x7FF << 52,
        0x7FF << 52 | 1,
        0x7FF8 << 48,
    ),
}


def formats(name: str) -> tuple[str, ...]:
    """Of the operands: `x` is an integer register."""
    insn = BASE[name]
    fmt = name.rsplit(".", 1)[1]
    kinds = [op for op in ("rs1", "rs2", "rs3") if op in insn.operands]
    return tuple(fmt if insn.is_fp_register(op) else "x" for op in kinds)


def some(kind: str, r: random.Random) -> int:
    """An operand, most often a number of an ordinary size with some of its low bits zero, so that ties happen."""
    if kind == "x":
        return r.choice(INTEGERS) if r.random() < 0.3 else r.getrandbits(64) >> r.randrange(64)
    if r.random() < 0.3:
        return r.choice(EDGES[kind])
    width, fraction = (32, 23) if kind == "s" else (64, 52)
    exponent = (1 << (width - fraction - 2)) - 1 + r.randrange(-fraction - 5, fraction + 13)
    if r.random() < 0.3:
        exponent = r.getrandbits(width - fraction - 1)
    bits = r.getrandbits(fraction) >> (zeros := r.randrange(fraction)) << zeros
    bits |= exponent << fraction | r.getrandbits(1) << (width - 1)
    return bits | ONES if width == 32 else bits


def cases(name: str, count: int) -> Iterator[tuple[int, ...]]:
    kinds = formats(name)
    r = random.Random(name)
    if len(kinds) < 3:
        yield from product(*(INTEGERS if kind == "x" else EDGES[kind] for kind in kinds))
    for _ in range(count):
        yield tuple(some(kind, r) for kind in kinds)


def run(probe: Probe, rm: int, operands: tuple[int, ...], kinds: tuple[str, ...]) -> tuple[int, int, int]:
    if kinds[0] == "x":
        out = probe.run(rm, rs1=operands[0])
        return out["fd"], 0, probe.flags(out)
    return probe.run_fp(rm, *operands)


@pytest.mark.parametrize("name", ROUNDING)
def test_the_host_rounds_and_raises_flags_as_exact_evaluation_does(name: str) -> None:
    probe, kinds = Probe(name), formats(name)
    to_integer = not BASE[name].is_fp_register("rd")
    for operands in cases(name, 1500):
        for rm in HOST_MODES:
            fd, rd, flags = run(probe, rm, operands, kinds)
            expected = evaluate(name, rm, *operands)
            assert ((rd if to_integer else fd), flags) == expected, (rm, [hex(x) for x in operands])


# -- the evaluator against fractions: independent of its own idea of rounding ------------------------------------------


def value(fmt: str, raw: int) -> Fraction:
    width, fraction, bias = (32, 23, 127) if fmt == "s" else (64, 52, 1023)
    raw &= (1 << width) - 1
    biased = raw >> fraction & ((1 << (width - fraction - 1)) - 1)
    significand = raw & ((1 << fraction) - 1) | (1 << fraction if biased else 0)
    magnitude = Fraction(significand) * Fraction(2) ** (max(biased, 1) - bias - fraction)
    return -magnitude if raw >> (width - 1) else magnitude


def neighbour(fmt: str, raw: int, step: int) -> Fraction:
    """The number `step` units in the last place away from zero; 0 has no other side here."""
    return value(fmt, raw + step)


EXACT = {
    "fadd": lambda a, b, c: a + b,
    "fsub": lambda a, b, c: a - b,
    "fmul": lambda a, b, c: a * b,
    "fdiv": lambda a, b, c: a / b,
    "fmadd": lambda a, b, c: a * b + c,
    "fnmadd": lambda a, b, c: -(a * b) - c,
}


@pytest.mark.parametrize("fmt", ["s", "d"])
@pytest.mark.parametrize("op", EXACT)
def test_exact_evaluation_picks_the_nearest_number_and_away_from_zero_in_a_tie(op: str, fmt: str) -> None:
    r = random.Random(op + fmt)
    ties = 0
    for _ in range(1500):
        raws = tuple(some(fmt, r) for _ in range(3))
        top = 0xFF if fmt == "s" else 0x7FF
        if any(x >> (23 if fmt == "s" else 52) & top in (0, top) or (fmt == "s" and x < ONES) for x in raws):
            continue
        a, b, c = (value(fmt, x) for x in raws)
        exact = EXACT[op](a, b, c)
        count = 3 if "madd" in op else 2
        raw, flags = evaluate(f"{op}.{fmt}", RMM, *raws[:count])
        if raw >> (23 if fmt == "s" else 52) & top == top:
            continue  # overflowed
        result = value(fmt, raw)
        assert (result != exact) == bool(flags & NX)
        assert result == 0 or (result > 0) == (exact > 0)
        low = abs(result) - abs(exact)
        for step in (-1, 1):
            if step == 1 or raw & (SIGN[fmt] - 1):
                other = abs(abs(neighbour(fmt, raw, step)) - abs(exact))
                assert abs(low) <= other
                if abs(low) == other:
                    ties += 1
                    assert low > 0, "a tie went towards zero"
    assert ties > 3 or op == "fdiv"


def test_square_roots_are_the_nearest() -> None:
    r = random.Random(3)
    for _ in range(500):
        raw = some("d", r) & ~SIGN["d"]
        if raw >> 52 in (0, 0x7FF):
            continue
        root, _ = evaluate("fsqrt.d", RMM, raw)
        below, above = ((value("d", root) + neighbour("d", root, step)) / 2 for step in (-1, 1))
        assert below**2 <= value("d", raw) < above**2


# -- what does not round ----------------------------------------------------------------------------------------------


def nan(fmt: str, raw: int) -> bool:
    return raw & (SIGN[fmt] - 1) > (0x7F800000 if fmt == "s" else 0x7FF0000000000000)


def signalling(fmt: str, raw: int) -> bool:
    return nan(fmt, raw) and not raw & (1 << (22 if fmt == "s" else 51))


def unboxed(fmt: str, raw: int) -> int:
    """What an instruction of this format finds in a register."""
    if fmt == "d":
        return raw
    return raw & 0xFFFFFFFF if raw >> 32 == 0xFFFFFFFF else 0x7FC00000


@pytest.mark.parametrize("fmt", ["s", "d"])
def test_minimum_and_maximum_prefer_numbers_and_tell_zeros_apart(fmt: str) -> None:
    for name, sign in ((f"fmin.{fmt}", 1), (f"fmax.{fmt}", -1)):
        probe = Probe(name)
        for a, b in product(EDGES[fmt], repeat=2):
            x, y = unboxed(fmt, a), unboxed(fmt, b)
            numbers = [n for n in (x, y) if not nan(fmt, n)]
            infinity = Fraction(2) ** 2000

            def key(n: int, sign: int = sign, infinity: Fraction = infinity) -> tuple[Fraction, int]:
                negative = bool(n & SIGN[fmt])
                finite = n & (SIGN[fmt] - 1) < (0x7F800000 if fmt == "s" else 0x7FF0000000000000)
                magnitude = value(fmt, n) if finite else -infinity if negative else infinity
                return sign * magnitude, sign * -int(negative)

            expected = min(numbers, key=key) if numbers else NAN[fmt]
            fd, _, flags = probe.run_fp(RNE, a, b)
            assert fd == (expected | ONES if fmt == "s" else expected), (hex(a), hex(b))
            assert flags == (NV if signalling(fmt, x) or signalling(fmt, y) else 0)


@pytest.mark.parametrize("fmt", ["s", "d"])
def test_comparisons_with_a_nan_are_false_and_only_feq_is_quiet(fmt: str) -> None:
    probes = {name: Probe(f"{name}.{fmt}") for name in ("feq", "flt", "fle")}
    for a, b in product(EDGES[fmt], repeat=2):
        x, y = unboxed(fmt, a), unboxed(fmt, b)
        unordered = nan(fmt, x) or nan(fmt, y)
        p, q = value(fmt, x), value(fmt, y)
        expected = {"feq": p == q, "flt": p < q, "fle": p <= q}
        for name, probe in probes.items():
            _, rd, flags = probe.run_fp(RNE, a, b)
            assert rd == (0 if unordered else expected[name]), (name, hex(a), hex(b))
            invalid = signalling(fmt, x) or signalling(fmt, y) if name == "feq" else unordered
            assert flags == (NV if invalid else 0), (name, hex(a), hex(b))


@pytest.mark.parametrize("fmt", ["s", "d"])
def test_sign_injection_copies_negates_and_multiplies_signs_of_boxed_values(fmt: str) -> None:
    sign = SIGN[fmt]
    for a, b in product(EDGES[fmt], repeat=2):
        x, y = unboxed(fmt, a), unboxed(fmt, b)
        expected = {"fsgnj": y, "fsgnjn": ~y, "fsgnjx": x ^ y}
        for name, source in expected.items():
            fd, _, flags = Probe(f"{name}.{fmt}").run_fp(RNE, a, b)
            assert fd == x & (sign - 1) | source & sign | (ONES if fmt == "s" else 0)
            assert flags == 0


@pytest.mark.parametrize("fmt", ["s", "d"])
def test_fclass_names_the_ten_kinds_and_raises_nothing(fmt: str) -> None:
    for kind, raw in enumerate(KINDS[fmt]):
        boxed = raw | ONES if fmt == "s" else raw
        assert Probe(f"fclass.{fmt}").run_fp(RNE, boxed) == (0, 1 << kind, 0)


def test_a_single_that_is_not_boxed_is_a_quiet_nan() -> None:
    assert Probe("fclass.s").run_fp(RNE, 0x3F800000)[1] == 1 << 9
    assert Probe("fcvt.w.s").run_fp(RNE, 0x3F800000)[1:] == (0x7FFFFFFF, NV)
    assert Probe("fmv.x.w").run_fp(RNE, 0xBF800000)[1] == 0xFFFFFFFFBF800000, "moves look at bits only"


def test_loads_and_moves_box_singles() -> None:
    assert Probe("flw").run(memory=0x12345678BF800000)["fd"] == ONES | 0xBF800000
    assert Probe("fld").run(memory=0x12345678BF800000)["fd"] == 0x12345678BF800000
    assert Probe("fmv.w.x").run(rs1=0x123456783F800000)["fd"] == ONES | 0x3F800000
    assert Probe("fmv.d.x").run(rs1=U64)["fd"] == U64
    assert Probe("fmv.x.d").run_fp(RNE, 0x123456783F800000)[1] == 0x123456783F800000


@pytest.mark.parametrize("fmt", ["s", "d"])
@pytest.mark.parametrize("op", ["fmadd", "fmsub", "fnmsub", "fnmadd"])
def test_infinity_times_zero_is_invalid_even_plus_a_quiet_nan(op: str, fmt: str) -> None:
    infinity = ONES | 0x7F800000 if fmt == "s" else 0x7FF << 52
    zero = ONES if fmt == "s" else 0
    probe = Probe(f"{op}.{fmt}")
    assert probe.run_fp(RNE, infinity, zero, NAN[fmt]) == (NAN[fmt], 0, NV)
    assert probe.run_fp(RNE, zero, infinity, NAN[fmt]) == (NAN[fmt], 0, NV)
    assert probe.run_fp(RNE, infinity, infinity, NAN[fmt]) == (NAN[fmt], 0, 0)
    assert evaluate(f"{op}.{fmt}", RNE, infinity, zero, NAN[fmt]) == (NAN[fmt], NV)
