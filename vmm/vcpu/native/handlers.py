"""The interpreter: for every instruction a handler, made from its semantics.

A handler counts itself, reads its operands from the record at `ip`, and tail-calls the next record's handler. What its
inline path cannot do (a TLB miss, a device, a fault, an unusual rounding mode) goes on in its *twin*, the same
semantics over the slow functions of `memory.py`. So a fast handler needs no stack frame.

A handler that must not complete leaves the record's instruction as if it had not begun: nothing is written before the
last access that can fail.
"""

from __future__ import annotations

from vmm.codegen.ir import Prototype, Val
from vmm.isa.context import AmoOp, CsrOp, SystemOp
from vmm.isa.encoding import Flag, Instruction
from vmm.isa.table import BASE
from vmm.vcpu.layout import FAULT_EXIT, HANDLER_TABLE, PRV_M, PRV_S, PRV_U, READ, Cause, Exit
from vmm.vcpu.native.abi import Frame, Native
from vmm.vcpu.native.csr import FS, IRQ_STATE, read_mxcsr, rounding_control, write_mxcsr
from vmm.vcpu.native.decoder import HANDLERS, INDEX, Variant, handler_name
from vmm.vcpu.native.fusion import FUSED, Pair
from vmm.vcpu.native.memory import ADDEND, PAGE_MASK, RTAG, WTAG, data_privilege, tlb_index

_ATOMIC_TYPE = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}
_CSR_OPS = {"write": 0, "set": 1, "clear": 2}
_TVM, _TW, _TSR = 1 << 20, 1 << 21, 1 << 22
_CBIE, _CBCFE, _CBZE = 3 << 4, 1 << 6, 1 << 7
_BLOCK = 64  # bytes of a cache block, as the device tree says
_MEMORY = Flag.LOAD | Flag.STORE | Flag.AMO


def define(native: Native) -> None:
    twins = _Twins(native)
    for insn, length, variant in HANDLERS:
        twin = twins.of(insn, length)
        h = native.frame(handler_name(insn, length, variant))
        n = h.n - 1
        with h.f.if_(n.lts(0), likely=False):
            h.go("slice_end", h.pc, n)
        if variant.static:
            assert twin is not None
            h.tail(twin, h.ip, n)
            continue
        Interpreted(h, insn, length, n, variant, twin).run()
    for pair, variant in FUSED:
        _fused(native, twins, pair, variant)
    _table(native)


class _Twins:
    """The slow twins, made when first asked for."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self._made: dict[str, Prototype] = {}

    def of(self, insn: Instruction, length: int) -> Prototype | None:
        """The same instruction, already counted, over the functions that can fail; None if it cannot."""
        name = twin_name(insn, length)
        if name and name not in self._made:
            h = self._native.frame(name)
            self._made[name] = h.f.proto
            c = Slow(h, insn, length, h.n, Variant(), twin=None)
            if insn.flags & Flag.FP:
                c.run_fp()
            else:
                c.run()
        return self._made.get(name)


def twin_name(insn: Instruction, length: int) -> str:
    """Of the slow twin; empty if there is none."""
    cannot_fail = not insn.flags & (_MEMORY | Flag.FP)
    return "" if cannot_fail else handler_name(insn, length, Variant()).replace("h_", "s_", 1)


def _fused(native: Native, twins: _Twins, pair: Pair, variant: Variant) -> None:
    """Both instructions of a pair. Near a slice's end the first runs alone, by its plain handler."""
    first, second = BASE[pair.first], BASE[pair.second]
    h = native.frame(pair.name(variant))
    n = h.n - 2
    with h.f.if_(n.lts(0), likely=False):
        plain = handler_name(first, pair.first_length, Variant())
        h.tail(native.handler(plain), h.ip, h.n)
    result = Interpreted(h, first, pair.first_length, h.n - 1, Variant(), twins.of(first, pair.first_length)).compute()
    c = Interpreted(
        h.behind(pair.first_length), second, pair.second_length, n, variant, twins.of(second, pair.second_length)
    )
    if pair.via:
        assert result is not None
        c.known[pair.via] = result
    c.run()


