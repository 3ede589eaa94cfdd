"""F and D: single and double precision floating point (unpriv. spec, "F", "D", and "NaN Boxing").

The host computes: its MXCSR holds the guest's rounding mode and collects the guest's flags, so `fadd` is `vaddsd` and
nothing else. By hand are done the things in which x86 differs: NaN boxing, canonical NaNs, minimum and maximum,
conversions to integers (RISC-V saturates) and from u64, and inf * 0 + NaN, which must raise NV.

Bit patterns are compared as integers throughout: an FP constant would need a constant pool, which an image cannot hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmm.isa.context import NV, NX, Context
from vmm.isa.encoding import Flag, Instruction, family
from vmm.isa.integer import sext32, word, zext32

if TYPE_CHECKING:  # types only, see context.py
    from vmm.codegen.ir import Val

_ROUND = 'metadata !"round.dynamic", metadata !"fpexcept.strict"'
_EXACT = 'metadata !"fpexcept.strict"'


def _constrained(c: Context, name: str, ty: str, *args: Val, raw: str = _ROUND) -> Val:
    return c.f.intrinsic(f"llvm.experimental.constrained.{name}", ty, *args, raw=raw)


def _raise_if(c: Context, cond: Val, flags: int) -> None:
    with c.f.if_(cond, likely=False):
        c.raise_flags(flags)


@dataclass(frozen=True, slots=True)
class Precision:
    """An IEEE 754 format. Values travel as raw bits, an integer of the format's width."""

    suffix: str  #: as in `fadd.s`
    extension: str
    fmt: str  #: the bits of the fmt field
    int_ty: str
    float_ty: str
    llvm: str
    width: int
    fraction: int  #: bits of the trailing significand

    def __str__(self) -> str:
        return self.suffix

    @property
    def bias(self) -> int:
        return (1 << (self.width - self.fraction - 2)) - 1

    @property
    def infinity(self) -> int:
        return (2 * self.bias + 1) << self.fraction

    @property
    def quiet(self) -> int:
        """The bit that a signalling NaN has clear."""
        return 1 << (self.fraction - 1)

    @property
    def nan(self) -> int:
        """The canonical NaN."""
        return self.infinity | self.quiet

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    def power_of_2(self, n: int) -> int:
        """The bits of 2.0 ** n."""
        return (self.bias + n) << self.fraction

    # -- registers ----------------------------------------------------------------------------------------------------

    def read(self, c: Context, n: int) -> Val:
        """Register operand `n`. A single that is not boxed in ones is the canonical NaN."""
        raw = c.freg(n)
        if self.width == 64:
            return raw
        return c.select((raw >> 32).eq(0xFFFFFFFF), raw.trunc(self.int_ty), self.nan)

    def write(self, c: Context, bits: Val) -> None:
        c.set_freg(bits if self.width == 64 else bits.zext() | 0xFFFFFFFF << 32)

    # -- classes of values --------------------------------------------------------------------------------------------

    def magnitude(self, bits: Val) -> Val:
        return bits & (self.sign - 1)

    def is_nan(self, bits: Val) -> Val:
        return self.magnitude(bits).gtu(self.infinity)

    def is_signalling(self, bits: Val) -> Val:
        return self.is_nan(bits) & (bits & self.quiet).eq(0)

    def invalid_product(self, a: Val, b: Val) -> Val:
        """Whether a * b is infinity times zero."""
        a, b = self.magnitude(a), self.magnitude(b)
        return (a.eq(self.infinity) & b.eq(0)) | (a.eq(0) & b.eq(self.infinity))

    def number(self, c: Context, bits: Val) -> Val:
        """The same bits as an LLVM floating-point value."""
        if self.width == 32:  # hide the NaN of `read`, which LLVM would turn into a float constant
            bits = c.f.asm("", "=r,0", self.int_ty, bits)
        return bits.bitcast(self.float_ty)

    # -- computation --------------------------------------------------------------------------------------------------

    def compute(self, c: Context, name: str, *operands: Val, raw: str = _ROUND) -> Val:
        """The host's answer to a computation within this format."""
        numbers = [self.number(c, bits) for bits in operands]
        return _constrained(c, f"{name}.{self.llvm}", self.float_ty, *numbers, raw=raw).bitcast(self.int_ty)

    def canonical(self, c: Context, bits: Val) -> Val:
        return c.select(self.is_nan(bits), self.nan, bits)

    def unary(self, c: Context, name: str) -> None:
        self.write(c, self.canonical(c, self.compute(c, name, self.read(c, 1))))

    def binary(self, c: Context, name: str) -> None:
        self.write(c, self.canonical(c, self.compute(c, name, self.read(c, 1), self.read(c, 2))))

    def fused(self, c: Context, negate_product: bool, negate_addend: bool) -> None:
        a, b, addend = self.read(c, 1), self.read(c, 2), self.read(c, 3)
        product = a ^ self.sign if negate_product else a
        result = self.compute(c, "fma", product, b, addend ^ self.sign if negate_addend else addend)
        nan = self.is_nan(result)
        with c.f.if_(nan, likely=False):  # x86 says nothing of inf * 0 when the addend is a quiet NaN
            c.raise_flags(c.select(self.invalid_product(a, b), NV, 0))
        self.write(c, c.select(nan, self.nan, result))

    def inject_sign(self, c: Context, how: Literal["copy", "negate", "multiply"]) -> None:
        a, b = self.read(c, 1), self.read(c, 2)
        sign = {"copy": lambda: b, "negate": lambda: ~b, "multiply": lambda: a ^ b}[how]()
        self.write(c, self.magnitude(a) | sign & self.sign)

    def extreme(self, c: Context, maximum: bool) -> None:
        """minimumNumber and maximumNumber of IEEE 754-2019: a NaN loses, -0 is less than +0."""
        a, b = self.read(c, 1), self.read(c, 2)
        first = self._order(a).lts(self._order(b))
        number = c.select(first, b, a) if maximum else c.select(first, a, b)
        a_nan, b_nan = self.is_nan(a), self.is_nan(b)
        _raise_if(c, self.is_signalling(a) | self.is_signalling(b), NV)
        self.write(c, c.select(a_nan, c.select(b_nan, self.nan, b), c.select(b_nan, a, number)))

    def _order(self, bits: Val) -> Val:
        """A signed integer that orders as the numbers do, -0 before +0."""
        return bits ^ (bits.sar(self.width - 1) >> 1)

    def compare(self, c: Context, name: str, predicate: str) -> Val:
        """`fcmp` raises NV for signalling NaNs only, `fcmps` for all."""
        a, b = (self.number(c, self.read(c, n)) for n in (1, 2))
        raw = f'metadata !"{predicate}", {_EXACT}'
        return _constrained(c, f"{name}.{self.llvm}", "i1", a, b, raw=raw).zext()

    def classify(self, c: Context) -> Val:
        bits = self.read(c, 1)
        magnitude = self.magnitude(bits)
        positive = (
            c.const(4)
            + magnitude.ne(0).zext()
            + magnitude.geu(1 << self.fraction).zext()
            + magnitude.eq(self.infinity).zext()
        )  # zero, subnormal, normal, infinity
        number = c.select(bits.lts(0), 7 - positive, positive)
        nan = c.select((bits & self.quiet).eq(0), c.const(8), 9)
        return c.const(1) << c.select(self.is_nan(bits), nan, number)

    # -- conversion ---------------------------------------------------------------------------------------------------

    def to_int(self, c: Context, width: int, signed: bool) -> Val:
        """Round to an integer of `width` bits, extended from bit `width` - 1; saturate with NV, and then without NX."""
        value = self.read(c, 1)
        rounded = self.compute(c, "nearbyint", value)  # raises no NX
        magnitude = self.magnitude(rounded)
        if signed:
            low, high = -1 << (width - 1), (1 << (width - 1)) - 1
            limit = self.power_of_2(width - 1)
            fits = magnitude.ltu(limit) | rounded.eq(limit | self.sign)
        else:
            low, high = 0, -1
            fits = magnitude.ltu(self.power_of_2(width)) & (rounded.ges(0) | magnitude.eq(0))
        # The host converts what is below 2**63. What else fits is -2**63, or a u64 that needs no more than a shift.
        small = magnitude.ltu(self.power_of_2(63))
        safe = self.number(c, c.select(fits & small, rounded, 0))
        integer = _constrained(c, f"fptosi.i64.{self.llvm}", "i64", safe, raw=_EXACT)
        if width == 32:
            integer = sext32(integer)
        elif signed:
            integer = c.select(small, integer, -1 << 63)
        else:
            significand = rounded if self.width == 64 else rounded.zext()
            integer = c.select(small, integer, significand << (63 - self.fraction) | 1 << 63)
        saturated = c.select(value.lts(0) & ~self.is_nan(value), c.const(low), high)
        flags = c.select(fits, c.select(rounded.eq(value), c.const(0), NX), NV)
        with c.f.if_(flags.ne(0)):
            c.raise_flags(flags)
        return c.select(fits, integer, saturated)

    def from_i64(self, c: Context, value: Val) -> None:
        self.write(c, self._nearest(c, value))

    def from_u64(self, c: Context) -> None:
        """Halve what is too large for an i64, its lost bit kept sticky for the rounding; then double the result."""
        value = c.rs1
        large = value.lts(0)
        bits = self._nearest(c, c.select(large, value >> 1 | value & 1, value))
        self.write(c, c.select(large, bits + (1 << self.fraction), bits))

    def _nearest(self, c: Context, value: Val) -> Val:
        return _constrained(c, f"sitofp.{self.llvm}.i64", self.float_ty, value).bitcast(self.int_ty)


