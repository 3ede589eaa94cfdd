"""Control and status registers: one row per behaviour, `(names, read, write)`, over the numbers of `vmm.isa.csr`.

Read-only views and WARL rules are code here; privilege and read-only checks follow from the number itself
(priv. spec 2.1). A row without `write` ignores what is written.
"""

from __future__ import annotations

from collections.abc import Callable

from vmm.codegen.ir import Function, Ref, Val
from vmm.isa.csr import NUMBERS
from vmm.vcpu.layout import MEI, MSI, MTI, PRV_M, PRV_S, PRV_U, SEI, SSI, STI
from vmm.vcpu.native.abi import Native
from vmm.vcpu.native.memory import ENVCFG_ADUE, ENVCFG_PBMTE, MXR
from vmm.vcpu.native.traps import STCE

Read = Callable[[Native, Ref, Val], Val]  # (native, hart, instructions left in the slice) -> value
Write = Callable[[Native, Ref, Val, Val], None]  # (native, hart, value, instructions left)

IRQ_STATE, TIMER_STATE = 1, 2  # what `resync` says must be looked at again

FS = 3 << 13
SD = 1 << 63
_SXL_UXL = (2 << 34) | (2 << 32)
_MSTATUS = 0x2 | 0x8 | 0x20 | 0x80 | 0x100 | 0x1800 | FS | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 22
_SSTATUS = 0x2 | 0x20 | 0x100 | FS | 1 << 18 | 1 << 19
_S_INTS = 1 << SSI | 1 << STI | 1 << SEI
_M_INTS = 1 << MSI | 1 << MTI | 1 << MEI
_CBO = 0xF0  # CBIE, CBCFE, CBZE
_SATP_MODES = (0, 8, 9)


def define(native: Native) -> None:
    _floating(native)
    _pmp_decode(native)
    rows = _rows()
    _switch(native, "csr_read", rows)
    _switch(native, "csr_write", rows)
    _access(native)


# -- floating point -----------------------------------------------------------------------------------------------
# The host's MXCSR holds the guest's accrued flags and rounding mode while guest code runs.

_MXCSR_DEFAULT = 0x1F80  # all exceptions masked
#: RISC-V rounding modes 0..3 (RNE, RTZ, RDN, RUP) as MXCSR.RC, two bits each; RMM (4) runs as RNE or not at all.
_RC = 0b10_01_11_00
#: (MXCSR flag bit, fcsr flag bit): IE DE ZE OE UE PE against NX UF OF DZ NV
_FLAGS = ((0, 4), (2, 3), (3, 2), (4, 1), (5, 0))


def read_mxcsr(st: Ref) -> Val:
    st.f.asm("stmxcsr ($0)", "r,~{memory}", "void", st.addr("mxcsr"))
    return st.get("mxcsr")


def write_mxcsr(st: Ref, value: Val) -> None:
    st.set("mxcsr", value)
    st.f.asm("ldmxcsr ($0)", "r,~{memory}", "void", st.addr("mxcsr"))


def rounding_control(frm: Val) -> Val:
    """MXCSR.RC in place, for a rounding mode (i64, 0..4)."""
    f = frm.f
    return (((f.const(_RC) >> (frm << 1)) & 3) << 13).trunc("i32")


def _floating(native: Native) -> None:
    # fflags as the guest sees them
    f, st, _ = native.plain("fp_flags")
    host = read_mxcsr(st).zext()
    out = st.get("fflags")
    for at, to in _FLAGS:
        out = out | (((host >> at) & 1) << to)
    f.ret(out)

    # frm or FS changed: MXCSR's rounding mode, and whether the fast handlers may run
    f, st, _ = native.plain("fp_refresh")
    frm = st.get("frm")
    plain = frm.ltu(4)
    rc = f.select(plain, rounding_control(frm & 3), f.const(0, "i32"))
    write_mxcsr(st, (read_mxcsr(st) & ~(3 << 13)) | rc)
    on = (st.get("mstatus") & FS).ne(0)
    st.set("fp_fast", (plain & on).zext("i32"))
    f.ret()


def _set_fflags(native: Native, st: Ref, value: Val) -> None:
    st.set("fflags", value & 31)
    write_mxcsr(st, read_mxcsr(st) & ~0x3F)


def _dirty_fs(st: Ref) -> None:
    st.set("mstatus", st.get("mstatus") | FS)


def _write_fflags(native: Native, st: Ref, value: Val, n: Val) -> None:
    _set_fflags(native, st, value)
    _dirty_fs(st)


def _write_frm(native: Native, st: Ref, value: Val, n: Val) -> None:
    st.set("frm", value & 7)
    _dirty_fs(st)
    native.call(st, "fp_refresh")


