"""A small builder of LLVM text IR: typed values with Python operators, structured control flow, native structs.

Text is about seven times faster to build than `llvmlite.ir` objects, and it needs no llvmlite: a tree of emitters can
be hashed and its cached object loaded without importing a compiler.

    m = Module("demo")
    f = m.function("add1", "i64", [("x", "i64")])
    (x,) = f.args
    with f.if_(x.eq(0)):
        f.ret(7)
    f.ret(x + 1)
    print(m.text())

Integer values are sign-less, as in LLVM: `<`, `>` and friends are not defined; say `lts`/`ltu`. Shifts are logical
(`<<`, `>>`) with `sar` for the arithmetic one; a shift amount must be below the width. Plain Python ints become
constants of the other operand's type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

_INT_BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "i128": 128}
_BYTES = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "ptr": 8, "float": 4, "double": 8}

Ordering = Literal["monotonic", "acquire", "release", "acq_rel", "seq_cst"]


class Val:
    """One SSA value: its function, LLVM type and spelling (a register or a constant)."""

    __slots__ = ("f", "ref", "ty")

    def __init__(self, f: Function, ty: str, ref: str) -> None:
        self.f = f
        self.ty = ty
        self.ref = ref

    def __repr__(self) -> str:
        return f"{self.ty} {self.ref}"

    @property
    def bits(self) -> int:
        return _INT_BITS[self.ty]

    # -- arithmetic -----------------------------------------------------------------------------------------------

    def _bin(self, op: str, other: Val | int, swap: bool = False) -> Val:
        rhs = self.f.value(other, self.ty)
        a, b = (rhs, self) if swap else (self, rhs)
        assert a.ty == b.ty, f"{op}: {a.ty} against {b.ty}"
        return self.f.emit(self.ty, f"{op} {self.ty} {a.ref}, {b.ref}")

    def __add__(self, other: Val | int) -> Val:
        return self._bin("add", other)

    def __sub__(self, other: Val | int) -> Val:
        return self._bin("sub", other)

    def __mul__(self, other: Val | int) -> Val:
        return self._bin("mul", other)

    def __and__(self, other: Val | int) -> Val:
        return self._bin("and", other)

    def __or__(self, other: Val | int) -> Val:
        return self._bin("or", other)

    def __xor__(self, other: Val | int) -> Val:
        return self._bin("xor", other)

    def __lshift__(self, other: Val | int) -> Val:
        return self._bin("shl", other)

    def __rshift__(self, other: Val | int) -> Val:
        return self._bin("lshr", other)

    def __radd__(self, other: int) -> Val:
        return self._bin("add", other, swap=True)

    def __rsub__(self, other: int) -> Val:
        return self._bin("sub", other, swap=True)

    def __rlshift__(self, other: int) -> Val:
        return self._bin("shl", other, swap=True)

    def __invert__(self) -> Val:
        return self._bin("xor", -1)

    def __neg__(self) -> Val:
        return self._bin("sub", 0, swap=True)

    def sar(self, other: Val | int) -> Val:
        return self._bin("ashr", other)

    def sdiv(self, other: Val | int) -> Val:
        return self._bin("sdiv", other)

    def udiv(self, other: Val | int) -> Val:
        return self._bin("udiv", other)

    def srem(self, other: Val | int) -> Val:
        return self._bin("srem", other)

    def urem(self, other: Val | int) -> Val:
        return self._bin("urem", other)

    # -- comparison (i1) ------------------------------------------------------------------------------------------

    def _cmp(self, pred: str, other: Val | int) -> Val:
        rhs = self.f.value(other, self.ty)
        assert self.ty == rhs.ty, f"icmp {pred}: {self.ty} against {rhs.ty}"
        return self.f.emit("i1", f"icmp {pred} {self.ty} {self.ref}, {rhs.ref}")

    def eq(self, other: Val | int) -> Val:
        return self._cmp("eq", other)

    def ne(self, other: Val | int) -> Val:
        return self._cmp("ne", other)

    def lts(self, other: Val | int) -> Val:
        return self._cmp("slt", other)

    def ges(self, other: Val | int) -> Val:
        return self._cmp("sge", other)

    def gts(self, other: Val | int) -> Val:
        return self._cmp("sgt", other)

    def les(self, other: Val | int) -> Val:
        return self._cmp("sle", other)

    def ltu(self, other: Val | int) -> Val:
        return self._cmp("ult", other)

    def geu(self, other: Val | int) -> Val:
        return self._cmp("uge", other)

    def gtu(self, other: Val | int) -> Val:
        return self._cmp("ugt", other)

    def leu(self, other: Val | int) -> Val:
        return self._cmp("ule", other)

    # -- conversion -----------------------------------------------------------------------------------------------

    def _cast(self, op: str, ty: str) -> Val:
        if ty == self.ty:
            return self
        return self.f.emit(ty, f"{op} {self.ty} {self.ref} to {ty}")

    def trunc(self, ty: str) -> Val:
        return self._cast("trunc", ty)

    def zext(self, ty: str = "i64") -> Val:
        return self._cast("zext", ty)

    def sext(self, ty: str = "i64") -> Val:
        return self._cast("sext", ty)

    def bitcast(self, ty: str) -> Val:
        return self._cast("bitcast", ty)

    def to_ptr(self) -> Val:
        return self._cast("inttoptr", "ptr")

    def to_int(self) -> Val:
        return self._cast("ptrtoint", "i64")

    def bit(self, n: int) -> Val:
        """Bit `n` as an i1."""
        return (self & (1 << n)).ne(0)

    def field(self, hi: int, lo: int) -> Val:
        """Bits hi..lo, shifted down."""
        return (self >> lo) & ((1 << (hi - lo + 1)) - 1)

    def mask(self) -> Val:
        """An i1 as an all-ones or all-zero i64."""
        return self.sext("i64")

    # -- memory ---------------------------------------------------------------------------------------------------

    def offset(self, n: Val | int) -> Val:
        """This pointer moved by `n` bytes."""
        assert self.ty == "ptr"
        if isinstance(n, int) and n == 0:
            return self
        step = self.f.value(n, "i64")
        return self.f.emit("ptr", f"getelementptr i8, ptr {self.ref}, i64 {step.ref}")


class Var:
    """A mutable local: an `alloca` that `sroa` turns back into registers."""

    __slots__ = ("f", "slot", "ty")

    def __init__(self, f: Function, ty: str, slot: str) -> None:
        self.f = f
        self.ty = ty
        self.slot = slot

    def get(self) -> Val:
        return self.f.emit(self.ty, f"load {self.ty}, ptr {self.slot}")

    def set(self, value: Val | int) -> None:
        v = self.f.value(value, self.ty)
        assert v.ty == self.ty, f"var of {self.ty} set to {v.ty}"
        self.f.line(f"store {self.ty} {v.ref}, ptr {self.slot}")


@dataclass(frozen=True, slots=True)
class Prototype:
    """What a caller must know of a function."""

    name: str
    ret: str
    params: tuple[tuple[str, str], ...]  # (name, type)
    cc: str = "ccc"


class Function:
    """One function under construction. Emission methods append to the current basic block."""

    def __init__(self, module: Module, proto: Prototype, linkage: str) -> None:
        self.module = module
        self.proto = proto
        self._linkage = linkage
        self._allocas: list[str] = []
        self._lines: list[str] = []
        self._next = 0
        self._open = True  # the current block still wants a terminator
        self._loops: list[tuple[str, str]] = []  # (continue label, break label)
        self.args = tuple(Val(self, ty, f"%{name}") for name, ty in proto.params)

    # -- raw emission ---------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        if self._open:  # what follows a terminator can never run: drop it
            self._lines.append("  " + text)

    def emit(self, ty: str, text: str) -> Val:
        self._next += 1
        ref = f"%v{self._next}"
        self.line(f"{ref} = {text}")
        return Val(self, ty, ref)

    def value(self, x: Val | float, ty: str) -> Val:
        """`x` itself, or the constant `x` of type `ty`."""
        if isinstance(x, Val):
            return x
        if ty == "ptr":
            return Val(self, ty, "null" if x == 0 else f"inttoptr (i64 {x} to ptr)")
        if ty in ("float", "double"):
            return Val(self, ty, _float_literal(float(x), ty))
        assert isinstance(x, int)
        width = _INT_BITS[ty]
        if ty == "i1":
            return Val(self, ty, "true" if x & 1 else "false")
        low = x & ((1 << width) - 1)
        return Val(self, ty, str(low - (1 << width) if low >> (width - 1) else low))

    def const(self, x: int, ty: str = "i64") -> Val:
        return self.value(x, ty)

    def var(self, ty: str, init: Val | int | None = None) -> Var:
        slot = f"%m{len(self._allocas)}"
        self._allocas.append(f"  {slot} = alloca {ty}")
        v = Var(self, ty, slot)
        if init is not None:
            v.set(init)
        return v

    def buffer(self, words: int) -> Val:
        """A pointer to that many zeroed i64 on the stack."""
        slot = f"%m{len(self._allocas)}"
        self._allocas.append(f"  {slot} = alloca [{words} x i64]")
        out = Val(self, "ptr", slot)
        for i in range(words):
            self.store(self.const(0), out, 8 * i)
        return out

    # -- control flow ---------------------------------------------------------------------------------------------

    def _label(self, stem: str) -> str:
        self._next += 1
        return f"{stem}{self._next}"

    def _begin(self, label: str) -> None:
        if self._open:
            self._lines.append(f"  br label %{label}")
        self._lines.append(f"{label}:")
        self._open = True

    def _end(self, terminator: str) -> None:
        self.line(terminator)
        self._open = False

    @contextmanager
    def if_(self, cond: Val, likely: bool | None = None) -> Iterator[None]:
        """Run the body when `cond` (i1) holds. `if_else` is for two arms."""
        then, other = self._label("then"), self._label("else")
        weights = {None: "", True: ", !prof !0", False: ", !prof !1"}[likely]
        self._end(f"br i1 {cond.ref}, label %{then}, label %{other}{weights}")
        self._begin(then)
        yield
        self._begin(other)

    @contextmanager
    def if_else(self, cond: Val) -> Iterator[_Else]:
        """`with f.if_else(c) as e: ...; e.otherwise(); ...`"""
        then, other, join = self._label("then"), self._label("else"), self._label("join")
        self._end(f"br i1 {cond.ref}, label %{then}, label %{other}")
        self._begin(then)
        yield _Else(self, other, join)
        self._begin(join)

    @contextmanager
    def loop(self) -> Iterator[None]:
        """Repeat until `break_`, `ret` or `tail`."""
        head, after = self._label("loop"), self._label("after")
        self._begin(head)
        self._loops.append((head, after))
        yield
        self._end(f"br label %{head}")
        self._loops.pop()
        self._begin(after)

    def break_(self) -> None:
        self._end(f"br label %{self._loops[-1][1]}")

    def continue_(self) -> None:
        self._end(f"br label %{self._loops[-1][0]}")

    @contextmanager
    def for_range(self, n: Val | int) -> Iterator[Val]:
        """Run the body for i = 0 .. n-1 (i64). `continue_` is not available inside."""
        i = self.var("i64", 0)
        limit = self.value(n, "i64")
        with self.loop():
            now = i.get()
            with self.if_(now.geu(limit)):
                self.break_()
            yield now
            i.set(now + 1)

    def switch(self, value: Val, cases: Sequence[tuple[Sequence[int], str]], default: str) -> None:
        """Jump to the label of the case that holds `value`. Labels come from `label()` and are begun with `at()`."""
        rows = " ".join(f"{value.ty} {k}, label %{label}" for keys, label in cases for k in keys)
        self._end(f"switch {value.ty} {value.ref}, label %{default} [ {rows} ]")

    def label(self, stem: str) -> str:
        return self._label(stem)

    def at(self, label: str) -> None:
        self._begin(label)

    def goto(self, label: str) -> None:
        self._end(f"br label %{label}")

    def ret(self, value: Val | int | None = None) -> None:
        if self.proto.ret == "void":
            self._end("ret void")
        else:
            assert value is not None
            v = self.value(value, self.proto.ret)
            assert v.ty == self.proto.ret, f"{self.proto.name} returns {self.proto.ret}, not {v.ty}"
            self._end(f"ret {v.ty} {v.ref}")

    def unreachable(self) -> None:
        self._end("unreachable")

    # -- calls ----------------------------------------------------------------------------------------------------

    def _actuals(self, types: Sequence[str], args: Sequence[Val | int]) -> str:
        assert len(types) == len(args), f"{len(args)} arguments for {len(types)} parameters"
        vals = [self.value(a, ty) for a, ty in zip(args, types, strict=True)]
        for v, ty in zip(vals, types, strict=True):
            assert v.ty == ty, f"argument {v} where {ty} is wanted"
        return ", ".join(f"{v.ty} {v.ref}" for v in vals)

    def call(self, proto: Prototype, *args: Val | int) -> Val:
        """Call a function of this module; the result of a void function is not to be used."""
        text = f"call {proto.cc} {proto.ret} @{proto.name}({self._actuals([t for _, t in proto.params], args)})"
        if proto.ret == "void":
            self.line(text)
            return Val(self, "void", "")
        return self.emit(proto.ret, text)

    def call_ptr(self, target: Val, ret: str, types: Sequence[str], *args: Val | int, variadic_after: int = -1) -> Val:
        """Call through a pointer to a C function (libc's, reached through the state)."""
        sig = ""
        if variadic_after >= 0:
            fixed = ", ".join(types[:variadic_after])
            sig = f" ({fixed}{', ' if fixed else ''}...)"
        text = f"call {ret}{sig} {target.ref}({self._actuals(types, args)})"
        if ret == "void":
            self.line(text)
            return Val(self, "void", "")
        return self.emit(ret, text)

    def tail(self, target: Prototype | Val, *args: Val | int, types: Sequence[str], cc: str) -> None:
        """`musttail` call and return: control never comes back here."""
        where = f"@{target.name}" if isinstance(target, Prototype) else target.ref
        self.line(f"musttail call {cc} void {where}({self._actuals(types, args)})")
        self._end("ret void")

    def intrinsic(self, name: str, ret: str, *args: Val, raw: str = "") -> Val:
        """Call `@name`, declaring it; `raw` is appended to the arguments as text (metadata, immediates)."""
        types = [a.ty for a in args]
        self.module.declare(name, ret, types, raw)
        actual = ", ".join([f"{a.ty} {a.ref}" for a in args] + ([raw] if raw else []))
        strict = " #1" if "constrained" in name else ""
        text = f"call {ret} @{name}({actual}){strict}"
        if ret == "void":
            self.line(text)
            return Val(self, "void", "")
        return self.emit(ret, text)

    def asm(self, text: str, constraints: str, ret: str, *args: Val) -> Val:
        """Inline assembly (Intel or AT&T as written), with side effects."""
        actual = ", ".join(f"{a.ty} {a.ref}" for a in args)
        call = f'call {ret} asm sideeffect "{text}", "{constraints}"({actual})'
        if ret == "void":
            self.line(call)
            return Val(self, "void", "")
        return self.emit(ret, call)

    # -- values ---------------------------------------------------------------------------------------------------

    def select(self, cond: Val, a: Val | int, b: Val | int) -> Val:
        ty = a.ty if isinstance(a, Val) else b.ty if isinstance(b, Val) else "i64"
        va, vb = self.value(a, ty), self.value(b, ty)
        assert va.ty == vb.ty, f"select of {va.ty} and {vb.ty}"
        return self.emit(ty, f"select i1 {cond.ref}, {ty} {va.ref}, {ty} {vb.ref}")

    def max_u(self, a: Val, b: Val) -> Val:
        return self.select(a.gtu(b), a, b)

    def min_u(self, a: Val, b: Val) -> Val:
        return self.select(a.ltu(b), a, b)

    # -- memory ---------------------------------------------------------------------------------------------------

    def load(
        self, ty: str, ptr: Val, off: Val | int = 0, order: Ordering | None = None, align: int | None = None
    ) -> Val:
        where = ptr.offset(off)
        if order is None:
            return self.emit(ty, f"load {ty}, ptr {where.ref}, align {align or _BYTES[ty]}")
        return self.emit(ty, f"load atomic {ty}, ptr {where.ref} {order}, align {_BYTES[ty]}")

    def store(
        self, value: Val, ptr: Val, off: Val | int = 0, order: Ordering | None = None, align: int | None = None
    ) -> None:
        where = ptr.offset(off)
        if order is None:
            self.line(f"store {value.ty} {value.ref}, ptr {where.ref}, align {align or _BYTES[value.ty]}")
        else:
            self.line(f"store atomic {value.ty} {value.ref}, ptr {where.ref} {order}, align {_BYTES[value.ty]}")

    def rmw(self, op: str, ptr: Val, value: Val, order: Ordering = "seq_cst") -> Val:
        return self.emit(value.ty, f"atomicrmw {op} ptr {ptr.ref}, {value.ty} {value.ref} {order}")

    def cmpxchg(self, ptr: Val, expected: Val, new: Val) -> tuple[Val, Val]:
        """(value found, swapped?) of a sequentially consistent compare-exchange."""
        ty = expected.ty
        pair = self.emit("pair", f"cmpxchg ptr {ptr.ref}, {ty} {expected.ref}, {ty} {new.ref} seq_cst seq_cst")
        found = self.emit(ty, f"extractvalue {{ {ty}, i1 }} {pair.ref}, 0")
        done = self.emit("i1", f"extractvalue {{ {ty}, i1 }} {pair.ref}, 1")
        return found, done

    def fence(self, order: Ordering = "seq_cst") -> None:
        self.line(f"fence {order}")

    # -- text -----------------------------------------------------------------------------------------------------

    def text(self) -> str:
        assert not self._open, f"{self.proto.name}: falls off its end"
        p = self.proto
        params = ", ".join(f"{ty} %{name}" for name, ty in p.params)
        head = f"define {self._linkage} {p.cc} {p.ret} @{p.name}({params}) #0 {{"
        return "\n".join([head, "entry:", *self._allocas, *self._lines, "}"])


class _Else:
    def __init__(self, f: Function, other: str, join: str) -> None:
        self._f = f
        self._other = other
        self._join = join

    def otherwise(self) -> None:
        f = self._f
        f._end(f"br label %{self._join}")
        f._begin(self._other)


class Module:
    """A set of functions compiled together. Constant data is not supported on purpose: images hold code only.

    In an `open` module what is announced and not defined is another image's, or a hole for a patcher to fill.
    """

    def __init__(self, name: str, *, open: bool = False) -> None:
        self.name = name
        self._is_open = open
        self._holes: dict[str, None] = {}  # in order
        self._functions: dict[str, Function] = {}
        self._protos: dict[str, Prototype] = {}
        self._intrinsics: dict[str, str] = {}
        self._assembly: dict[str, str] = {}

    def proto(self, name: str, ret: str, params: Sequence[tuple[str, str]], cc: str = "ccc") -> Prototype:
        """Announce a function that is defined later (or look up the announcement)."""
        p = Prototype(name, ret, tuple(params), cc)
        known = self._protos.setdefault(name, p)
        assert known == p, f"{name} announced twice, differently"
        return known

    def function(
        self, name: str, ret: str, params: Sequence[tuple[str, str]], cc: str = "ccc", linkage: str = "hidden"
    ) -> Function:
        assert name not in self._functions, f"{name} defined twice"
        f = Function(self, self.proto(name, ret, params, cc), linkage)
        self._functions[name] = f
        return f

    def assembly(self, name: str, lines: Sequence[str]) -> None:
        """A function written in assembly (Intel syntax), whole: prologue, labels and return are its own."""
        assert name not in self._assembly
        self._assembly[name] = "\\0A".join(lines)

    def hole(self, f: Function, name: str) -> Val:
        """A signed number of 32 bits (i64) that whoever places the code puts in: the address of symbol `name`."""
        self._holes[name] = None
        return Val(f, "i64", f"ptrtoint (ptr @{name} to i64)")

    def declare(self, name: str, ret: str, types: Sequence[str], raw: str) -> None:
        extra = [part.split()[0] for part in raw.split(", ")] if raw else []
        self._intrinsics.setdefault(name, f"declare {ret} @{name}({', '.join([*types, *extra])})")

    def text(self) -> str:
        missing = [proto for name, proto in self._protos.items() if name not in self._functions]
        assert self._is_open or not missing, f"announced but never defined: {missing}"
        others = [f"declare {p.cc} {p.ret} @{p.name}({', '.join(ty for _, ty in p.params)})" for p in missing]
        # The range tells LLVM that the number fits an instruction's 32 bits, and is extended with its sign.
        others += [f"@{name} = external hidden global i8, !absolute_symbol !2" for name in self._holes]
        head = [f'source_filename = "{self.name}"', 'target triple = "x86_64-unknown-linux-gnu"']
        tail = [
            'attributes #0 = { nounwind noimplicitfloat strictfp "no-jump-tables"="true" "frame-pointer"="none" }',
            "attributes #1 = { strictfp }",
            '!0 = !{!"branch_weights", i32 2000, i32 1}',
            '!1 = !{!"branch_weights", i32 1, i32 2000}',
            "!2 = !{i64 -2147483648, i64 2147483648}",
        ]
        bodies = [f.text() for f in self._functions.values()]
        bodies += [
            f'define hidden void @{name}() naked nounwind {{\n  call void asm sideeffect inteldialect "{text}", ""()\n'
            "  unreachable\n}"
            for name, text in self._assembly.items()
        ]
        return (
            "\n\n".join(["\n".join(head), *sorted(self._intrinsics.values()), *others, *bodies, "\n".join(tail)]) + "\n"
        )


def _float_literal(x: float, ty: str) -> str:
    if ty == "float":  # LLVM spells float constants as the double of the same value
        x = struct.unpack("<f", struct.pack("<f", x))[0]
    return f"0x{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}"


# -- native structs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    ty: str
    count: int
    offset: int

    @property
    def size(self) -> int:
        return _BYTES[self.ty]


class Struct:
    """The layout of a native struct shared by generated code and Python, from one list of rows.

    A row is (name, type) or (name, type, count); fields are laid out in order, naturally aligned. `at(name)` is the
    byte offset. Python reads fields through `memoryview` casts at these offsets, generated code through `Ref`.
    """

    def __init__(self, name: str, rows: Sequence[tuple[str, str] | tuple[str, str, int]], align: int = 64) -> None:
        self.name = name
        self.fields: dict[str, Field] = {}
        pos = 0
        for row in rows:
            fname, ty = row[0], row[1]
            count = row[2] if len(row) == 3 else 1
            size = _BYTES[ty]
            pos = (pos + size - 1) // size * size
            assert fname not in self.fields, f"{name}.{fname} twice"
            self.fields[fname] = Field(fname, ty, count, pos)
            pos += size * count
        self.size = (pos + align - 1) // align * align

    def at(self, name: str, index: int = 0) -> int:
        f = self.fields[name]
        return f.offset + f.size * index

    def bind(self, ptr: Val) -> Ref:
        return Ref(self, ptr)


class Ref:
    """A struct at a pointer, as generated code sees it."""

    __slots__ = ("f", "layout", "ptr")

    def __init__(self, layout: Struct, ptr: Val) -> None:
        self.layout = layout
        self.ptr = ptr
        self.f = ptr.f

    def addr(self, name: str, index: Val | int = 0) -> Val:
        field = self.layout.fields[name]
        if isinstance(index, int):
            return self.ptr.offset(field.offset + field.size * index)
        return self.ptr.offset(field.offset).offset(index * field.size)

    def get(self, name: str, index: Val | int = 0, order: Ordering | None = None) -> Val:
        return self.f.load(self.layout.fields[name].ty, self.addr(name, index), order=order)

    def set(self, name: str, value: Val | int, index: Val | int = 0, order: Ordering | None = None) -> None:
        self.f.store(self.f.value(value, self.layout.fields[name].ty), self.addr(name, index), order=order)
