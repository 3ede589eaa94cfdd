"""Semantics of the tables, compiled and callable: the smallest `isa.Context` there can be.

Operands are fields of one struct; memory, branches and CSRs only record what they were asked to do.
"""

from __future__ import annotations

import ctypes
import functools

from vmm.codegen.image import LoadedImage
from vmm.codegen.ir import Function, Module, Ref, Struct, Val
from vmm.codegen.llvm import compile_module
from vmm.isa.context import DZ, NV, NX, OF, UF, AmoOp, CsrOp, SystemOp
from vmm.isa.table import BASE

_FIELDS = (
    "rs1", "rs2", "imm", "rs1_field", "pc", "f1", "f2", "f3", "memory",  # in; `memory` is what a load finds
    "rd", "fd", "flags", "mxcsr", "address", "stored", "target", "asked",  # out
)  # fmt: skip
_AT = Struct("probe", [(name, "i64") for name in _FIELDS])
_TYPES = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}
_ROUNDING = (0, 3, 1, 2)  # RNE, RTZ, RDN, RUP as MXCSR.RC
_MXCSR = 0x1F80
_MXCSR_FLAGS = {0x01: NV, 0x04: DZ, 0x08: OF, 0x10: UF, 0x20: NX}
_ASKED: dict[str, int] = {}


def asked(what: str) -> int:
    """The number under which a call into the context is recorded."""
    return _ASKED.setdefault(what, len(_ASKED) + 1)


class ProbeContext:
    def __init__(self, f: Function) -> None:
        self.f = f
        self._p: Ref = _AT.bind(f.args[0])

    @property
    def rs1(self) -> Val:
        return self._p.get("rs1")

    @property
    def rs2(self) -> Val:
        return self._p.get("rs2")

    @property
    def imm(self) -> Val:
        return self._p.get("imm")

    @property
    def rs1_field(self) -> Val:
        return self._p.get("rs1_field")

    @property
    def rm_field(self) -> Val:
        return self.const(7)

    @property
    def pc(self) -> Val:
        return self._p.get("pc")

    @property
    def next_pc(self) -> Val:
        return self.pc + 4

    def const(self, value: int, ty: str = "i64") -> Val:
        return self.f.const(value, ty)

    def select(self, cond: Val, a: Val | int, b: Val | int) -> Val:
        return self.f.select(cond, a, b)

    def _ask(self, what: str) -> None:
        self._p.set("asked", asked(what))

    def load(self, addr: Val, size: int, signed: bool) -> Val:
        self._ask(f"load{size}")
        self._p.set("address", addr)
        value = self._p.get("memory").trunc(_TYPES[size])
        return value.sext() if signed else value.zext()

    def store(self, addr: Val, size: int, value: Val) -> None:
        self._ask(f"store{size}")
        self._p.set("address", addr)
        self._p.set("stored", value)

    def amo(self, op: AmoOp, addr: Val, size: int, value: Val) -> Val:
        self.store(addr, size, value)
        self._ask(f"{op}{size}")
        return self._p.get("memory")

    def lr(self, addr: Val, size: int) -> Val:
        return self.amo("add", addr, size, self.const(0))

    def sc(self, addr: Val, size: int, value: Val) -> Val:
        return self.amo("xchg", addr, size, value)

    def branch(self, cond: Val) -> None:
        self._p.set("target", self.select(cond, self.pc + self.imm, self.next_pc))

    def jal(self) -> None:
        self._p.set("target", self.pc + self.imm)

    def jalr(self, target: Val) -> None:
        self._p.set("target", target)

    def csr(self, op: CsrOp, number: Val, operand: Val, writes: Val) -> Val:
        self._ask(op)
        self._p.set("address", number)
        self._p.set("stored", operand)
        self._p.set("target", writes.zext())
        return self._p.get("memory")

    def system(self, op: SystemOp) -> None:
        self._ask(op)

    def freg(self, n: int) -> Val:
        return self._p.get(f"f{n}")

    def set_freg(self, raw: Val) -> None:
        self._p.set("fd", raw)

    def raise_flags(self, bits: Val | int) -> None:
        self._p.set("flags", self._p.get("flags") | bits)


def _module() -> Module:
    m = Module("probe")
    body = {}
    for insn in BASE.values():
        f = m.function(f"body_{insn.name}", "void", [("probe", "ptr")])
        result = insn.semantics(ProbeContext(f))
        if result is not None:
            _AT.bind(f.args[0]).set("rd", result)
        f.ret()
        body[insn.name] = f.proto
    for name, proto in body.items():  # around it, the rounding mode goes in and the host's flags come out
        f = m.function(name, "void", [("probe", "ptr")])
        host = f.args[0].offset(_AT.at("mxcsr"))
        f.asm("ldmxcsr ($0)", "r,~{memory}", "void", host)
        f.call_ptr(Val(f, "ptr", f"@{proto.name}"), "void", ["ptr"], f.args[0])
        f.asm("stmxcsr ($0)", "r,~{memory}", "void", host)
        f.asm("ldmxcsr ($0)", "r,~{memory}", "void", host.offset(4))
        f.ret()
    return m


@functools.cache
def _image() -> LoadedImage:
    return LoadedImage(compile_module(_module().text()))


class Probe:
    """One instruction. `run(rs1=..., f1=...)` gives what it did, as unsigned 64-bit fields by name."""

    def __init__(self, name: str) -> None:
        self._fields = (ctypes.c_uint64 * (_AT.size // 8))()
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_image().address(name))
        self._at = ctypes.addressof(self._fields)

    def run(self, rm: int = 0, **operands: int) -> dict[str, int]:
        fields = self._fields
        for i in range(len(fields)):
            fields[i] = 0
        for name, value in operands.items():
            fields[_FIELDS.index(name)] = value
        fields[_FIELDS.index("mxcsr")] = _MXCSR << 32 | _MXCSR | _ROUNDING[rm] << 13
        self._run(self._at)
        return dict(zip(_FIELDS, fields, strict=False))

    def run_fp(self, rm: int, *operands: int) -> tuple[int, int, int]:
        """(f[rd], x[rd], flags) of a floating-point instruction on raw register contents."""
        out = self.run(rm, **{f"f{n}": raw for n, raw in enumerate(operands, 1)})
        return out["fd"], out["rd"], self.flags(out)

    @staticmethod
    def flags(out: dict[str, int]) -> int:
        """The flags that a run raised, by the host or by hand."""
        return out["flags"] | sum(flag for bit, flag in _MXCSR_FLAGS.items() if out["mxcsr"] & bit)