S = Precision("s", "F", "00", "i32", "float", "f32", 32, 23)
D = Precision("d", "D", "01", "i64", "double", "f64", 64, 52)


def _narrow(c: Context) -> None:
    wide = D.number(c, D.read(c, 1))
    S.write(c, S.canonical(c, _constrained(c, "fptrunc.f32.f64", S.float_ty, wide).bitcast(S.int_ty)))


def _widen(c: Context) -> None:
    narrow = S.number(c, S.read(c, 1))
    D.write(c, D.canonical(c, _constrained(c, "fpext.f64.f32", D.float_ty, narrow, raw=_EXACT).bitcast(D.int_ty)))


def _load(c: Context, p: Precision) -> None:
    p.write(c, c.load(c.rs1 + c.imm, p.width // 8, False).trunc(p.int_ty))


def _store(c: Context, p: Precision) -> None:
    c.store(c.rs1 + c.imm, p.width // 8, c.freg(2))


# fmt: off
def _rows(p: Precision) -> tuple[Instruction, ...]:
    """The instructions that both formats have."""
    ext, fp, f = p.extension, Flag.FP, p.fmt
    return (
        *family(ext, "fd, fs1, fs2, fs3, rm", fp, [
            (f"fmadd.{p}",  f"rs3 {f} rs2 rs1 rm rd 1000011", lambda c: p.fused(c, False, False), "a * b + c"),
            (f"fmsub.{p}",  f"rs3 {f} rs2 rs1 rm rd 1000111", lambda c: p.fused(c, False, True),  "a * b - c"),
            (f"fnmsub.{p}", f"rs3 {f} rs2 rs1 rm rd 1001011", lambda c: p.fused(c, True, False),  "-(a * b) + c"),
            (f"fnmadd.{p}", f"rs3 {f} rs2 rs1 rm rd 1001111", lambda c: p.fused(c, True, True),   "-(a * b) - c"),
        ]),
        *family(ext, "fd, fs1, fs2, rm", fp, [
            (f"fadd.{p}", f"00000 {f} rs2 rs1 rm rd 1010011", lambda c: p.binary(c, "fadd"), "add"),
            (f"fsub.{p}", f"00001 {f} rs2 rs1 rm rd 1010011", lambda c: p.binary(c, "fsub"), "subtract"),
            (f"fmul.{p}", f"00010 {f} rs2 rs1 rm rd 1010011", lambda c: p.binary(c, "fmul"), "multiply"),
            (f"fdiv.{p}", f"00011 {f} rs2 rs1 rm rd 1010011", lambda c: p.binary(c, "fdiv"), "divide"),
        ]),
        *family(ext, "fd, fs1, rm", fp, [
            (f"fsqrt.{p}", f"01011 {f} 00000 rs1 rm rd 1010011", lambda c: p.unary(c, "sqrt"), "square root"),
        ]),
        *family(ext, "fd, fs1, fs2", fp, [
            (f"fsgnj.{p}",  f"00100 {f} rs2 rs1 000 rd 1010011", lambda c: p.inject_sign(c, "copy"),     "sign of the second"),
            (f"fsgnjn.{p}", f"00100 {f} rs2 rs1 001 rd 1010011", lambda c: p.inject_sign(c, "negate"),   "opposite sign of the second"),
            (f"fsgnjx.{p}", f"00100 {f} rs2 rs1 010 rd 1010011", lambda c: p.inject_sign(c, "multiply"), "sign of the product"),
            (f"fmin.{p}",   f"00101 {f} rs2 rs1 000 rd 1010011", lambda c: p.extreme(c, False),          "minimum"),
            (f"fmax.{p}",   f"00101 {f} rs2 rs1 001 rd 1010011", lambda c: p.extreme(c, True),           "maximum"),
        ]),
        *family(ext, "rd, fs1, fs2", fp, [
            (f"feq.{p}", f"10100 {f} rs2 rs1 010 rd 1010011", lambda c: p.compare(c, "fcmp", "oeq"),  "1 if equal; quiet"),
            (f"flt.{p}", f"10100 {f} rs2 rs1 001 rd 1010011", lambda c: p.compare(c, "fcmps", "olt"), "1 if less"),
            (f"fle.{p}", f"10100 {f} rs2 rs1 000 rd 1010011", lambda c: p.compare(c, "fcmps", "ole"), "1 if less or equal"),
        ]),
        *family(ext, "rd, fs1", fp, [
            (f"fclass.{p}", f"11100 {f} 00000 rs1 001 rd 1010011", lambda c: p.classify(c), "one of ten bits: kind of value"),
        ]),
        *family(ext, "rd, fs1, rm", fp, [
            (f"fcvt.w.{p}",  f"11000 {f} 00000 rs1 rm rd 1010011", lambda c: p.to_int(c, 32, True),  "to 32 bits"),
            (f"fcvt.wu.{p}", f"11000 {f} 00001 rs1 rm rd 1010011", lambda c: p.to_int(c, 32, False), "to 32 bits, unsigned"),
            (f"fcvt.l.{p}",  f"11000 {f} 00010 rs1 rm rd 1010011", lambda c: p.to_int(c, 64, True),  "to 64 bits"),
            (f"fcvt.lu.{p}", f"11000 {f} 00011 rs1 rm rd 1010011", lambda c: p.to_int(c, 64, False), "to 64 bits, unsigned"),
        ]),
        *family(ext, "fd, rs1, rm", fp, [
            (f"fcvt.{p}.w",  f"11010 {f} 00000 rs1 rm rd 1010011", lambda c: p.from_i64(c, sext32(c.rs1)), "from 32 bits"),
            (f"fcvt.{p}.wu", f"11010 {f} 00001 rs1 rm rd 1010011", lambda c: p.from_i64(c, zext32(c.rs1)), "from 32 bits, unsigned"),
            (f"fcvt.{p}.l",  f"11010 {f} 00010 rs1 rm rd 1010011", lambda c: p.from_i64(c, c.rs1),         "from 64 bits"),
            (f"fcvt.{p}.lu", f"11010 {f} 00011 rs1 rm rd 1010011", lambda c: p.from_u64(c),                "from 64 bits, unsigned"),
        ]),
    )


FD = (
    *family("F", "fd, imm(rs1)", Flag.LOAD | Flag.FP, [
        ("flw", "imm[11:0] rs1 010 rd 0000111", lambda c: _load(c, S), "load single"),
    ]),
    *family("F", "fs2, imm(rs1)", Flag.STORE | Flag.FP, [
        ("fsw", "imm[11:5] rs2 rs1 010 imm[4:0] 0100111", lambda c: _store(c, S), "store single"),
    ]),
    *_rows(S),
    *family("F", "rd, fs1", Flag.FP, [
        ("fmv.x.w", "1110000 00000 rs1 000 rd 1010011", lambda c: sext32(c.freg(1)), "move bits, sign-extended"),
    ]),
    *family("F", "fd, rs1", Flag.FP, [
        ("fmv.w.x", "1111000 00000 rs1 000 rd 1010011", lambda c: S.write(c, word(c.rs1)), "move bits"),
    ]),
    *family("D", "fd, imm(rs1)", Flag.LOAD | Flag.FP, [
        ("fld", "imm[11:0] rs1 011 rd 0000111", lambda c: _load(c, D), "load double"),
    ]),
    *family("D", "fs2, imm(rs1)", Flag.STORE | Flag.FP, [
        ("fsd", "imm[11:5] rs2 rs1 011 imm[4:0] 0100111", lambda c: _store(c, D), "store double"),
    ]),
    *_rows(D),
    *family("D", "rd, fs1", Flag.FP, [
        ("fmv.x.d", "1110001 00000 rs1 000 rd 1010011", lambda c: c.freg(1), "move bits"),
    ]),
    *family("D", "fd, rs1", Flag.FP, [
        ("fmv.d.x", "1111001 00000 rs1 000 rd 1010011", lambda c: c.set_freg(c.rs1), "move bits"),
    ]),
    *family("D", "fd, fs1, rm", Flag.FP, [
        ("fcvt.s.d", "0100000 00001 rs1 rm rd 1010011", _narrow, "double to single"),
        ("fcvt.d.s", "0100001 00000 rs1 rm rd 1010011", _widen,  "single to double"),
    ]),
)
# fmt: on
