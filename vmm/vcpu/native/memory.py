"""Guest memory as a hart sees it: translation, the TLBs' slow paths, page flags, and pre-decoded pages.

The fast path stands in `handlers.py`: one tag compare, one add. All that can go wrong with an access comes here.

Who may write where: a page of RAM whose flags are clear may sit in any hart's TLB with its write tag set. To watch a
page (for the dirty log, or because it holds code), set its flag and take the write tags away (`revoke_writes`); every
later store comes through `write_begin`/`write_end`. A store that had already passed its tag compare is not seen: for
code that is settled at `fence.i` (`young pages`, below), for the dirty log by stopping at a safepoint.

Order of a store against the decoder, both sequentially consistent: the writer stores, then looks at the flags; the
decoder sets the flag, then reads the bytes. So one of them always sees the other.
"""

from __future__ import annotations

from vmm.codegen.ir import Function, Ref, Val
from vmm.vcpu.layout import (
    EXEC,
    FAULT_EXIT,
    HART,
    HEAT,
    MODE_BARE,
    MODE_S,
    MODE_S_SUM,
    MODE_U,
    NO_TAG,
    PAGE,
    PAGE_CLEAN,
    PAGE_CODE,
    PAGE_DIRTY,
    PAGE_END,
    PRV_M,
    PRV_S,
    READ,
    RECORD,
    RECORDS_END,
    RECORDS_HEADER,
    RECORDS_SIZE,
    RETIRED,
    TLB_ENTRIES,
    TLB_ENTRY,
    TLB_MODES,
    UNDECODED,
    WRITE,
    XMODE_BARE,
    XMODE_S,
    XMODE_U,
    XTLB_ENTRIES,
    XTLB_ENTRY,
    XTLB_MODES,
    YOUNG_PAGES,
    Cause,
    Exit,
    Mmio,
)
from vmm.vcpu.native.abi import Native, shared_of

PAGE_MASK = -PAGE
RTAG, WTAG, ADDEND = 0, 8, 16

# mstatus
SUM, MXR, MPRV, MPP_SHIFT = 1 << 18, 1 << 19, 1 << 17, 11
# page table entries (priv. spec 4.4.1; Svpbmt and Svnapot: 4.5, 5)
V, R, W, X, U, A, D = (1 << i for i in range(8) if i != 5)
PBMT_SHIFT = 61
ENVCFG_ADUE, ENVCFG_PBMTE = 1 << 61, 1 << 62


def tlb_index(va: Val) -> Val:
    """Byte offset of the entry for `va` in a data TLB."""
    return (va >> (12 - 5)) & ((TLB_ENTRIES - 1) * TLB_ENTRY)


def xtlb_index(va: Val) -> Val:
    return (va >> (12 - 4)) & ((XTLB_ENTRIES - 1) * XTLB_ENTRY)


def define(native: Native) -> None:
    _flushes(native)
    _set_mode(native)
    _pmp_allows(native)
    _translate(native)
    _slow_load(native)
    _writes(native)
    _code_pages(native)


def _fill(f: Function, base: Val, entries: int, stride: int, tags: int) -> None:
    """Invalidate the first `tags` words of each of `entries` entries."""
    none = f.const(NO_TAG)
    with f.for_range(entries) as i:
        at = base.offset(i * stride)
        for k in range(tags):
            f.store(none, at, 8 * k, order="monotonic")