def _write_fcsr(native: Native, st: Ref, value: Val, n: Val) -> None:
    _set_fflags(native, st, value)
    _write_frm(native, st, value >> 5, n)


# -- status, interrupts -------------------------------------------------------------------------------------------


def _status(st: Ref, mask: int) -> Val:
    value = st.get("mstatus")
    dirty = st.f.select((value & FS).eq(FS), st.f.const(SD), st.f.const(0))
    return ((value & mask) | dirty) | (_SXL_UXL if mask == _MSTATUS else _SXL_UXL & (3 << 32))


def _write_status(mask: int) -> Write:
    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        f = st.f
        old = st.get("mstatus")
        new = (old & ~mask) | (value & mask)
        if mask & 0x1800:  # MPP holds U, S or M: 2 is not a privilege (WARL)
            new = f.select(((new >> 11) & 3).eq(2), (new & ~0x1800) | (old & 0x1800), new)
        st.set("mstatus", new)
        with f.if_(((old ^ new) & MXR).ne(0)):
            native.call(st, "flush_data")
        native.call(st, "set_mode")
        with f.if_(((old ^ new) & FS).ne(0)):
            native.call(st, "fp_refresh")
        st.set("resync", IRQ_STATE)

    return write


def _field(name: str, index: int = 0) -> Read:
    return lambda native, st, n: st.get(name, index)


def _store(name: str, mask: int = -1, effect: int = 0) -> Write:
    """Writes the bits of `mask`."""

    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        st.set(name, value if mask == -1 else (st.get(name) & ~mask) | (value & mask))
        if effect:
            st.set("resync", effect)

    return write


def _masked(name: str, by: str) -> Read:
    return lambda native, st, n: st.get(name) & st.get(by)


def _write_delegated(name: str) -> Write:
    """sie: the bits that machine mode has delegated."""

    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        mask = st.get("mideleg")
        st.set(name, (st.get(name) & ~mask) | (value & mask))
        st.set("resync", IRQ_STATE)

    return write


def _mip(st: Ref) -> Val:
    return st.get("mip_hw", order="monotonic") | st.get("mip_sw")


def _write_mip(supervisor: bool) -> Write:
    """SSIP is shared with other harts' IPIs, so it lives among the wires; STIP and SEIP are machine mode's to force."""

    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        f = st.f
        allowed = st.get("mideleg") if supervisor else f.const(-1)
        ssip = f.const(1 << SSI) & allowed
        with f.if_else((value & ssip).ne(0)) as e:
            f.rmw("or", st.addr("mip_hw"), ssip)
            e.otherwise()
            f.rmw("and", st.addr("mip_hw"), ~ssip)
        if not supervisor:
            sstc = f.select((st.get("menvcfg") & STCE).ne(0), f.const(1 << SEI), f.const(1 << SEI | 1 << STI))
            st.set("mip_sw", value & sstc)
        st.set("resync", IRQ_STATE)

    return write


# -- counters -----------------------------------------------------------------------------------------------------


def _steps(st: Ref, n: Val) -> Val:
    return st.get("retired") + st.get("slice") - n - 1  # the reading instruction itself has not retired


def _instret(native: Native, st: Ref, n: Val) -> Val:
    return _steps(st, n) - st.get("untaken") + st.get("instret_base")


def _cycle(native: Native, st: Ref, n: Val) -> Val:
    """One cycle an instruction: the count is exact and the same on every host."""
    return _steps(st, n) + st.get("cycle_base")


def _time(native: Native, st: Ref, n: Val) -> Val:
    return native.call(st, "time")


def _zero(native: Native, st: Ref, n: Val) -> Val:
    return st.f.const(0)


def _constant(value: int) -> Read:
    return lambda native, st, n: st.f.const(value)


# -- translation and protection -----------------------------------------------------------------------------------


def _write_satp(native: Native, st: Ref, value: Val, n: Val) -> None:
    """A mode that is not supported leaves the register as it was (priv. spec 4.1.11)."""
    f = st.f
    mode = value >> 60
    known = mode.eq(_SATP_MODES[0]) | mode.eq(_SATP_MODES[1]) | mode.eq(_SATP_MODES[2])
    with f.if_(known):
        st.set("satp", value)
        native.call(st, "flush_data")
        native.call(st, "flush_fetch")
        st.set("resync", IRQ_STATE)  # the next instruction is fetched through the new tables: kernels rely on its fault


def _write_menvcfg(native: Native, st: Ref, value: Val, n: Val) -> None:
    mask = 1 | _CBO | ENVCFG_ADUE | ENVCFG_PBMTE | STCE
    st.set("menvcfg", value & mask)
    native.call(st, "flush_data")
    native.call(st, "flush_fetch")
    st.set("resync", TIMER_STATE)


