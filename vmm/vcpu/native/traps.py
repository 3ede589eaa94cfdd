"""Traps, interrupts, timers, and the ways in and out of guest code (priv. spec 3.1.6-3.1.9, 3.3.2, 8; Sstc).

Instructions are granted in slices of at most `SLICE`; at each slice's end, and only there, a hart looks at the clock.
A timer due sooner shortens the slice, so that no other thread is needed to make timer interrupts precise. Requests of
other threads (`poll`) are seen at every taken branch.
"""

from __future__ import annotations

from vmm.vcpu.layout import (
    EXEC,
    FAULT_EXIT,
    MEI,
    MSI,
    MTI,
    NS_PER_TICK,
    PAGE,
    POLL_EXIT,
    POLL_IRQ,
    PRV_M,
    PRV_S,
    PRV_U,
    SEI,
    SLICE,
    SSI,
    STI,
    Cause,
    Exit,
)
from vmm.vcpu.native.abi import Native, shared_of
from vmm.vcpu.native.memory import PAGE_MASK, xtlb_index

SIE, MIE, SPIE, MPIE, SPP, MPP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 8, 3 << 11
MPRV = 1 << 17
STCE = 1 << 63
_CLOCK_MONOTONIC = 1
_SYS_FUTEX, _FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 202, 128, 129
_FOREVER_NS = 3_600_000_000_000


def define(native: Native) -> None:
    _clock(native)
    _take(native)
    _returns(native)
    _interrupts(native)
    _slices(native)
    _sleep(native)
    _continuations(native)


def _clock(native: Native) -> None:
    # guest time in ns since the machine was made
    f, st, _ = native.plain("now_ns")
    shared = shared_of(st)
    f.call_ptr(shared.get("clock_gettime"), "i32", ["i32", "ptr"], f.const(_CLOCK_MONOTONIC, "i32"), st.addr("ts"))
    host = st.get("ts", 0) * 1_000_000_000 + st.get("ts", 1)
    f.ret(host + f.load("i64", shared.get("clock"), order="monotonic"))

    # mtime, in ticks of 100 ns
    f, st, _ = native.plain("time")
    f.ret(native.call(st, "now_ns").udiv(NS_PER_TICK) + shared_of(st).get("mtime_offset", order="monotonic"))


def _take(native: Native) -> None:
    f, st, (cause, addr) = native.plain("set_fault")
    st.set("fault", cause)
    st.set("fault_addr", addr)
    f.ret()

    # (st, pc, cause with bit 63 for interrupts, tval): enter the handler; `pc` and the modes change
    f, st, (pc, cause, tval) = native.plain("take_trap")
    prv, status = st.get("prv"), st.get("mstatus")
    is_irq = cause.lts(0)
    code = cause & 63
    delegated = (f.select(is_irq, st.get("mideleg"), st.get("medeleg")) >> code) & 1
    st.set("res_addr", -1)
    st.set("trap_count", st.get("trap_count") + 1)
    with f.if_else((prv.ne(PRV_M)) & delegated.ne(0)) as e:
        st.set("scause", cause)
        st.set("sepc", pc)
        st.set("stval", tval)
        spie = (status & SIE) << 4
        spp = (prv & 1) << 8
        st.set("mstatus", (status & ~(SIE | SPIE | SPP)) | spie | spp)
        st.set("prv", PRV_S)
        e.otherwise()
        st.set("mcause", cause)
        st.set("mepc", pc)
        st.set("mtval", tval)
        mpie = (status & MIE) << 4
        st.set("mstatus", (status & ~(MIE | MPIE | MPP)) | mpie | (prv << 11))
        st.set("prv", PRV_M)
    to_s = st.get("prv").eq(PRV_S)
    vec = f.select(to_s, st.get("stvec"), st.get("mtvec"))
    offset = f.select(is_irq & (vec & 1).ne(0), code << 2, f.const(0))
    st.set("pc", (vec & ~3) + offset)
    native.call(st, "set_mode")
    f.ret()

    # illegal instruction: tval is the instruction itself (priv. spec 3.1.16)
    f, st, (pc,) = native.plain("illegal")
    word = f.var("i64", 0)
    shared = shared_of(st)
    for part in (0, 2):
        pa = native.call(st, "translate", pc + part, EXEC)
        offset = pa - shared.get("ram_base")
        with f.if_(st.get("fault").eq(0) & offset.ltu(shared.get("ram_size"))):
            half = f.load("i16", (shared.get("ram_host") + offset).to_ptr(), order="monotonic").zext()
            word.set(word.get() | (half << (8 * part)))
        with f.if_((word.get() & 3).ne(3)):  # 16 bits long
            native.call(st, "set_fault", Cause.ILLEGAL, word.get())
            f.ret()
    native.call(st, "set_fault", Cause.ILLEGAL, word.get())
    f.ret()

    f, st, (pc, irq) = native.plain("take_interrupt")
    st.set("irq_count", st.get("irq_count") + 1)
    native.call(st, "take_trap", pc, irq | (1 << 63), 0)
    f.ret()


