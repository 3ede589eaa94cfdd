"""The calls of the built-in SBI that must not cost an exit: IPI, remote fences, timer (SBI 2.0, chapters 6-8)."""

from __future__ import annotations

from vmm.vcpu.layout import HART, POLL_FENCE, POLL_IRQ, SSI
from vmm.vcpu.native.abi import Native, shared_of

EID_TIME, EID_IPI, EID_RFENCE = 0x54494D45, 0x735049, 0x52464E43
INVALID_PARAM, NOT_SUPPORTED = -3, -2
A0, A1, A6, A7 = 10, 11, 16, 17


def define(native: Native) -> None:
    # (st, hart, mask, base): is the hart named? base -1: all are (SBI 2.0, 3.1)
    f, st, (hart, mask, base) = native.plain("hart_in")
    index = hart - base
    f.ret(base.eq(-1) | (index.ltu(64) & ((mask >> (index & 63)) & 1).ne(0)))

    # (st, mask, base): every hart named drops its cached translations before this returns
    f, st, (mask, base) = native.plain("remote_fence")
    shared = shared_of(st)
    me = st.get("mhartid")
    with f.if_(native.call(st, "hart_in", me, mask, base)):
        native.call(st, "flush_data")
        native.call(st, "flush_fetch")
    with f.for_range(shared.get("nharts")) as h:
        with f.if_(h.ne(me) & native.call(st, "hart_in", h, mask, base)):
            other = HART.bind(shared.get("hart", h))
            f.rmw("add", other.addr("fence_req"), f.const(1))
            native.call(other, "wake", f.const(POLL_FENCE, "i32"))
    # A hart that is out of guest code serves the request when it enters. Two harts may wait for each other here, so
    # each goes on serving.
    with f.for_range(shared.get("nharts")) as h:
        with f.if_(h.ne(me) & native.call(st, "hart_in", h, mask, base)):
            other = HART.bind(shared.get("hart", h))
            wanted = other.get("fence_req", order="seq_cst")
            with f.loop():
                with f.if_(other.get("in_guest", order="seq_cst").eq(0)):
                    f.break_()
                with f.if_(other.get("fence_ack", order="seq_cst").geu(wanted)):
                    f.break_()
                native.call(st, "serve_fence")
                f.call_ptr(shared.get("sched_yield"), "i32", [])
    f.ret()

    # 1: answered in a0, a1; 0: the call is Python's
    f, st, _ = native.plain("sbi_call")
    shared = shared_of(st)
    eid, fid, a0, a1 = (st.get("x", r) for r in (A7, A6, A0, A1))

    def answer(error: int) -> None:
        st.set("x", error, A0)
        st.set("x", 0, A1)
        f.ret(1)

    with f.if_(eid.eq(EID_TIME)):
        with f.if_(fid.ne(0)):
            answer(NOT_SUPPORTED)
        st.set("stimecmp", a0)
        native.call(st, "wake", f.const(POLL_IRQ, "i32"))
        answer(0)
    with f.if_(eid.ne(EID_IPI) & eid.ne(EID_RFENCE)):
        f.ret(0)
    # a mask that names a hart which does not exist is refused as a whole
    named = f.select(a1.eq(-1), f.const(0), a0)
    with f.for_range(64) as bit:
        hart = a1 + bit
        with f.if_(((named >> bit) & 1).ne(0) & hart.geu(shared.get("nharts"))):
            answer(INVALID_PARAM)
    with f.if_(eid.eq(EID_IPI)):
        with f.if_(fid.ne(0)):
            answer(NOT_SUPPORTED)
        with f.for_range(shared.get("nharts")) as h:
            with f.if_(native.call(st, "hart_in", h, a0, a1)):
                native.call(HART.bind(shared.get("hart", h)), "raise_lines", 1 << SSI)
        answer(0)
    with f.if_(fid.gtu(2)):  # the fences of the hypervisor extension
        answer(NOT_SUPPORTED)
    with f.if_(fid.eq(0)):
        native.call(st, "fence_i")
    native.call(st, "remote_fence", a0, a1)
    answer(0)
    f.unreachable()
