"""Floating-point instructions that round, computed exactly with integers: the slow path for what the host cannot do.

The host has no "round to nearest, ties to maximum magnitude" (RMM). `evaluate` does any instruction that has a rounding
mode, in all modes, with all flags; it takes some 10 microseconds. Tininess is detected after rounding (unpriv. spec,
"Subnormal Arithmetic").
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from vmm.isa.context import DZ, NV, NX, OF, UF

RNE, RTZ, RDN, RUP, RMM = range(5)

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Format:
    width: int
    fraction: int

    @property
    def bias(self) -> int:
        return (1 << (self.width - self.fraction - 2)) - 1

    @property
    def infinity(self) -> int:
        return (2 * self.bias + 1) << self.fraction

    @property
    def nan(self) -> int:
        return self.infinity | 1 << (self.fraction - 1)

    @property
    def lowest(self) -> int:
        """Exponent of the smallest subnormal."""
        return 1 - self.bias - self.fraction


_FORMATS = {"s": _Format(32, 23), "d": _Format(64, 52)}


@dataclass(slots=True)
class _Number:
    """(-1) ** sign * magnitude * 2 ** exponent, or an infinity, or a NaN."""

    sign: int
    magnitude: int
    exponent: int
    infinite: bool = False
    nan: bool = False
    signalling: bool = False

    @property
    def zero(self) -> bool:
        return not (self.magnitude or self.infinite or self.nan)


def evaluate(name: str, rm: int, *operands: int) -> tuple[int, int]:
    """The 64 bits that instruction `name` writes to rd, and the flags it raises.

    `operands` are the raw 64 bits of rs1, rs2, rs3, of the register file that each of them names; `rm` is 0 to 4.
    """
    op, *types = name.split(".")
    flags = _Flags(rm)
    match op, types:
        case "fcvt", [("w" | "wu" | "l" | "lu") as to, fmt]:
            return flags.to_int(_unpack(_FORMATS[fmt], operands[0]), to), flags.raised
        case "fcvt", [fmt, ("w" | "wu" | "l" | "lu") as of]:
            return _box(_FORMATS[fmt], flags.pack(_FORMATS[fmt], _integer(operands[0], of))), flags.raised
        case "fcvt", [to, fmt]:
            return _box(_FORMATS[to], flags.convert(_FORMATS[to], _unpack(_FORMATS[fmt], operands[0]))), flags.raised
        case _, [fmt]:
            f = _FORMATS[fmt]
            return _box(f, flags.arithmetic(f, op, [_unpack(f, raw) for raw in operands])), flags.raised
        case _:
            raise ValueError(f"{name} does not round")


def _box(f: _Format, bits: int) -> int:
    return bits if f.width == 64 else _U32 << 32 | bits


def _unpack(f: _Format, raw: int) -> _Number:
    if f.width == 32:
        raw = raw & _U32 if raw >> 32 == _U32 else f.nan
    sign, rest = raw >> (f.width - 1), raw & ((1 << (f.width - 1)) - 1)
    biased, fraction = rest >> f.fraction, rest & ((1 << f.fraction) - 1)
    if rest >= f.infinity:
        return _Number(
            sign, 0, 0, infinite=not fraction, nan=bool(fraction), signalling=0 < fraction < 1 << (f.fraction - 1)
        )
    if biased:
        fraction |= 1 << f.fraction
    return _Number(sign, fraction, f.lowest + max(biased, 1) - 1)


def _integer(raw: int, kind: str) -> _Number:
    raw &= _U32 if kind[0] == "w" else _U64
    bits = 32 if kind[0] == "w" else 64
    if kind[-1] != "u" and raw >> (bits - 1):
        return _Number(1, (1 << bits) - raw, 0)
    return _Number(0, raw, 0)


@dataclass(slots=True)
class _Flags:
    """A rounding mode, and the flags raised so far."""

    rm: int
    raised: int = 0

    def arithmetic(self, f: _Format, op: str, x: list[_Number]) -> int:
        if any(n.signalling for n in x):
            self.raised |= NV
        match op:
            case "fadd":
                return self._fused(f, x[0], _Number(0, 1, 0), x[1])
            case "fsub":
                return self._fused(f, x[0], _Number(0, 1, 0), _negated(x[1]))
            case "fmul":
                return self._product(f, x[0], x[1])
            case "fdiv":
                return self._quotient(f, x[0], x[1])
            case "fsqrt":
                return self._root(f, x[0])
            case "fmadd":
                return self._fused(f, x[0], x[1], x[2])
            case "fmsub":
                return self._fused(f, x[0], x[1], _negated(x[2]))
            case "fnmsub":
                return self._fused(f, _negated(x[0]), x[1], x[2])
            case "fnmadd":
                return self._fused(f, _negated(x[0]), x[1], _negated(x[2]))
            case _:
                raise ValueError(f"{op} does not round")

    def _invalid(self, f: _Format) -> int:
        self.raised |= NV
        return f.nan

    def _product(self, f: _Format, a: _Number, b: _Number) -> int:
        sign = a.sign ^ b.sign
        if a.nan or b.nan:
            return f.nan
        if a.infinite or b.infinite:
            return self._invalid(f) if a.zero or b.zero else self._signed(f, sign, f.infinity)
        return self.pack(f, _Number(sign, a.magnitude * b.magnitude, a.exponent + b.exponent))

    def _fused(self, f: _Format, a: _Number, b: _Number, addend: _Number) -> int:
        sign = a.sign ^ b.sign
        if (a.infinite and b.zero) or (a.zero and b.infinite):
            return self._invalid(f)  # even if the addend is a quiet NaN
        if a.nan or b.nan or addend.nan:
            return f.nan
        if a.infinite or b.infinite:
            if addend.infinite and addend.sign != sign:
                return self._invalid(f)
            return self._signed(f, sign, f.infinity)
        if addend.infinite:
            return self._signed(f, addend.sign, f.infinity)
        exponent = min(a.exponent + b.exponent, addend.exponent)
        product = a.magnitude * b.magnitude << (a.exponent + b.exponent - exponent)
        total = (-product if sign else product) + _signed_magnitude(addend, exponent)
        if not total:  # of equal signs the sum keeps the sign; exact cancellation gives -0 in RDN only
            zero_sign = sign if sign == addend.sign else int(self.rm == RDN)
            return self._signed(f, zero_sign, 0)
        return self.pack(f, _Number(int(total < 0), abs(total), exponent))

    def _quotient(self, f: _Format, a: _Number, b: _Number) -> int:
        sign = a.sign ^ b.sign
        if a.nan or b.nan:
            return f.nan
        if (a.infinite and b.infinite) or (a.zero and b.zero):
            return self._invalid(f)
        if a.infinite:
            return self._signed(f, sign, f.infinity)
        if b.infinite or a.zero:
            return self._signed(f, sign, 0)
        if b.zero:
            self.raised |= DZ
            return self._signed(f, sign, f.infinity)
        shift = 2 * f.fraction + 4  # more bits of quotient than any rounding looks at; the rest is sticky
        quotient, rest = divmod(a.magnitude << shift, b.magnitude)
        return self.pack(f, _Number(sign, quotient << 1 | (rest != 0), a.exponent - b.exponent - shift - 1))

    def _root(self, f: _Format, a: _Number) -> int:
        if a.nan:
            return f.nan
        if a.zero:
            return self._signed(f, a.sign, 0)
        if a.sign:
            return self._invalid(f)
        if a.infinite:
            return f.infinity
        shift = 2 * f.fraction + 4 + (a.exponent & 1)
        square = a.magnitude << shift
        root = isqrt(square)
        return self.pack(f, _Number(0, root << 1 | (root * root != square), (a.exponent - shift) // 2 - 1))

    # -- conversion and rounding --------------------------------------------------------------------------------------

    def convert(self, f: _Format, a: _Number) -> int:
        if a.nan:
            return self._invalid(f) if a.signalling else f.nan
        if a.infinite:
            return self._signed(f, a.sign, f.infinity)
        return self.pack(f, a)

    def to_int(self, a: _Number, kind: str) -> int:
        bits = 32 if kind[0] == "w" else 64
        low, high = (0, (1 << bits) - 1) if kind[-1] == "u" else (-1 << (bits - 1), (1 << (bits - 1)) - 1)
        value, inexact = high if a.nan or not a.sign else low, False
        if a.nan or a.infinite:
            self.raised |= NV
        else:
            magnitude, inexact = self._shifted(a.sign, a.magnitude, -a.exponent)
            exact = -magnitude if a.sign else magnitude
            if low <= exact <= high:
                value = exact
                self.raised |= NX if inexact else 0
            else:
                self.raised |= NV
        return (value + (1 << (bits - 1)) & ((1 << bits) - 1)) - (1 << (bits - 1)) & _U64

    def pack(self, f: _Format, a: _Number) -> int:
        """The bits of a finite number, rounded."""
        if not a.magnitude:
            return self._signed(f, a.sign, 0)
        top = a.exponent + a.magnitude.bit_length() - 1
        unit = max(top - f.fraction, f.lowest)
        magnitude, inexact = self._shifted(a.sign, a.magnitude, unit - a.exponent)
        bits = (unit - f.lowest << f.fraction) + magnitude  # the implicit bit, and a carry, count in the exponent
        if bits >= f.infinity:
            self.raised |= OF | NX
            up = {RNE: True, RMM: True, RTZ: False, RDN: bool(a.sign), RUP: not a.sign}[self.rm]
            return self._signed(f, a.sign, f.infinity if up else f.infinity - 1)
        if inexact:
            self.raised |= NX
            if top < f.lowest + f.fraction:  # below the smallest normal: did rounding at full precision leave it there?
                full, _ = self._shifted(a.sign, a.magnitude, top - f.fraction - a.exponent)
                if top < f.lowest + f.fraction - 1 or full >> (f.fraction + 1) == 0:
                    self.raised |= UF
        return self._signed(f, a.sign, bits)

    def _shifted(self, sign: int, magnitude: int, shift: int) -> tuple[int, bool]:
        """`magnitude` / 2 ** shift rounded to an integer, and whether that lost anything."""
        if shift <= 0:
            return magnitude << -shift, False
        whole, rest, half = magnitude >> shift, magnitude & ((1 << shift) - 1), 1 << (shift - 1)
        up = {
            RNE: rest > half or (rest == half and bool(whole & 1)),
            RTZ: False,
            RDN: bool(rest and sign),
            RUP: bool(rest and not sign),
            RMM: rest >= half,
        }[self.rm]
        return whole + up, rest != 0

    @staticmethod
    def _signed(f: _Format, sign: int, bits: int) -> int:
        return sign << (f.width - 1) | bits


def _negated(a: _Number) -> _Number:
    return _Number(a.sign ^ 1, a.magnitude, a.exponent, a.infinite, a.nan, a.signalling)


def _signed_magnitude(a: _Number, exponent: int) -> int:
    """`a` in units of 2 ** exponent, which is at most its own."""
    magnitude = a.magnitude << (a.exponent - exponent)
    return -magnitude if a.sign else magnitude