def _returns(native: Native) -> None:
    """mret and sret: the new pc. MPRV is cleared when machine mode is left (priv. spec 3.1.6.3)."""
    f, st, _ = native.plain("mret")
    status = st.get("mstatus")
    mpp = (status >> 11) & 3
    mie = (status & MPIE) >> 4
    kept = f.select(mpp.eq(PRV_M), status, status & ~MPRV)
    st.set("mstatus", (kept & ~(MIE | MPP)) | mie | MPIE)
    st.set("prv", mpp)
    native.call(st, "set_mode")
    f.ret(st.get("mepc"))

    f, st, _ = native.plain("sret")
    status = st.get("mstatus")
    sie = (status & SPIE) >> 4
    st.set("prv", (status & SPP) >> 8)
    st.set("mstatus", (status & ~(SIE | SPP | MPRV)) | sie | SPIE)
    native.call(st, "set_mode")
    f.ret(st.get("sepc"))


def _interrupts(native: Native) -> None:
    # the interrupt to take now, or -1 (priv. spec 3.1.9: MEI, MSI, MTI, SEI, SSI, STI)
    f, st, _ = native.plain("pending")
    lines = st.get("mip_hw", order="seq_cst") | st.get("mip_sw")
    waiting = lines & st.get("mie")
    with f.if_(waiting.eq(0)):
        f.ret(-1)
    prv, status, deleg = st.get("prv"), st.get("mstatus"), st.get("mideleg")
    m_on = prv.ltu(PRV_M) | (status & MIE).ne(0)
    s_on = prv.eq(PRV_U) | (prv.eq(PRV_S) & (status & SIE).ne(0))
    for_m = f.select(m_on, waiting & ~deleg, f.const(0))
    for_s = f.select(s_on, waiting & deleg, f.const(0))
    chosen = f.select(for_m.ne(0), for_m, for_s)
    for irq in (MEI, MSI, MTI, SEI, SSI, STI):
        with f.if_(chosen.bit(irq)):
            f.ret(irq)
    f.ret(-1)

    # compare the timers with the clock, drive their lines; ticks until the next one fires (never negative)
    f, st, _ = native.plain("update_timers")
    now = native.call(st, "time")
    lines = st.get("mip_hw", order="monotonic")
    left = f.var("i64", _FOREVER_NS // NS_PER_TICK)
    sstc = (st.get("menvcfg") & STCE).ne(0)
    never = f.const(-1)
    for irq, deadline in (
        (MTI, st.get("mtimecmp", order="monotonic")),
        (STI, f.select(sstc, st.get("stimecmp"), never)),
    ):
        due = deadline.leu(now)
        with f.if_(due & ~lines.bit(irq)):
            f.rmw("or", st.addr("mip_hw"), f.const(1 << irq))
        with f.if_(~due & lines.bit(irq)):
            f.rmw("and", st.addr("mip_hw"), f.const(~(1 << irq)))
        with f.if_(~due):
            left.set(f.min_u(left.get(), deadline - now))
    f.ret(left.get())


def _slices(native: Native) -> None:
    # Begin a slice: instructions granted. Near a timer, about half of what fits before it: the hart closes in on it.
    f, st, _ = native.plain("grant")
    ticks = native.call(st, "update_timers")
    wanted = f.min_u(f.max_u(ticks << 4, f.const(128)), f.const(SLICE))
    granted = f.min_u(wanted, st.get("budget"))
    st.set("budget", st.get("budget") - granted)
    st.set("slice", granted)
    f.ret(granted)

    # (st, n): close the slice with `n` instructions left of it
    f, st, (n,) = native.plain("settle")
    st.set("retired", st.get("retired") + (st.get("slice") - n))
    st.set("budget", st.get("budget") + n)
    st.set("slice", 0)
    f.ret()


def _sleep(native: Native) -> None:
    # WFI: wait until an enabled interrupt is pending or somebody asks for this hart
    f, st, _ = native.plain("sleep")
    shared = shared_of(st)
    began = native.call(st, "now_ns")
    st.set("wfi_count", st.get("wfi_count") + 1)
    poll = st.addr("poll")
    with f.loop():
        ticks = native.call(st, "update_timers")
        lines = st.get("mip_hw", order="seq_cst") | st.get("mip_sw")
        with f.if_((lines & st.get("mie")).ne(0)):
            f.break_()
        asked = f.rmw("and", poll, f.const(~POLL_IRQ, "i32"))
        with f.if_((asked & ~POLL_IRQ).ne(0)):
            f.break_()
        with f.if_((asked & POLL_IRQ).ne(0)):
            f.continue_()
        f.store(f.const(0, "i32"), st.addr("in_guest"), order="seq_cst")
        f.store(f.const(1, "i32"), st.addr("waiting"), order="seq_cst")
        ns = ticks * NS_PER_TICK
        st.set("ts", ns.udiv(1_000_000_000), 0)
        st.set("ts", ns.urem(1_000_000_000), 1)
        f.call_ptr(
            shared.get("syscall"),
            "i64",
            ["i64", "ptr", "i64", "i64", "ptr"],
            f.const(_SYS_FUTEX),
            poll,
            f.const(_FUTEX_WAIT_PRIVATE),
            f.const(0),
            st.addr("ts"),
            variadic_after=1,
        )
        f.store(f.const(0, "i32"), st.addr("waiting"), order="seq_cst")
        f.store(f.const(1, "i32"), st.addr("in_guest"), order="seq_cst")
        native.call(st, "serve_fence")
    st.set("idle_ns", st.get("idle_ns") + (native.call(st, "now_ns") - began))
    f.ret()

    # (st, request bits): ask this hart for something, from any thread
    f, st, (bits,) = native.plain("wake")
    f.rmw("or", st.addr("poll"), bits)
    with f.if_(st.get("waiting", order="seq_cst").ne(0)):
        f.call_ptr(
            shared_of(st).get("syscall"),
            "i64",
            ["i64", "ptr", "i64", "i64"],
            f.const(_SYS_FUTEX),
            st.addr("poll"),
            f.const(_FUTEX_WAKE_PRIVATE),
            f.const(1),
            variadic_after=1,
        )
    f.ret()

    # drop all cached translations if another hart asked for it
    f, st, _ = native.plain("serve_fence")
    asked = st.get("fence_req", order="seq_cst")
    with f.if_(asked.ne(st.get("fence_ack"))):
        native.call(st, "flush_data")
        native.call(st, "flush_fetch")
        st.set("fence_ack", asked, order="seq_cst")
    f.ret()


def _continuations(native: Native) -> None:
    # go_jump: continue at a pc, after a look at the requests of others
    h = native.frame("go_jump")
    f, st, pc = h.f, h.st, h.pc_arg
    with f.if_(st.get("poll", order="monotonic").ne(0), likely=False):
        h.go("poll", pc, h.n)
    h.go("enter", pc, h.n)

    # go_enter: the same without the look
    h = native.frame("go_enter")
    f, st, pc = h.f, h.st, h.pc_arg
    entry = st.get("xtlb_now").offset(xtlb_index(pc))
    page = pc & PAGE_MASK
    with f.if_(f.load("i64", entry, order="monotonic").ne(page), likely=False):
        h.go("jump_slow", pc, h.n)
    records = f.load("i64", entry, 8)
    st.set("pcbias", page - (records >> 2))
    h.dispatch((records + ((pc & (PAGE - 1)) << 2)).to_ptr(), h.n)

    h = native.frame("go_jump_slow")
    f, st, pc = h.f, h.st, h.pc_arg
    with f.if_(h.n.les(0)):  # a fetch that faults is a step, and this slice has none left
        h.go("slice_end", pc, h.n)
    pa = h.call("translate", pc, EXEC)
    with f.if_(st.get("fault").ne(0)):
        st.set("pc", pc)
        h.go("fault", pc, h.n - 1)
    with f.if_(h.call("pmp_allows", pa & PAGE_MASK, PAGE, EXEC, st.get("prv")) ^ 1):
        with f.if_(h.call("pmp_allows", pa, 4, EXEC, st.get("prv")) ^ 1):
            h.call("set_fault", Cause.FETCH_ACCESS, pc)
            h.go("fault", pc, h.n - 1)
    shared = h.shared()
    offset = pa - shared.get("ram_base")
    with f.if_(offset.geu(shared.get("ram_size"))):
        h.call("set_fault", Cause.FETCH_ACCESS, pc)
        h.go("fault", pc, h.n - 1)
    code = h.call("code_page", offset >> 12)
    with f.if_(code.eq(0)):
        st.set("exit_reason", Exit.CODE_FULL)
        h.go("leave", pc, h.n)
    entry = st.get("xtlb_now").offset(xtlb_index(pc))
    f.store(code, entry, 8)
    f.store(pc & PAGE_MASK, entry, 0)
    h.go("enter", pc, h.n)

    # go_poll: serve what others asked for, then continue
    h = native.frame("go_poll")
    f, st, pc = h.f, h.st, h.pc_arg
    asked = f.rmw("xchg", st.addr("poll"), f.const(0, "i32"))
    h.call("serve_fence")
    st.set("code_epoch", h.shared().get("code_epoch", order="seq_cst"), order="monotonic")
    with f.if_((asked & POLL_EXIT).ne(0)):
        with f.if_((asked & POLL_IRQ).ne(0)):
            f.rmw("or", st.addr("poll"), f.const(POLL_IRQ, "i32"))
        st.set("exit_reason", Exit.KICK)
        h.go("leave", pc, h.n)
    h.go("resync", pc, h.n)

    # go_resync: something that decides about interrupts or time may have changed
    h = native.frame("go_resync")
    f, st, pc = h.f, h.st, h.pc_arg
    h.call("settle", h.n)
    n = h.call("grant")
    irq = h.call("pending")
    with f.if_(irq.ges(0)):
        h.call("take_interrupt", pc, irq)
        h.go("enter", st.get("pc"), n, st.get("dtlb_now"))
    h.go("enter", pc, n, st.get("dtlb_now"))

    # go_interrupts: the hart may have enabled an interrupt that is pending, or changed its mode
    h = native.frame("go_interrupts")
    f, st, pc = h.f, h.st, h.pc_arg
    irq = h.call("pending")
    with f.if_(irq.ges(0)):
        h.call("take_interrupt", pc, irq)
        h.go("enter", st.get("pc"), h.n, st.get("dtlb_now"))
    h.go("enter", pc, h.n, st.get("dtlb_now"))

    # go_trapped: a trap was taken: continue at st.pc in the new mode
    h = native.frame("go_trapped")
    h.go("jump", h.st.get("pc"), h.n, h.st.get("dtlb_now"))

    # go_fault: the instruction at this pc, already counted, met `fault`
    h = native.frame("go_fault")
    f, st, pc = h.f, h.st, h.pc_arg
    with f.if_(st.get("fault").eq(FAULT_EXIT)):
        h.go("leave", pc, h.n + 1)
    st.set("untaken", st.get("untaken") + 1)
    h.call("take_trap", pc, st.get("fault"), st.get("fault_addr"))
    h.go("trapped", pc, h.n)

    # go_leave: back to Python, to come again at this pc
    h = native.frame("go_leave")
    h.st.set("pc", h.pc_arg)
    h.call("settle", h.n)
    h.f.ret()

    # go_slice_end: nothing is left of the slice (n is -1); the instruction at this pc has not run
    h = native.frame("go_slice_end")
    f, st, pc = h.f, h.st, h.pc_arg
    h.call("settle", 0)
    with f.if_(h.shared().get("jit").ne(0)):
        h.call("warm", pc)
        with f.if_(h.shared().get("code_full", order="monotonic").ne(0)):
            st.set("exit_reason", Exit.CODE_FULL)
            h.go("leave", pc, f.const(0))
    with f.if_(st.get("budget").eq(0)):
        st.set("exit_reason", Exit.BUDGET)
        h.go("leave", pc, f.const(0))
    st.set("code_epoch", h.shared().get("code_epoch", order="seq_cst"), order="monotonic")
    h.go("resync", pc, f.const(0))

    # go_sleep: WFI at the instruction before this pc
    h = native.frame("go_sleep")
    h.call("settle", h.n)
    h.call("sleep")
    h.go("jump", h.pc_arg, h.f.const(0))
