"""How generated functions call each other: handlers, plain functions, and the frame that both are written in.

A *handler* executes one pre-decoded instruction and ends in a tail call of the next one's handler. Its four arguments
stay in host registers for the whole run:

    st   the hart (`layout.HART`)
    ip   the record being executed; pc = (ip >> 2) + st.pcbias
    n    instructions left in this slice, before this one
    tlb  the data TLB of the current translation mode

Functions named `go_*` have the same signature, but take a *pc* in place of `ip`: they are ways to continue.
Everything else is a plain C function on `st`, called from slow paths.
"""

from __future__ import annotations

from copy import copy
from typing import ClassVar

from vmm.codegen.ir import Function, Module, Prototype, Ref, Val
from vmm.vcpu.layout import HART, RECORD, SHARED

HANDLER_CC = "preserve_nonecc"
HANDLER_PARAMS = (("st", "ptr"), ("ip", "ptr"), ("n", "i64"), ("tlb", "ptr"))


class Frame:
    """A handler or a `go_*` continuation under construction."""

    def __init__(self, native: Native, name: str) -> None:
        self.native = native
        self.f = native.m.function(name, "void", native.params, cc=HANDLER_CC)
        st, self.ip, self.n, self.tlb, *self.more = self.f.args
        self.st = HART.bind(st)

    @property
    def pc(self) -> Val:
        """The pc of the record at `ip`."""
        return (self.ip.to_int() >> 2) + self.st.get("pcbias")

    @property
    def pc_arg(self) -> Val:
        """In a `go_*` function: the pc that came in place of `ip`."""
        return self.ip.to_int()

    def shared(self) -> Ref:
        return SHARED.bind(self.st.get("shared"))

    def call(self, name: str, *args: Val | int) -> Val:
        """Call a plain function on this hart."""
        return self.f.call(self.native.protos[name], self.st.ptr, *args)

    def behind(self, length: int) -> Frame:
        """The same frame at the record behind an instruction of `length` bytes."""
        moved = copy(self)
        moved.ip = self.ip.offset(length // 2 * RECORD)
        return moved

    def dispatch(self, ip: Val, n: Val) -> None:
        """Continue with the record at `ip`."""
        self.tail(self.f.load("i32", ip, align=4).zext().to_ptr(), ip, n)

    def next(self, ip: Val, length: int, n: Val) -> None:
        """Continue behind an instruction of `length` bytes at `ip`."""
        self.dispatch(ip.offset(length // 2 * RECORD), n)

    def go(self, where: str, pc: Val, n: Val, tlb: Val | None = None) -> None:
        """Continue in the function `go_<where>` with this pc."""
        self.tail(self.native.go[where], pc.to_ptr(), n, tlb)

    def tail(self, target: Prototype | Val, ip: Val, n: Val, tlb: Val | None = None) -> None:
        """Continue in a function of the same signature."""
        types = [ty for _, ty in self.native.params]
        self.f.tail(target, self.st.ptr, ip, n, tlb or self.tlb, *self.more, types=types, cc=HANDLER_CC)


class Native:
    """The module being generated, and the signatures of everything in it."""

    #: Plain functions: result, parameters after `st`.
    PLAIN: ClassVar[dict[str, tuple[str, tuple[str, ...]]]] = {
        "now_ns": ("i64", ()),
        "time": ("i64", ()),
        # memory.py
        "flush_data": ("void", ()),
        "flush_fetch": ("void", ()),
        "flush_page": ("void", ("i64",)),
        "set_mode": ("void", ()),
        "translate": ("i64", ("i64", "i64")),
        "pmp_allows": ("i1", ("i64", "i64", "i64", "i64")),
        "slow_load": ("i64", ("i64", "i64")),
        "slow_store": ("void", ("i64", "i64", "i64")),
        "write_begin": ("i64", ("i64", "i64")),
        "write_end": ("void", ("i64",)),
        "mmio_load": ("i64", ("i64", "i64", "i64")),
        "mmio_store": ("void", ("i64", "i64", "i64", "i64")),
        "page_written": ("void", ("i64", "i64")),
        "retire_page": ("void", ("i64",)),
        "code_page": ("ptr", ("i64",)),
        "revoke_writes": ("i64", ("i64",)),
        "fence_i": ("void", ()),
        # traps.py
        "set_fault": ("void", ("i64", "i64")),
        "take_trap": ("void", ("i64", "i64", "i64")),
        "take_interrupt": ("void", ("i64", "i64")),
        "pending": ("i64", ()),
        "update_timers": ("i64", ()),
        "grant": ("i64", ()),
        "settle": ("void", ("i64",)),
        "sleep": ("void", ()),
        "serve_fence": ("void", ()),
        "mret": ("i64", ()),
        "sret": ("i64", ()),
        # csr.py
        "csr_read": ("i64", ("i64", "i64")),
        "csr_write": ("void", ("i64", "i64", "i64")),
        "csr_access": ("i64", ("i64", "i64", "i64", "i64", "i64")),
        "illegal": ("void", ("i64",)),
        "pmp_decode": ("void", ()),
        "fp_refresh": ("void", ()),
        "fp_flags": ("i64", ()),
        # irqchip.py
        "raise_lines": ("void", ("i64",)),
        "lower_lines": ("void", ("i64",)),
        "wake": ("void", ("i32",)),
        "plic_best": ("i64", ("i64",)),
        "plic_update": ("void", ()),
        "plic_set_level": ("void", ("i64", "i64")),
        "plic_lock": ("void", ()),
        "plic_unlock": ("void", ()),
        "plic_load": ("i64", ("i64",)),
        "plic_store": ("void", ("i64", "i64")),
        "clint_load": ("i64", ("i64", "i64")),
        "clint_store": ("void", ("i64", "i64", "i64")),
        # sbi.py
        "sbi_call": ("i64", ()),
        "remote_fence": ("void", ("i64", "i64")),
        "hart_in": ("i1", ("i64", "i64", "i64")),
        # decoder.py
        "decode": ("i64", ("i64", "i64", "i64")),
        "commit": ("void", ("ptr", "i64", "i64", "i64")),
        "fuse": ("i64", ("ptr", "i64", "i64")),
        # translator.py
        "warm": ("void", ("i64",)),
        "translate_page": ("void", ("ptr",)),
        "place": ("i64", ("ptr", "ptr", "i64", "i64", "i64", "i64")),
    }

    #: Continuations: where a handler can go other than to the next record.
    GO = (
        *("jump", "enter", "jump_slow", "poll", "resync", "interrupts"),
        *("trapped", "fault", "leave", "slice_end", "sleep"),
    )

    def __init__(self, name: str = "vmm-software-vcpu", *, open: bool = False, more: tuple[str, ...] = ()) -> None:
        """An `open` module may refer to functions that it does not define. Its handlers hand on `more` numbers, in
        registers that those of the image may do with as they like."""
        self.m = Module(name, open=open)
        self.params = (*HANDLER_PARAMS, *((number, "i64") for number in more))
        self.protos: dict[str, Prototype] = {
            name: self.m.proto(name, ret, [("st", "ptr"), *((f"a{i}", ty) for i, ty in enumerate(params))])
            for name, (ret, params) in self.PLAIN.items()
        }
        self.go = {where: self.handler(f"go_{where}") for where in self.GO}

    def handler(self, name: str) -> Prototype:
        """Announce a function of the handlers' signature."""
        return self.m.proto(name, "void", self.params, cc=HANDLER_CC)

    def plain(self, name: str) -> tuple[Function, Ref, tuple[Val, ...]]:
        """Begin the plain function `name`: (function, hart, its other arguments)."""
        p = self.protos[name]
        f = self.m.function(name, p.ret, p.params)
        return f, HART.bind(f.args[0]), f.args[1:]

    def frame(self, name: str) -> Frame:
        return Frame(self, name)

    def call(self, st: Ref, name: str, *args: Val | int) -> Val:
        return st.f.call(self.protos[name], st.ptr, *args)


def shared_of(st: Ref) -> Ref:
    return SHARED.bind(st.get("shared"))