def _table(native: Native) -> None:
    """fill_handlers(table): the address of every handler, at its number."""
    names = [*INDEX, *(pair.name(variant) for pair, variant in FUSED)]
    assert 4 * len(names) <= HANDLER_TABLE
    f = native.m.function("fill_handlers", "void", [("table", "ptr")])
    for i, name in enumerate(names):
        f.store(Val(f, "i64", f"ptrtoint (ptr @{name} to i64)").trunc("i32"), f.args[0], 4 * i)
    f.ret()


class Interpreted:
    """`isa.Context` over a pre-decoded record."""

    def __init__(
        self, h: Frame, insn: Instruction, length: int, n: Val, variant: Variant, twin: Prototype | None
    ) -> None:
        self.h = h
        self.f = h.f
        self.insn = insn
        self.length = length
        self._n = n
        self.variant = variant
        self.twin = twin
        self.known: dict[str, Val] = {}  # operands that need not be read
        self._taken: Val | None = None  # condition of a branch
        self._target: Val | None = None  # of jal (relative) and jalr (absolute)

    # -- the frame of one instruction -----------------------------------------------------------------------------

    @property
    def n(self) -> Val:
        """Instructions left in the slice, behind this one."""
        return self._n

    def run(self) -> None:
        """Semantics, result, and on to wherever control goes next."""
        if self.insn.flags & Flag.FP:
            with self.f.if_(self.h.st.get("fp_fast").eq(0), likely=False):
                self._go_to_twin()
            self.h.st.set("mstatus", self.h.st.get("mstatus") | FS)
        self.compute()
        self._leave()

    def _go_to_twin(self) -> None:
        assert self.twin is not None
        self.h.tail(self.twin, self.h.ip, self.n)

    def compute(self) -> Val | None:
        """Semantics and result, which is also returned."""
        result = self.insn.semantics(self)
        if result is not None:
            self.h.f.store(result, self._register("x", "rd"))
        return result

    def _leave(self) -> None:
        h, f = self.h, self.f
        if self._taken is not None:
            with f.if_(self._taken):
                self._go_relative(self.imm)
            h.next(h.ip, self.length, self.n)
        elif self.insn.flags & Flag.JAL:
            self._go_relative(self.imm)
        elif self._target is not None:
            self._go_absolute(self._target)
        else:
            h.next(h.ip, self.length, self.n)

    def _look_at_requests(self, ip: Val) -> None:
        h = self.h
        with self.f.if_(h.st.get("poll", order="monotonic").ne(0), likely=False):
            h.go("poll", (ip.to_int() >> 2) + h.st.get("pcbias"), self.n)

    def _go_relative(self, distance: Val) -> None:
        h = self.h
        if self.variant.far:
            h.go("jump", h.pc + distance, self.n)
        else:
            ip = h.ip.offset(distance << 2)
            if self.variant.polls:
                self._look_at_requests(ip)
            h.dispatch(ip, self.n)

    def _go_absolute(self, target: Val) -> None:
        h = self.h
        if not self.variant.far:
            pc = h.pc
            with self.f.if_(((target ^ pc) & PAGE_MASK).eq(0)):
                ip = h.ip.offset((target - pc) << 2)
                self._look_at_requests(ip)
                h.dispatch(ip, self.n)
        h.go("jump", target, self.n)

    # -- operands -------------------------------------------------------------------------------------------------

    def _slot(self, operand: str) -> Val:
        """The operand's field of the record, as an unsigned i64."""
        slot = next(s for s in self.insn.packing.value if s.operand == operand)
        byte = self.f.load("i8", self.h.ip, 4 + slot.low // 8).zext()
        return byte if slot.width == 8 else byte.field(slot.low % 8 + slot.width - 1, slot.low % 8)

    def _register(self, bank: str, operand: str) -> Val:
        """Where the register that the operand names is: `bank` is x or f."""
        return self.h.st.addr(bank, self._slot(operand))

    def _read(self, operand: str) -> Val:
        if operand in self.variant.zero:
            return self.f.const(0)
        if operand in self.known:
            return self.known[operand]
        return self.f.load("i64", self._register("x", operand))

    @property
    def rs1(self) -> Val:
        return self._read("rs1")

    @property
    def rs2(self) -> Val:
        return self._read("rs2")

    @property
    def imm(self) -> Val:
        if "imm" in self.variant.zero:
            return self.f.const(0)
        slot = next(s for s in self.insn.packing.value if s.operand == "imm")
        if slot.width == 16:
            return self.f.load("i16", self.h.ip, 6).sext()
        return self.f.load("i32", self.h.ip, 4).sar(8).sext()

    @property
    def rs1_field(self) -> Val:
        return self._slot("rs1")

    @property
    def rm_field(self) -> Val:
        return self._slot("rm")

    @property
    def pc(self) -> Val:
        return self.h.pc

    @property
    def next_pc(self) -> Val:
        return self.h.pc + self.length

    def const(self, value: int, ty: str = "i64") -> Val:
        return self.f.const(value, ty)

    def select(self, cond: Val, a: Val | int, b: Val | int) -> Val:
        return self.f.select(cond, a, b)

    # -- memory ---------------------------------------------------------------------------------------------------

    def _host(self, addr: Val, size: int, tag_at: int) -> Val:
        """Host address of a TLB hit; a miss, or an address that is not aligned, goes to the twin."""
        f = self.f
        entry = self.h.tlb.offset(tlb_index(addr))
        tag = f.load("i64", entry, tag_at, order="monotonic")
        with f.if_((addr & (PAGE_MASK | (size - 1))).ne(tag), likely=False):
            self._go_to_twin()
        return (addr + f.load("i64", entry, ADDEND)).to_ptr()

    def load(self, addr: Val, size: int, signed: bool) -> Val:
        value = self.f.load(_ATOMIC_TYPE[size], self._host(addr, size, RTAG), order="monotonic")
        return value.sext() if signed else value.zext()

    def store(self, addr: Val, size: int, value: Val) -> None:
        self.f.store(value.trunc(_ATOMIC_TYPE[size]), self._host(addr, size, WTAG), order="monotonic")

    def _written(self, host: Val) -> None:
        """An atomic wrote there. A TLB hit says that nobody watches the page."""

    def amo(self, op: AmoOp, addr: Val, size: int, value: Val) -> Val:
        host = self._host(addr, size, WTAG)
        old = self.f.rmw(op, host, value.trunc(_ATOMIC_TYPE[size])).sext()
        self._written(host)
        return old

    def lr(self, addr: Val, size: int) -> Val:
        value = self.f.load(_ATOMIC_TYPE[size], self._host(addr, size, RTAG), order="seq_cst").sext()
        self._reserve(addr, value)
        return value

    def _reserve(self, addr: Val, value: Val) -> None:
        self.h.st.set("res_addr", addr)
        self.h.st.set("res_value", value)

    def sc(self, addr: Val, size: int, value: Val) -> Val:
        """Succeeds if the word still has the value that was reserved: a change and a change back go unnoticed (ABA).
        Software that is right under the architecture's guarantee for LR/SC loops alone cannot tell, lock-free lists
        with reused nodes can; the alternative is a shared table that every store in the machine would have to look at.
        """
        f = self.f
        ty = _ATOMIC_TYPE[size]
        host = self._host(addr, size, WTAG)
        held = self.h.st.get("res_addr").eq(addr)
        self.h.st.set("res_addr", -1)
        failed = f.var("i64", 1)
        with f.if_(held):
            _, done = f.cmpxchg(host, self.h.st.get("res_value").trunc(ty), value.trunc(ty))
            failed.set((~done).zext())
        self._written(host)
        return failed.get()

    # -- control flow ---------------------------------------------------------------------------------------------

    def branch(self, cond: Val) -> None:
        self._taken = cond

    def jal(self) -> None:
        """Seen by `_leave` from the instruction's flags."""

    def jalr(self, target: Val) -> None:
        self._target = target

    # -- floating point -------------------------------------------------------------------------------------------

    def freg(self, n: int) -> Val:
        return self.f.load("i64", self._register("f", f"rs{n}"))

    def set_freg(self, raw: Val) -> None:
        self.f.store(raw, self._register("f", "rd"))

    def raise_flags(self, bits: Val | int) -> None:
        st = self.h.st
        st.set("fflags", st.get("fflags") | self.f.value(bits, "i64"))

    # -- system ---------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        """The instruction does not complete: `fault` says why."""
        self.h.go("fault", self.h.pc, self.n)

    def _illegal(self) -> None:
        self.h.call("illegal", self.h.pc)
        self._fault()

    def _illegal_if(self, cond: Val) -> None:
        with self.f.if_(cond, likely=False):
            self._illegal()

    def csr(self, op: CsrOp, number: Val, operand: Val, writes: Val) -> Val:
        h, f, st = self.h, self.f, self.h.st
        old = h.call("csr_access", number, _CSR_OPS[op], operand, writes.zext(), self.n)
        self._illegal_if(st.get("fault").ne(0))
        effect = st.get("resync")
        with f.if_(effect.ne(0)):
            f.store(old, self._register("x", "rd"))
            st.set("resync", 0)
            with f.if_(effect.eq(IRQ_STATE)):
                h.go("interrupts", self.next_pc, self.n)
            h.go("resync", self.next_pc, self.n)
        return old

    def system(self, op: SystemOp) -> None:
        getattr(self, f"_{op}")()

    def _ecall(self) -> None:
        h, f, st = self.h, self.f, self.h.st
        prv = st.get("prv")
        with f.if_(prv.eq(PRV_S) & st.get("sbi_builtin").ne(0)):
            with f.if_(h.call("sbi_call").ne(0)):
                h.go("jump", self.next_pc, self.n)
            st.set("exit_reason", Exit.SBI)
            h.go("leave", self.next_pc, self.n)
        h.call("set_fault", prv + Cause.ECALL_U, 0)
        self._fault()

    def _ebreak(self) -> None:
        self.h.call("set_fault", Cause.BREAKPOINT, self.h.pc)
        self._fault()

    def _mret(self) -> None:
        self._illegal_if(self.h.st.get("prv").ne(PRV_M))
        self.h.go("interrupts", self.h.call("mret"), self.n)

    def _sret(self) -> None:
        st = self.h.st
        trapped = st.get("prv").eq(PRV_S) & (st.get("mstatus") & _TSR).ne(0)
        self._illegal_if(st.get("prv").eq(PRV_U) | trapped)
        self.h.go("interrupts", self.h.call("sret"), self.n)

    def _wfi(self) -> None:
        st = self.h.st
        trapped = st.get("prv").eq(PRV_S) & (st.get("mstatus") & _TW).ne(0)
        self._illegal_if(st.get("prv").eq(PRV_U) | trapped)
        self.h.go("sleep", self.next_pc, self.n)

    def _sfence_vma(self) -> None:
        h, f, st = self.h, self.f, self.h.st
        trapped = st.get("prv").eq(PRV_S) & (st.get("mstatus") & _TVM).ne(0)
        self._illegal_if(st.get("prv").eq(PRV_U) | trapped)
        with f.if_else(self.rs1_field.eq(0)) as e:
            h.call("flush_data")
            h.call("flush_fetch")
            e.otherwise()
            h.call("flush_page", self.rs1)
        h.go("enter", self.next_pc, self.n)

    def _fence(self) -> None:
        self.f.fence()

    def _fence_i(self) -> None:
        self.h.call("fence_i")
        self.h.go("enter", self.next_pc, self.n)

    def _cbo_allowed(self, mask: int) -> None:
        """menvcfg below M, and senvcfg too in U (CMO spec 1.0.1, "CSR controls")."""
        st = self.h.st
        prv = st.get("prv")
        by_m = (st.get("menvcfg") & mask).ne(0) | prv.eq(PRV_M)
        by_s = (st.get("senvcfg") & mask).ne(0) | prv.ne(PRV_U)
        self._illegal_if(~(by_m & by_s))

    def _cbo_manage(self, mask: int) -> None:
        """There is no cache to manage: only the faults are real, and they are a store's (CMO spec 1.0.1, 2.5)."""
        self._cbo_allowed(mask)
        h, f, st = self.h, self.f, self.h.st
        pa = h.call("translate", self.rs1, READ)
        with f.if_(st.get("fault").ne(0), likely=False):
            st.set("fault", st.get("fault") + (Cause.STORE_PAGE - Cause.LOAD_PAGE))
            self._fault()
        privilege = data_privilege(st, st.get("prv"), st.get("mstatus"))
        with f.if_(~h.call("pmp_allows", pa & -_BLOCK, _BLOCK, READ, privilege), likely=False):
            h.call("set_fault", Cause.STORE_ACCESS, self.rs1)
            self._fault()

    def _cbo_inval(self) -> None:
        self._cbo_manage(_CBIE)

    def _cbo_clean(self) -> None:
        self._cbo_manage(_CBCFE)

    def _cbo_flush(self) -> None:
        self._cbo_manage(_CBCFE)

    def _cbo_zero(self) -> None:
        self._cbo_allowed(_CBZE)
        h, f, st = self.h, self.f, self.h.st
        host = h.call("write_begin", self.rs1 & -_BLOCK, _BLOCK)
        with f.if_(host.eq(0), likely=False):
            cause = f.select(st.get("fault").eq(0), f.const(Cause.STORE_ACCESS), st.get("fault"))
            h.call("set_fault", cause, self.rs1)  # not the block's own address
            self._fault()
        for at in range(0, _BLOCK, 8):
            f.store(f.const(0), host.to_ptr(), at, order="monotonic")
        h.call("write_end", host)


class Slow(Interpreted):
    """The same record over the functions that translate, trap and exit."""

    def run_fp(self) -> None:
        """Floating point that is off, rounds in an unusual way, or is only a load that missed the TLB."""
        h, f, st = self.h, self.f, self.h.st
        self._illegal_if((st.get("mstatus") & FS).eq(0))
        if self.insn.flags & Flag.ROUNDS:
            field = self.rm_field
            mode = f.select(field.eq(7), st.get("frm"), field)
            self._illegal_if(mode.gtu(4))
            with f.if_(mode.eq(4)):  # ties away from zero: MXCSR has no such mode
                st.set("exit_reason", Exit.EMULATE)
                st.set("fault", FAULT_EXIT)
                self._fault()
            write_mxcsr(st, (read_mxcsr(st) & ~(3 << 13)) | rounding_control(mode))
        st.set("mstatus", st.get("mstatus") | FS)
        result = self.insn.semantics(self)
        if result is not None:
            f.store(result, self._register("x", "rd"))
        if self.insn.flags & Flag.ROUNDS:
            h.call("fp_refresh")
        self._leave()

    def _check(self) -> None:
        with self.f.if_(self.h.st.get("fault").ne(0), likely=False):
            self._fault()

    def load(self, addr: Val, size: int, signed: bool) -> Val:
        raw = self.h.call("slow_load", addr, size)
        self._check()
        narrow = raw.trunc(_ATOMIC_TYPE[size])
        return narrow.sext() if signed else narrow.zext()

    def store(self, addr: Val, size: int, value: Val) -> None:
        self.h.call("slow_store", addr, size, value)
        self._check()

    def _aligned(self, addr: Val, size: int, cause: Cause) -> None:
        with self.f.if_((addr & (size - 1)).ne(0), likely=False):
            self.h.call("set_fault", cause, addr)
            self._fault()

    def _host(self, addr: Val, size: int, tag_at: int) -> Val:
        """Of RAM that may be written: atomics do not reach devices."""
        self._aligned(addr, size, Cause.STORE_MISALIGNED)
        host = self.h.call("write_begin", addr, size)
        with self.f.if_(host.eq(0), likely=False):
            with self.f.if_(self.h.st.get("fault").eq(0)):
                self.h.call("set_fault", Cause.STORE_ACCESS, addr)
            self._fault()
        return host.to_ptr()

    def _written(self, host: Val) -> None:
        self.h.call("write_end", host.to_int())

    def lr(self, addr: Val, size: int) -> Val:
        self._aligned(addr, size, Cause.LOAD_MISALIGNED)
        value = self.load(addr, size, signed=True)
        self._reserve(addr, value)
        return value