def _pmp_decode(native: Native) -> None:
    """Bounds of every PMP entry from its registers (priv. spec 3.7.1)."""
    f, st, _ = native.plain("pmp_decode")
    with f.for_range(16) as i:
        cfg = f.load("i8", st.addr("pmpcfg").offset(i)).zext()
        address = st.get("pmpaddr", i)
        kind = (cfg >> 3) & 3
        below = f.select(i.eq(0), f.const(0), st.get("pmpaddr", f.select(i.eq(0), i, i - 1)))
        # NAPOT: the trailing ones of the address say the size
        low = address ^ (address + 1)
        napot_lo, napot_hi = (address & ~low) << 2, ((address | low) << 2) | 3
        lo, hi = f.var("i64", 1), f.var("i64", 0)
        with f.if_(kind.eq(1) & address.gtu(below)):
            lo.set(below << 2)
            hi.set((address << 2) - 1)
        with f.if_(kind.eq(2)):
            lo.set(address << 2)
            hi.set((address << 2) | 3)
        with f.if_(kind.eq(3)):
            lo.set(napot_lo)
            hi.set(napot_hi)
        st.set("pmp_lo", lo.get(), i)
        st.set("pmp_hi", hi.get(), i)
    native.call(st, "flush_data")
    native.call(st, "flush_fetch")
    st.set("resync", IRQ_STATE)  # the next instruction may not be fetched any more
    f.ret()


def _pmpcfg_write(index: int) -> Write:
    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        f = st.f
        old = st.get("pmpcfg", index)
        new = f.const(0)
        for i in range(8):
            byte, was = (value >> (8 * i)) & 0x9F, (old >> (8 * i)) & 0xFF
            reserved = (byte & 3).eq(2)  # W without R
            kept = f.select((was & 0x80).ne(0), was, f.select(reserved, byte & ~2, byte))
            new = new | (kept << (8 * i))
        st.set("pmpcfg", new, index)
        native.call(st, "pmp_decode")

    return write


def _pmpaddr_write(index: int) -> Write:
    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        f = st.f
        locked = (f.load("i8", st.addr("pmpcfg").offset(index)) & 0x80).ne(0)
        if index < 15:  # a locked TOR entry above locks this address too
            above = f.load("i8", st.addr("pmpcfg").offset(index + 1))
            locked = locked | (above & 0x98).eq(0x88)
        with f.if_(~locked):
            st.set("pmpaddr", value & ((1 << 54) - 1), index)
            native.call(st, "pmp_decode")

    return write


def _base(current: Read, name: str) -> Write:
    def write(native: Native, st: Ref, value: Val, n: Val) -> None:
        st.set(name, st.get(name) + value - current(native, st, n) - 1)  # the write replaces this instruction's count

    return write


def _rows() -> list[tuple[list[str], Read, Write | None]]:
    rows: list[tuple[list[str], Read, Write | None]] = [
        (["fflags"], lambda native, st, n: native.call(st, "fp_flags"), _write_fflags),
        (["frm"], _field("frm"), _write_frm),
        (["fcsr"], lambda native, st, n: native.call(st, "fp_flags") | (st.get("frm") << 5), _write_fcsr),
        (["cycle"], _cycle, None),
        (["mcycle"], _cycle, _base(_cycle, "cycle_base")),
        (["instret"], _instret, None),
        (["minstret"], _instret, _base(_instret, "instret_base")),
        (["time"], _time, None),
        (["sstatus"], lambda native, st, n: _status(st, _SSTATUS), _write_status(_SSTATUS)),
        (["sie"], _masked("mie", "mideleg"), _write_delegated("mie")),
        (["stvec"], _field("stvec"), _store("stvec", ~2)),
        (["scounteren"], _field("scounteren"), _store("scounteren", 0xFFFF_FFFF)),
        (["senvcfg"], _field("senvcfg"), _store("senvcfg", 1 | _CBO)),
        (["sscratch"], _field("sscratch"), _store("sscratch")),
        (["sepc"], _field("sepc"), _store("sepc", ~1)),
        (["scause"], _field("scause"), _store("scause")),
        (["stval"], _field("stval"), _store("stval")),
        (["sip"], lambda native, st, n: _mip(st) & st.get("mideleg"), _write_mip(supervisor=True)),
        (["stimecmp"], _field("stimecmp"), _store("stimecmp", effect=TIMER_STATE)),
        (["satp"], _field("satp"), _write_satp),
        (["mvendorid", "marchid", "mimpid", "mconfigptr"], _zero, None),
        (["mhartid"], _field("mhartid"), None),
        (["mstatus"], lambda native, st, n: _status(st, _MSTATUS), _write_status(_MSTATUS)),
        (["misa"], _field("misa"), None),
        (["medeleg"], _field("medeleg"), _store("medeleg", 0xB3FF)),
        (["mideleg"], _field("mideleg"), _store("mideleg", _S_INTS, IRQ_STATE)),
        (["mie"], _field("mie"), _store("mie", _S_INTS | _M_INTS, IRQ_STATE)),
        (["mtvec"], _field("mtvec"), _store("mtvec", ~2)),
        (["mcounteren"], _field("mcounteren"), _store("mcounteren", 0xFFFF_FFFF)),
        (["mcountinhibit"], _zero, None),
        (["menvcfg"], _field("menvcfg"), _write_menvcfg),
        (["mscratch"], _field("mscratch"), _store("mscratch")),
        (["mepc"], _field("mepc"), _store("mepc", ~1)),
        (["mcause"], _field("mcause"), _store("mcause")),
        (["mtval"], _field("mtval"), _store("mtval")),
        (["mip"], lambda native, st, n: _mip(st), _write_mip(supervisor=False)),
        ([f"hpmcounter{i}" for i in range(3, 32)], _zero, None),
        ([f"mhpmcounter{i}" for i in range(3, 32)], _zero, None),
        ([f"mhpmevent{i}" for i in range(3, 32)], _zero, None),
    ]
    rows += [([f"pmpcfg{2 * k}"], _field("pmpcfg", k), _pmpcfg_write(k)) for k in range(2)]
    rows += [([f"pmpaddr{k}"], _field("pmpaddr", k), _pmpaddr_write(k)) for k in range(16)]
    return rows


