"""PLIC and ACLINT in native code (RISC-V PLIC spec 1.0; ACLINT spec 1.0, the SiFive CLINT's layout).

A source's line is a level. Whether it is pending needs no state of its own: level and not claimed. Everything is kept
in `SHARED` under one spin lock; harts see the outcome as bits of `mip_hw` and a request to look at them.
"""

from __future__ import annotations

from vmm.codegen.ir import Ref, Val
from vmm.vcpu.layout import (
    HART,
    MAX_DOORBELLS,
    MEI,
    MSI,
    MTI,
    PLIC_SOURCES,
    POLL_IRQ,
    SEI,
    Cause,
    Exit,
    Mmio,
)
from vmm.vcpu.native.abi import Native, shared_of
from vmm.vcpu.native.memory import answered, exit_for_mmio, spin_lock, spin_unlock

PLIC_SIZE, CLINT_SIZE = 0x600000, 0x10000
_PENDING, _ENABLE, _CONTEXT = 0x1000, 0x2000, 0x200000
_MTIMECMP, _MTIME = 0x4000, 0xBFF8


def define(native: Native) -> None:
    _lines(native)
    for part in (_plic_lock, _plic_best, _plic_update, _plic_set_level, _plic_load, _plic_store):
        part(native)
    _clint(native)
    _mmio(native)


def _lines(native: Native) -> None:
    f, st, (bits,) = native.plain("raise_lines")
    before = f.rmw("or", st.addr("mip_hw"), bits)
    with f.if_((before & bits).ne(bits)):
        native.call(st, "wake", f.const(POLL_IRQ, "i32"))
    f.ret()

    f, st, (bits,) = native.plain("lower_lines")
    f.rmw("and", st.addr("mip_hw"), ~bits)
    f.ret()


def _hart(shared: Ref, index: Val) -> Ref:
    return HART.bind(shared.get("hart", index))


def _plic_lock(native: Native) -> None:
    f, st, _ = native.plain("plic_lock")
    shared = shared_of(st)
    spin_lock(f, shared.addr("plic_lock"), shared.get("sched_yield"))
    f.ret()

    f, st, _ = native.plain("plic_unlock")
    spin_unlock(f, shared_of(st).addr("plic_lock"))
    f.ret()


def _plic_best(native: Native) -> None:
    """(st, context) -> the source that it would claim now, or 0: the highest priority above its threshold, of equal
    ones the lowest number."""
    f, st, (ctx,) = native.plain("plic_best")
    shared = shared_of(st)
    found, top = f.var("i64", 0), f.var("i32", shared.get("plic_threshold", ctx))
    for half in range(2):
        level, claimed = shared.get("plic_level", half, order="monotonic"), shared.get("plic_claimed", half)
        left = f.var("i64", level & ~claimed & shared.get("plic_enable", ctx * 2 + half))
        with f.loop():
            with f.if_(left.get().eq(0)):
                f.break_()
            source = f.intrinsic("llvm.cttz.i64", "i64", left.get(), raw="i1 true") + 64 * half
            left.set(left.get() & (left.get() - 1))
            priority = shared.get("plic_priority", source)
            with f.if_(priority.gtu(top.get())):
                top.set(priority)
                found.set(source)
    f.ret(found.get())


def _plic_update(native: Native) -> None:
    """Drive every hart's external interrupt lines. The lock is held."""
    f, st, _ = native.plain("plic_update")
    shared = shared_of(st)
    with f.for_range(shared.get("nharts")) as h:
        hart = _hart(shared, h)
        for mode, irq in ((0, MEI), (1, SEI)):
            wanted = native.call(st, "plic_best", h * 2 + mode).ne(0)
            line = hart.get("mip_hw", order="monotonic").bit(irq)
            with f.if_(wanted & ~line):
                native.call(hart, "raise_lines", 1 << irq)
            with f.if_(~wanted & line):
                native.call(hart, "lower_lines", 1 << irq)
    f.ret()


def _plic_set_level(native: Native) -> None:
    """(any hart, source, level): a device's wire."""
    f, st, (source, level) = native.plain("plic_set_level")
    shared = shared_of(st)
    native.call(st, "plic_lock")
    word, bit = shared.addr("plic_level", source >> 6), f.const(1) << (source & 63)
    with f.if_else(level.ne(0)) as e:
        f.rmw("or", word, bit)
        e.otherwise()
        f.rmw("and", word, ~bit)
    native.call(st, "plic_update")
    native.call(st, "plic_unlock")
    f.ret()


