"""The way into guest code and out of it: `run`, and the signal handler that gets out when the host itself faults."""

from __future__ import annotations

from vmm.codegen.ir import Ref
from vmm.vcpu.layout import HART, POLL_IRQ, SIGNAL_MARK, SIGNAL_STACK, Exit
from vmm.vcpu.native.abi import Native

_SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
# x86-64 Linux: offsets in ucontext_t (uc_mcontext.gregs) and siginfo_t
_R12, _R13, _RDI, _RAX, _RSP, _RIP = (40 + 8 * i for i in (4, 5, 8, 13, 15, 16))
_SI_ADDR = 16
_SYS_RT_SIGACTION = 13


def define(native: Native) -> None:
    _run(native)
    _enter_guest(native)
    _csrs_from_outside(native)
    _on_host_fault(native)


def _run(native: Native) -> None:
    """`run(st) -> exit reason`: guest code until something needs Python (`layout.Exit`). Called without the GIL.

    In assembly, for what the fault handler needs: the place to come out at, with the stack as it was.
    """
    at = HART.at
    lines = [
        *(f"push {r}" for r in _SAVED),
        "sub rsp, 8",
        f"mov [rdi + {at('host_sp')}], rsp",
        "lea rax, [rip + .Lrun_landing]",
        f"mov [rdi + {at('host_landing')}], rax",
        "call run_guest",
        "jmp .Lrun_out",
        ".Lrun_landing:",  # from the fault handler, rdi is the hart again
        f"ldmxcsr [rdi + {at('host_mxcsr')}]",
        ".Lrun_out:",
        "add rsp, 8",
        *(f"pop {r}" for r in reversed(_SAVED)),
        "ret",
    ]
    native.m.assembly("run", lines)


def _enter_guest(native: Native) -> None:
    f = native.m.function("run_guest", "i64", [("st", "ptr")])
    st = HART.bind(f.args[0])
    f.store(f.const(1, "i32"), st.addr("in_guest"), order="seq_cst")
    native.call(st, "serve_fence")
    _exchange_mxcsr(st, "host_mxcsr", "mxcsr")
    st.set("exit_reason", Exit.NONE)
    n = native.call(st, "grant")
    # `grant` has looked at the timers. A hart that exits before each end of a slice would never look at them otherwise.
    with f.if_(native.call(st, "pending").ges(0)):
        f.rmw("or", st.addr("poll"), f.const(POLL_IRQ, "i32"))
    idle = st.get("mmio_state").eq(0)
    with f.if_else(idle) as e:
        f.call(native.go["jump"], st.ptr, st.get("pc").to_ptr(), n, st.get("dtlb_now"))
        e.otherwise()  # the access that Python answered comes first: no interrupt in between
        f.call(native.go["enter"], st.ptr, st.get("pc").to_ptr(), n, st.get("dtlb_now"))
    _exchange_mxcsr(st, "mxcsr", "host_mxcsr")
    f.store(f.const(0, "i32"), st.addr("in_guest"), order="seq_cst")
    f.ret(st.get("exit_reason"))


def _exchange_mxcsr(st: Ref, save: str, load: str) -> None:
    st.f.asm("stmxcsr ($0)", "r,~{memory}", "void", st.addr(save))
    st.f.asm("ldmxcsr ($0)", "r,~{memory}", "void", st.addr(load))


def _csrs_from_outside(native: Native) -> None:
    """`get_csr(st, number) -> value` and `set_csr(st, number, value)`, for a hart that is out of guest code. Rounding
    mode and flags are the guest's, not those of the calling thread."""
    # Instructions left of an empty slice: a count is read behind the last instruction, and written in its stead.
    for name, ret, inner, operands, left in (
        ("get_csr", "i64", "csr_read", [], -1),
        ("set_csr", "void", "csr_write", [("value", "i64")], 0),
    ):
        f = native.m.function(name, ret, [("st", "ptr"), ("number", "i64"), *operands])
        st = HART.bind(f.args[0])
        _exchange_mxcsr(st, "host_mxcsr", "mxcsr")
        result = native.call(st, inner, *f.args[1:], left)
        _exchange_mxcsr(st, "mxcsr", "host_mxcsr")
        f.ret(result)


def _on_host_fault(native: Native) -> None:
    """SIGSEGV, SIGBUS, SIGILL, SIGFPE: (signal, siginfo, ucontext). On a VCPU thread in guest code, `run` returns
    HOST_FAULT; elsewhere the signal gets its default action when the instruction runs again.

    It runs on the thread's signal stack (`layout.SIGNAL_STACK`), which says whose thread this is.
    """
    f = native.m.function("on_host_fault", "void", [("signal", "i32"), ("info", "ptr"), ("context", "ptr")])
    signal, info, context = f.args
    here = f.asm("mov %rsp, $0", "=r", "i64")
    stack = (here & -SIGNAL_STACK).to_ptr()
    with f.if_(f.load("i64", stack).eq(SIGNAL_MARK)):
        st = HART.bind(f.load("ptr", stack, 8))
        with f.if_(st.get("in_guest", order="seq_cst").ne(0)):
            st.set("crash_signal", signal.zext())
            st.set("crash_addr", f.load("i64", info, _SI_ADDR))
            st.set("crash_rip", f.load("i64", context, _RIP))
            in_handler = f.load("i64", context, _R12).eq(st.ptr.to_int())
            st.set("crash_ip", f.select(in_handler, f.load("i64", context, _R13), f.const(0)))
            st.set("exit_reason", Exit.HOST_FAULT)
            f.store(st.get("host_landing"), context, _RIP)
            f.store(st.get("host_sp"), context, _RSP)
            f.store(st.ptr.to_int(), context, _RDI)
            f.store(f.const(Exit.HOST_FAULT), context, _RAX)
            f.store(f.const(0, "i32"), st.addr("in_guest"), order="seq_cst")
            f.ret()
    default = f.buffer(4)  # struct sigaction, all zero: SIG_DFL
    f.asm(
        "syscall",
        "={rax},{rax},{rdi},{rsi},{rdx},{r10},~{rcx},~{r11},~{memory}",
        "i64",
        f.const(_SYS_RT_SIGACTION),
        signal.zext(),
        default.to_int(),
        f.const(0),
        f.const(8),
    )
    f.ret()