def _flushes(native: Native) -> None:
    f, st, _ = native.plain("flush_data")
    _fill(f, st.addr("dtlb"), TLB_ENTRIES * TLB_MODES, TLB_ENTRY, 2)
    st.set("big_lo", -1)
    st.set("big_hi", 0)
    f.ret()

    f, st, _ = native.plain("flush_fetch")
    _fill(f, st.addr("xtlb"), XTLB_ENTRIES * XTLB_MODES, XTLB_ENTRY, 1)
    f.ret()

    # One virtual page. A superpage is cached as many small entries: any of its addresses stands for all of them.
    f, st, (va,) = native.plain("flush_page")
    with f.if_(va.geu(st.get("big_lo")) & va.leu(st.get("big_hi"))):
        native.call(st, "flush_data")
        native.call(st, "flush_fetch")
        f.ret()
    none = f.const(NO_TAG)
    for mode in range(TLB_MODES - 1):
        entry = st.addr("dtlb", mode * TLB_ENTRIES * TLB_ENTRY // 8).offset(tlb_index(va))
        f.store(none, entry, RTAG, order="monotonic")
        f.store(none, entry, WTAG, order="monotonic")
    for mode in range(XTLB_MODES - 1):
        f.store(none, st.addr("xtlb", mode * XTLB_ENTRIES * XTLB_ENTRY // 8).offset(xtlb_index(va)))
    f.ret()


def _set_mode(native: Native) -> None:
    """Point `dtlb_now` and `xtlb_now` at the arrays of the current privilege (and MPRV, SUM)."""
    f, st, _ = native.plain("set_mode")
    prv, status = st.get("prv"), st.get("mstatus")
    xmode = f.select(prv.eq(PRV_M), f.const(XMODE_BARE), f.select(prv.eq(PRV_S), f.const(XMODE_S), f.const(XMODE_U)))
    st.set("xtlb_now", st.addr("xtlb", xmode * (XTLB_ENTRIES * XTLB_ENTRY // 8)))
    eff = data_privilege(st, prv, status)
    sup = f.select((status & SUM).ne(0), f.const(MODE_S_SUM), f.const(MODE_S))
    mode = f.select(eff.eq(PRV_M), f.const(MODE_BARE), f.select(eff.eq(PRV_S), sup, f.const(MODE_U)))
    st.set("dtlb_now", st.addr("dtlb", mode * (TLB_ENTRIES * TLB_ENTRY // 8)))
    f.ret()


def data_privilege(st: Ref, prv: Val, status: Val) -> Val:
    """Privilege of loads and stores: MPRV makes machine mode borrow MPP's (priv. spec 3.1.6.3)."""
    f = st.f
    borrowed = prv.eq(PRV_M) & (status & MPRV).ne(0)
    return f.select(borrowed, (status >> MPP_SHIFT) & 3, prv)


def _pmp_allows(native: Native) -> None:
    """Physical memory protection (priv. spec 3.7): the lowest entry that touches the range decides."""
    f, st, (pa, size, access, prv) = native.plain("pmp_allows")
    with f.if_(st.get("pmp_on").eq(0)):
        f.ret(1)
    last = pa + size - 1
    with f.for_range(16) as i:
        lo, hi = st.get("pmp_lo", i), st.get("pmp_hi", i)
        with f.if_(lo.leu(hi) & lo.leu(last) & pa.leu(hi)):
            with f.if_((pa.ltu(lo)) | last.gtu(hi)):
                f.ret(0)  # partly covered
            cfg = f.load("i8", st.addr("pmpcfg").offset(i)).zext()
            with f.if_(prv.eq(PRV_M) & (cfg & 0x80).eq(0)):
                f.ret(1)
            f.ret((cfg >> access).bit(0))
    f.ret(prv.eq(PRV_M))


def _translate(native: Native) -> None:
    """Virtual to physical: (st, va, access) -> pa, or `fault` is set and the result means nothing.

    Walks Sv39 and Sv48 (priv. spec 4.3.2, 4.4, 4.5). Updates A and D in the entry when menvcfg.ADUE says so (Svadu),
    faults otherwise. Sets `fault` and `fault_addr`; clears `fault` when all is well.
    """
    f, st, (va, access) = native.plain("translate")
    st.set("fault", 0)
    prv, status = st.get("prv"), st.get("mstatus")
    is_exec, is_write = access.eq(EXEC), access.eq(WRITE)
    eff = f.select(is_exec, prv, data_privilege(st, prv, status))
    satp = st.get("satp")
    scheme = satp >> 60
    access_cause = f.select(
        is_exec,
        f.const(Cause.FETCH_ACCESS),
        f.select(is_write, f.const(Cause.STORE_ACCESS), f.const(Cause.LOAD_ACCESS)),
    )
    page_cause = f.select(
        is_exec, f.const(Cause.FETCH_PAGE), f.select(is_write, f.const(Cause.STORE_PAGE), f.const(Cause.LOAD_PAGE))
    )

    def fail(cause: Val) -> None:
        native.call(st, "set_fault", cause, va)
        f.ret(0)

    with f.if_(eff.eq(PRV_M) | scheme.eq(0)):
        f.ret(va)
    levels = f.select(scheme.eq(9), f.const(4), f.const(3))
    unused = 64 - 12 - levels * 9
    with f.if_(((va << unused).sar(unused)).ne(va)):
        fail(page_cause)
    shared = shared_of(st)
    ram_base, ram_size, ram_host = shared.get("ram_base"), shared.get("ram_size"), shared.get("ram_host")
    # R=1 -> bit 1, W -> bit 2, X -> bit 3: the bit that this access needs; MXR lets loads use X
    want = f.select(is_exec, f.const(X), f.select(is_write, f.const(W), f.const(R)))
    readable_x = f.select(access.eq(READ) & (status & MXR).ne(0), f.const(X), f.const(0))
    want = want | readable_x
    table = f.var("i64", (satp & ((1 << 44) - 1)) << 12)
    level = f.var("i64", levels - 1)
    with f.loop():
        shift = level.get() * 9 + 12
        pte_pa = table.get() + (((va >> shift) & 511) << 3)
        offset = pte_pa - ram_base
        with f.if_(offset.geu(ram_size)):
            fail(access_cause)
        with f.if_(native.call(st, "pmp_allows", pte_pa, 8, READ, PRV_S) ^ 1):
            fail(access_cause)
        host = (ram_host + offset).to_ptr()
        pte = f.load("i64", host, order="monotonic")
        pbmt = pte >> PBMT_SHIFT
        with f.if_((pte & V).eq(0) | (pte & (R | W)).eq(W) | (pte & (0x7F << 54)).ne(0)):
            fail(page_cause)
        with f.if_(pbmt.ne(0)):  # bit 63 (Svnapot) is not implemented; PBMT only when enabled, and 3 is reserved
            with f.if_(pbmt.geu(3) | (st.get("menvcfg") & ENVCFG_PBMTE).eq(0)):
                fail(page_cause)
        ppn = (pte >> 10) & ((1 << 44) - 1)
        with f.if_((pte & (R | X)).eq(0)):  # a pointer to the next table
            with f.if_((pte & (D | A | U)).ne(0) | pbmt.ne(0) | level.get().eq(0)):
                fail(page_cause)
            table.set(ppn << 12)
            level.set(level.get() - 1)
            f.continue_()
        user = (pte & U).ne(0)
        bad_user = f.select(eff.eq(PRV_S), user & (is_exec | (status & SUM).eq(0)), user ^ 1)
        with f.if_(bad_user | (pte & want).eq(0)):
            fail(page_cause)
        low = (f.const(1) << (shift - 12)) - 1
        with f.if_((ppn & low).ne(0)):  # misaligned superpage
            fail(page_cause)
        marks = f.select(is_write, f.const(A | D), f.const(A))
        with f.if_((pte & marks).ne(marks)):
            with f.if_((st.get("menvcfg") & ENVCFG_ADUE).eq(0)):
                fail(page_cause)
            with f.if_(native.call(st, "pmp_allows", pte_pa, 8, WRITE, PRV_S) ^ 1):
                fail(access_cause)
            _, done = f.cmpxchg(host, pte, pte | marks)
            with f.if_(done ^ 1):
                f.continue_()  # somebody changed the entry: look at it again
            native.call(st, "page_written", offset, 8)
        with f.if_(level.get().ne(0)):
            first = va & ~((low << 12) | (PAGE - 1))
            end = va | (low << 12) | (PAGE - 1)
            st.set("big_lo", f.min_u(st.get("big_lo"), first))
            st.set("big_hi", f.max_u(st.get("big_hi"), end))
        f.ret(((ppn | ((va >> 12) & low)) << 12) | (va & (PAGE - 1)))
    f.unreachable()


def _entry(st: Ref, va: Val) -> Val:
    return st.get("dtlb_now").offset(tlb_index(va))


def _page_open(native: Native, st: Ref, pa: Val, access: int) -> Val:
    """May this page be cached in the TLB: does PMP say the same of all its bytes?"""
    eff = data_privilege(st, st.get("prv"), st.get("mstatus"))
    return native.call(st, "pmp_allows", pa & PAGE_MASK, PAGE, access, eff)


def _load_by_size(f: Function, host: Val, size: Val, shift: int = 0) -> None:
    """Return the `size` bytes at `host`, zero-extended; aligned ones in one access."""
    for n, ty in ((1, "i8"), (2, "i16"), (4, "i32"), (8, "i64")):
        with f.if_(size.eq(n)):
            with f.if_((host & (n - 1)).eq(0)):
                f.ret(f.load(ty, host.to_ptr(), order="monotonic").zext())
            f.ret(f.load(ty, host.to_ptr(), align=1).zext())
    f.ret(0)


def _store_by_size(f: Function, host: Val, size: Val, value: Val) -> None:
    for n, ty in ((1, "i8"), (2, "i16"), (4, "i32"), (8, "i64")):
        with f.if_(size.eq(n)), f.if_else((host & (n - 1)).eq(0)) as e:
            f.store(value.trunc(ty), host.to_ptr(), order="monotonic")
            e.otherwise()
            f.store(value.trunc(ty), host.to_ptr(), align=1)


def _parts(va: Val, size: Val) -> tuple[Val, Val]:
    """Where the two parts of an access across a page boundary begin: what a fault of either reports."""
    return va, (va + size - 1) & PAGE_MASK


def _slow_load(native: Native) -> None:
    """(st, va, size) -> bytes, zero-extended; `fault` tells."""
    f, st, (va, size) = native.plain("slow_load")
    shared = shared_of(st)
    with f.if_(((va & (PAGE - 1)) + size).gtu(PAGE)):  # across a page boundary: byte by byte, of RAM alone
        for part in _parts(va, size):
            pa = native.call(st, "translate", part, READ)
            with f.if_(st.get("fault").ne(0)):
                f.ret(0)
            with f.if_((pa - shared.get("ram_base")).geu(shared.get("ram_size"))):
                native.call(st, "set_fault", Cause.LOAD_ACCESS, part)
                f.ret(0)
        out = f.var("i64", 0)
        with f.for_range(size) as i:
            byte = native.call(st, "slow_load", va + i, 1)
            with f.if_(st.get("fault").ne(0)):
                f.ret(0)
            out.set(out.get() | (byte << (i << 3)))
        f.ret(out.get())
    pa = native.call(st, "translate", va, READ)
    with f.if_(st.get("fault").ne(0)):
        f.ret(0)
    eff = data_privilege(st, st.get("prv"), st.get("mstatus"))
    with f.if_(native.call(st, "pmp_allows", pa, size, READ, eff) ^ 1):
        native.call(st, "set_fault", Cause.LOAD_ACCESS, va)
        f.ret(0)
    offset = pa - shared.get("ram_base")
    with f.if_(offset.geu(shared.get("ram_size"))):
        f.ret(native.call(st, "mmio_load", va, pa, size))
    host = shared.get("ram_host") + offset
    with f.if_(_page_open(native, st, pa, READ)):
        entry, page = _entry(st, va), va & PAGE_MASK
        with f.if_(f.load("i64", entry, WTAG, order="monotonic").ne(page)):
            f.store(f.const(NO_TAG), entry, WTAG, order="monotonic")
        f.store(host - va, entry, ADDEND)
        f.store(page, entry, RTAG, order="monotonic")
    _load_by_size(f, host, size)


def _writes(native: Native) -> None:
    # (st, va, size) -> host address to write `size` bytes at, within one page of RAM; then call write_end(host).
    # Result 0: `fault` is set, or the address is not RAM (fault 0, `fault_addr` holds the physical address).
    f, st, (va, size) = native.plain("write_begin")
    pa = native.call(st, "translate", va, WRITE)
    with f.if_(st.get("fault").ne(0)):
        f.ret(0)
    eff = data_privilege(st, st.get("prv"), st.get("mstatus"))
    with f.if_(native.call(st, "pmp_allows", pa, size, WRITE, eff) ^ 1):
        native.call(st, "set_fault", Cause.STORE_ACCESS, va)
        f.ret(0)
    shared = shared_of(st)
    offset = pa - shared.get("ram_base")
    with f.if_(offset.geu(shared.get("ram_size"))):
        st.set("fault_addr", pa)
        f.ret(0)
    host = shared.get("ram_host") + offset
    flags = f.load("i8", shared.get("page_flags").offset(offset >> 12), order="seq_cst")
    with f.if_(flags.eq(0) | flags.eq(PAGE_DIRTY)):
        with f.if_(_page_open(native, st, pa, WRITE)):
            entry, page = _entry(st, va), va & PAGE_MASK
            with f.if_(f.load("i64", entry, RTAG, order="monotonic").ne(page)):
                f.store(f.const(NO_TAG), entry, RTAG, order="monotonic")
            f.store(host - va, entry, ADDEND)
            f.store(page, entry, WTAG, order="seq_cst")
            # Somebody may have begun to watch the page just now, before this tag could be taken away.
            again = f.load("i8", shared.get("page_flags").offset(offset >> 12), order="seq_cst")
            with f.if_((again & (PAGE_CODE | PAGE_CLEAN)).ne(0)):
                f.store(f.const(NO_TAG), entry, WTAG, order="monotonic")
    f.ret(host)

    f, st, (host,) = native.plain("write_end")
    native.call(st, "page_written", host - shared_of(st).get("ram_host"), 8)
    f.ret()

    # (st, offset in RAM, length): some bytes were written; within one page, or reaching into the next by a few bytes.
    f, st, (offset, length) = native.plain("page_written")
    shared = shared_of(st)
    f.fence()
    at = shared.get("page_flags").offset(offset >> 12)
    flags = f.load("i8", at, order="monotonic")
    with f.if_((flags & (PAGE_CLEAN | PAGE_CODE)).eq(0)):
        f.ret()
    with f.if_((flags & PAGE_CLEAN).ne(0)):
        f.rmw("or", at, f.const(PAGE_DIRTY, "i8"))
        f.rmw("and", at, f.const(~PAGE_CLEAN, "i8"))
    with f.if_((flags & PAGE_CODE).ne(0)):
        mask = f.load("i64", shared.get("code_masks").offset((offset >> 12) << 3), order="monotonic")
        first = (offset >> 6) & 63
        last = f.min_u(((offset & (PAGE - 1)) + length - 1) >> 6, f.const(63))
        touched = (f.const(-1) << first) & (f.const(-1) >> (63 - last))
        with f.if_((mask & touched).ne(0)):
            native.call(st, "retire_page", offset >> 12)
    f.ret()

    f, st, (va, size, value) = native.plain("slow_store")
    with f.if_(((va & (PAGE - 1)) + size).gtu(PAGE)):
        # All of it must be writable before any of it is written.
        for part in _parts(va, size):
            with f.if_(native.call(st, "write_begin", part, 1).eq(0)):
                with f.if_(st.get("fault").eq(0)):
                    native.call(st, "set_fault", Cause.STORE_ACCESS, part)
                f.ret()
        with f.for_range(size) as i:
            native.call(st, "slow_store", va + i, 1, value >> (i << 3))
        f.ret()
    host = native.call(st, "write_begin", va, size)
    with f.if_(st.get("fault").ne(0)):
        f.ret()
    with f.if_(host.eq(0)):
        native.call(st, "mmio_store", va, st.get("fault_addr"), size, value)
        f.ret()
    _store_by_size(f, host, size, value)
    native.call(st, "write_end", host)
    f.ret()


def _code_pages(native: Native) -> None:
    """Pages of pre-decoded records: found, made, and retired."""
    # (st, page index in RAM) -> records, or null when the arena is full
    f, st, (page,) = native.plain("code_page")
    shared = shared_of(st)
    slot = shared.get("code_pages").offset(page << 3)
    known = f.load("i64", slot, order="acquire")
    with f.if_(known.ne(0)):
        f.ret(known.to_ptr())
    fresh = f.rmw("add", shared.addr("arena_next"), f.const(RECORDS_SIZE), "monotonic")
    with f.if_((fresh + RECORDS_SIZE).gtu(shared.get("arena_end"))):
        f.ret(f.value(0, "ptr"))
    header = fresh.to_ptr()
    f.store(shared.get("ram_host") + (page << 12), header, 0)
    f.store(page, header, 8)
    f.store(f.const(0), header, HEAT)
    records = header.offset(RECORDS_HEADER)
    undecoded = f.load("i32", shared.get("handlers"), 4 * UNDECODED).zext()
    page_end = f.load("i32", shared.get("handlers"), 4 * PAGE_END).zext()
    with f.for_range(PAGE // 2) as i:
        f.store(undecoded, records.offset(i * RECORD))
    for behind in (PAGE // 2, PAGE // 2 + 1):
        f.store(page_end, records, behind * RECORD)
    with f.for_range(PAGE // 8) as i:
        f.store(f.const(UNDECODED), records.offset(RECORDS_END).offset(i << 3))
    # Two harts may race to make the page: the loser's memory is lost until the arena is reset, a few times a boot.
    found, done = f.cmpxchg(slot, f.const(0), records.to_int())
    with f.if_(done ^ 1):
        f.ret(found.to_ptr())
    f.rmw("or", shared.get("page_flags").offset(page), f.const(PAGE_CODE, "i8"))
    # A young page: another hart could store to it, and may be just past the tag compare of such a store. See `fence_i`.
    with f.if_(native.call(st, "revoke_writes", shared.get("ram_host") + (page << 12)).ne(0)):
        spin_lock(f, shared.addr("code_lock"), shared.get("sched_yield"))
        f.rmw("add", shared.addr("code_epoch"), f.const(1))
        at = shared.get("young_count")
        shared.set("young_count", at + 1)
        with f.if_(at.ltu(YOUNG_PAGES)):
            shared.set("young_page", page, at.zext())
        spin_unlock(f, shared.addr("code_lock"))
    f.ret(records)

    # (st, host address of a page): no hart's TLB lets it store there unseen any more; how many other harts' could
    f, st, (host,) = native.plain("revoke_writes")
    shared = shared_of(st)
    none = f.const(NO_TAG)
    others = f.var("i64", 0)
    with f.for_range(shared.get("nharts")) as h:
        base = HART.bind(shared.get("hart", h)).addr("dtlb")
        with f.for_range(TLB_ENTRIES * TLB_MODES) as i:
            entry = base.offset(i * TLB_ENTRY)
            tag = f.load("i64", entry, WTAG, order="monotonic")
            with f.if_((tag + f.load("i64", entry, ADDEND, order="monotonic")).eq(host)):
                f.store(none, entry, WTAG, order="monotonic")
                with f.if_(h.ne(st.get("mhartid"))):
                    others.set(others.get() + 1)
    f.fence()
    f.ret(others.get())

    # (st, page index): forget the page's records. Harts that are in them leave at their next instruction.
    f, st, (page,) = native.plain("retire_page")
    shared = shared_of(st)
    # The flag goes first: a page made anew after the exchange sets it again.
    f.rmw("and", shared.get("page_flags").offset(page), f.const(~PAGE_CODE, "i8"))
    f.store(f.const(0), shared.get("code_masks").offset(page << 3), order="seq_cst")
    old = f.rmw("xchg", shared.get("code_pages").offset(page << 3), f.const(0))
    with f.if_(old.ne(0)):
        gone = f.load("i32", shared.get("handlers"), 4 * RETIRED)
        with f.for_range(PAGE // 2) as i:
            f.store(gone, old.to_ptr().offset(i * RECORD), order="monotonic")
    f.ret()

    # fence.i: stores of this hart, and those of others that it has been told of, are in the code that it runs next.
    # The only stores that could have gone unseen were in flight when their page became code. Pages so young that not
    # every hart has been between two instructions since are decoded again, and stay listed until all have.
    f, st, _ = native.plain("fence_i")
    shared = shared_of(st)
    native.call(st, "flush_fetch")
    f.fence()
    with f.if_(f.load("i32", shared.addr("young_count"), order="monotonic").eq(0)):
        f.ret()
    spin_lock(f, shared.addr("code_lock"), shared.get("sched_yield"))
    epoch = shared.get("code_epoch", order="seq_cst")
    st.set("code_epoch", epoch)
    settled = f.var("i64", 1)
    with f.for_range(shared.get("nharts")) as h:
        other = HART.bind(shared.get("hart", h))
        busy = other.get("in_guest", order="seq_cst").ne(0)
        with f.if_(busy & other.get("code_epoch", order="monotonic").ltu(epoch)):
            settled.set(0)
    with f.if_(settled.get().eq(0)):
        young = shared.get("young_count").zext()
        with f.if_else(young.leu(YOUNG_PAGES)) as e:
            with f.for_range(young) as i:
                native.call(st, "retire_page", shared.get("young_page", i))
            e.otherwise()  # more than are listed: all pages
            with f.for_range(shared.get("ram_size") >> 12) as page:
                with f.if_(f.load("i64", shared.get("code_pages").offset(page << 3), order="monotonic").ne(0)):
                    native.call(st, "retire_page", page)
    with f.if_(settled.get().ne(0)):
        shared.set("young_count", 0)
    spin_unlock(f, shared.addr("code_lock"))
    f.ret()


def spin_lock(f: Function, lock: Val, sched_yield: Val) -> None:
    """Take a native spin lock (an i32); its holders run a few hundred instructions at most. Yields the host CPU when
    the lock is not free, since its holder may be off it."""
    with f.loop():
        with f.if_(f.rmw("xchg", lock, f.const(1, "i32"), "acquire").eq(0)):
            f.break_()
        f.call_ptr(sched_yield, "i32", [])


def spin_unlock(f: Function, lock: Val) -> None:
    f.store(f.const(0, "i32"), lock, order="release")


def exit_for_mmio(native: Native, st: Ref, reason: Exit, pa: Val, size: Val, value: Val | int) -> None:
    """Leave an access to Python: the instruction will run again when it has been answered."""
    st.set("mmio_addr", pa)
    st.set("mmio_size", size)
    st.set("mmio_value", value)
    st.set("exit_reason", reason)
    st.set("fault", FAULT_EXIT)


def answered(st: Ref, pa: Val, size: Val) -> Val:
    """Has Python just completed this very access?"""
    idle = st.get("mmio_state").ne(Mmio.IDLE)
    return idle & st.get("mmio_addr").eq(pa) & st.get("mmio_size").eq(size)