class _Plic:
    """An access to the PLIC's window, taken apart: which register of which block."""

    def __init__(self, shared: Ref, offset: Val) -> None:
        contexts = shared.get("nharts") * 2
        self.is_priority = offset.ltu(4 * PLIC_SOURCES)
        self.source = offset >> 2
        self.is_pending = offset.geu(_PENDING) & offset.ltu(_PENDING + PLIC_SOURCES // 8)
        self.pending_word = (offset - _PENDING) >> 2
        self.enable_context, self.enable_word = (offset - _ENABLE) >> 7, (offset >> 2) & 31
        in_enables = offset.geu(_ENABLE) & offset.ltu(_CONTEXT)
        self.is_enable = in_enables & self.enable_context.ltu(contexts) & self.enable_word.ltu(PLIC_SOURCES // 32)
        self.context = (offset - _CONTEXT) >> 12
        in_contexts = offset.geu(_CONTEXT) & self.context.ltu(contexts)
        self.is_threshold = in_contexts & (offset & 0xFFF).eq(0)
        self.is_claim = in_contexts & (offset & 0xFFF).eq(4)


def _plic_load(native: Native) -> None:
    f, st, (offset,) = native.plain("plic_load")
    shared = shared_of(st)
    at = _Plic(shared, offset)
    with f.if_(at.is_priority):
        f.ret(shared.get("plic_priority", at.source).zext())
    with f.if_(at.is_pending):
        half = at.pending_word >> 1
        word = shared.get("plic_level", half) & ~shared.get("plic_claimed", half)
        f.ret((word >> ((at.pending_word & 1) << 5)) & 0xFFFF_FFFF)
    with f.if_(at.is_enable):
        f.ret(f.load("i32", shared.addr("plic_enable", at.enable_context * 2), at.enable_word << 2).zext())
    with f.if_(at.is_threshold):
        f.ret(shared.get("plic_threshold", at.context).zext())
    with f.if_(at.is_claim):
        native.call(st, "plic_lock")
        source = native.call(st, "plic_best", at.context)
        with f.if_(source.ne(0)):
            f.rmw("or", shared.addr("plic_claimed", source >> 6), f.const(1) << (source & 63))
            native.call(st, "plic_update")
        native.call(st, "plic_unlock")
        f.ret(source)
    f.ret(0)


def _plic_store(native: Native) -> None:
    f, st, (offset, value) = native.plain("plic_store")
    shared = shared_of(st)
    at = _Plic(shared, offset)
    native.call(st, "plic_lock")
    with f.if_(at.is_priority & at.source.ne(0)):
        shared.set("plic_priority", (value & 7).trunc("i32"), at.source)
    with f.if_(at.is_enable):
        usable = f.select(at.enable_word.eq(0), value & ~1, value)  # source 0 does not exist
        f.store(usable.trunc("i32"), shared.addr("plic_enable", at.enable_context * 2), at.enable_word << 2)
    with f.if_(at.is_threshold):
        shared.set("plic_threshold", (value & 7).trunc("i32"), at.context)
    with f.if_(at.is_claim & value.ltu(PLIC_SOURCES)):  # complete: ignored unless the source is enabled here
        enabled = (shared.get("plic_enable", at.context * 2 + (value >> 6)) >> (value & 63)).bit(0)
        with f.if_(enabled):
            f.rmw("and", shared.addr("plic_claimed", value >> 6), ~(f.const(1) << (value & 63)))
    native.call(st, "plic_update")
    native.call(st, "plic_unlock")
    f.ret()


def _clint(native: Native) -> None:
    f, st, (offset, size) = native.plain("clint_load")
    shared = shared_of(st)
    nharts = shared.get("nharts")
    part = (offset & 4) << 3  # a 32-bit access to the upper half of a 64-bit register
    keep = f.select(size.eq(4), f.const(0xFFFF_FFFF), f.const(-1))
    with f.if_(offset.ltu(_MTIMECMP) & (offset >> 2).ltu(nharts)):
        hart = _hart(shared, offset >> 2)
        f.ret((hart.get("mip_hw", order="monotonic") >> MSI) & 1)
    with f.if_(offset.geu(_MTIMECMP) & ((offset - _MTIMECMP) >> 3).ltu(nharts)):
        hart = _hart(shared, (offset - _MTIMECMP) >> 3)
        f.ret((hart.get("mtimecmp", order="monotonic") >> part) & keep)
    with f.if_((offset & ~4).eq(_MTIME)):
        f.ret((native.call(st, "time") >> part) & keep)
    f.ret(0)

    f, st, (offset, size, value) = native.plain("clint_store")
    shared = shared_of(st)
    nharts = shared.get("nharts")
    part = (offset & 4) << 3
    keep = f.select(size.eq(4), f.const(0xFFFF_FFFF), f.const(-1)) << part
    with f.if_(offset.ltu(_MTIMECMP) & (offset >> 2).ltu(nharts)):
        hart = _hart(shared, offset >> 2)
        with f.if_else(value.bit(0)) as e:
            native.call(hart, "raise_lines", 1 << MSI)
            e.otherwise()
            native.call(hart, "lower_lines", 1 << MSI)
    with f.if_(offset.geu(_MTIMECMP) & ((offset - _MTIMECMP) >> 3).ltu(nharts)):
        hart = _hart(shared, (offset - _MTIMECMP) >> 3)
        old = hart.get("mtimecmp", order="monotonic")
        new = (old & ~keep) | ((value << part) & keep)
        hart.set("mtimecmp", new, order="seq_cst")
        with f.if_(new.gtu(native.call(st, "time"))):  # at once, for whoever reads mip next
            native.call(hart, "lower_lines", 1 << MTI)
        native.call(hart, "wake", f.const(POLL_IRQ, "i32"))
    with f.if_((offset & ~4).eq(_MTIME)):
        now = native.call(st, "time")
        wanted = (now & ~keep) | ((value << part) & keep)
        f.rmw("add", shared.addr("mtime_offset"), wanted - now)
        with f.for_range(nharts) as h:
            native.call(_hart(shared, h), "wake", f.const(POLL_IRQ, "i32"))
    f.ret()


def _mmio(native: Native) -> None:
    """Accesses outside RAM: the interrupt controllers here, everything else in Python."""
    f, st, (va, pa, size) = native.plain("mmio_load")
    shared = shared_of(st)

    def refuse(cause: Cause) -> None:
        native.call(st, "set_fault", cause, va)

    with f.if_((pa & (size - 1)).ne(0)):  # devices take naturally aligned accesses only
        refuse(Cause.LOAD_MISALIGNED)
        f.ret(0)
    offset = pa - shared.get("plic_base")
    with f.if_(offset.ltu(PLIC_SIZE) & size.eq(4)):
        f.ret(native.call(st, "plic_load", offset))
    offset = pa - shared.get("clint_base")
    with f.if_(offset.ltu(CLINT_SIZE) & size.geu(4)):
        f.ret(native.call(st, "clint_load", offset, size))
    with f.if_(answered(st, pa, size)):
        with f.if_(st.get("mmio_state").eq(Mmio.FAULT)):
            refuse(Cause.LOAD_ACCESS)
        st.set("mmio_state", Mmio.IDLE)
        f.ret(st.get("mmio_value"))
    exit_for_mmio(native, st, Exit.MMIO_READ, pa, size, 0)
    f.ret(0)

    f, st, (va, pa, size, register) = native.plain("mmio_store")
    value = register & (f.const(-1) >> ((8 - size) << 3))
    shared = shared_of(st)
    with f.if_((pa & (size - 1)).ne(0)):
        refuse(Cause.STORE_MISALIGNED)
        f.ret()
    offset = pa - shared.get("plic_base")
    with f.if_(offset.ltu(PLIC_SIZE) & size.eq(4)):
        native.call(st, "plic_store", offset, value)
        f.ret()
    offset = pa - shared.get("clint_base")
    with f.if_(offset.ltu(CLINT_SIZE) & size.geu(4)):
        native.call(st, "clint_store", offset, size, value)
        f.ret()
    with f.if_(answered(st, pa, size)):
        with f.if_(st.get("mmio_state").eq(Mmio.FAULT)):
            refuse(Cause.STORE_ACCESS)
        st.set("mmio_state", Mmio.IDLE)
        f.ret()
    with f.for_range(f.min_u(st.get("doorbell_count"), f.const(MAX_DOORBELLS))) as i:
        with f.if_(st.get("doorbell_addr", i).eq(pa) & st.get("doorbell_size", i).eq(size)):
            key = st.get("doorbell_value", i)
            with f.if_(key.eq(-1) | key.eq(value)):
                f.call_ptr(
                    shared.get("syscall"),
                    "i64",
                    ["i64", "i64", "ptr", "i64"],
                    f.const(1),  # write(2): an eventfd of 64 bits never blocks before 2^64 - 2 rings
                    st.get("doorbell_fd", i),
                    shared.addr("one"),
                    f.const(8),
                    variadic_after=1,
                )
                f.ret()
    exit_for_mmio(native, st, Exit.MMIO_WRITE, pa, size, value)
    f.ret()