def _switch(native: Native, name: str, rows: list[tuple[list[str], Read, Write | None]]) -> None:
    """csr_read: (st, number, n) -> value; csr_write: (st, number, value). An unknown number sets `fault`."""
    f, st, args = native.plain(name)
    unknown = f.label("unknown")
    labels = [f.label("csr") for _ in rows]
    f.switch(
        args[0],
        [([NUMBERS[n] for n in names], label) for (names, _, _), label in zip(rows, labels, strict=True)],
        unknown,
    )
    for (_, read, write), label in zip(rows, labels, strict=True):
        f.at(label)
        if name == "csr_read":
            f.ret(read(native, st, args[1]))
        else:
            if write is not None:
                write(native, st, args[1], args[2])
            f.ret()
    f.at(unknown)
    st.set("fault", 1)
    f.ret(0) if name == "csr_read" else f.ret()


def _allowed(f: Function, st: Ref, number: Val, writes: Val) -> Val:
    """Privilege, read-only ranges, and the enables that some registers have on top (priv. spec 2.1, 3.1.11, 3.1.12)."""
    prv = st.get("prv")
    ok = prv.geu((number >> 8) & 3) & ~(writes & (number >> 10).eq(3))
    # floating point off
    is_fp = number.geu(NUMBERS["fflags"]) & number.leu(NUMBERS["fcsr"])
    ok = ok & ~(is_fp & (st.get("mstatus") & FS).eq(0))
    # user counters
    is_counter = (number & ~31).eq(NUMBERS["cycle"])
    bit = number & 31
    by_m = ((st.get("mcounteren") >> bit) & 1).ne(0) | prv.eq(PRV_M)
    by_s = ((st.get("scounteren") >> bit) & 1).ne(0) | prv.ne(PRV_U)
    ok = ok & (~is_counter | (by_m & by_s))
    # satp under TVM; stimecmp under STCE and mcounteren.TM
    tvm = (st.get("mstatus") & (1 << 20)).ne(0) & prv.eq(PRV_S)
    ok = ok & ~(number.eq(NUMBERS["satp"]) & tvm)
    sstc = (st.get("menvcfg") & STCE).ne(0) & (st.get("mcounteren") & 2).ne(0)
    return ok & ~(number.eq(NUMBERS["stimecmp"]) & prv.ne(PRV_M) & ~sstc)


def _access(native: Native) -> None:
    """(st, number, operation: 0 write, 1 set, 2 clear; operand; writes?, n) -> old value. `fault` is 0 or not."""
    f, st, (number, op, operand, writes, n) = native.plain("csr_access")
    st.set("fault", 0)
    with f.if_(~_allowed(f, st, number, writes.ne(0))):
        st.set("fault", 1)
        f.ret(0)
    old = native.call(st, "csr_read", number, n)
    with f.if_(st.get("fault").ne(0) | writes.eq(0)):
        f.ret(old)
    # A set or clear of mip must not write back what the PLIC drives (priv. spec 3.1.9)
    current = f.select(number.eq(NUMBERS["mip"]), st.get("mip_sw") | (st.get("mip_hw") & (1 << SSI)), old)
    new = f.select(op.eq(0), operand, f.select(op.eq(1), current | operand, current & ~operand))
    native.call(st, "csr_write", number, new, n)
    f.ret(old)
