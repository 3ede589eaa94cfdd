"""The baseline translator: native code that makes blocks of machine code from the decoded records of a warm page.

Whenever a slice of instructions ends, the page in which it ended is a sample of where the time goes. A page that is met
again in code that is not translated is translated whole, as far as it is decoded: from each place that something jumps
to, one block, by placing the stencils of its instructions one behind the other. A block is another handler, stored in
the record of its first instruction; whoever comes to that record by any way runs it. A near branch jumps to the block
of its target directly.

What a block cannot do (an access that misses the TLB, a CSR) goes on in the interpreter, by the records, as if there
were no block; at the next record that begins one, translated code runs again.

A page whose code changes is retired by its records, as ever. A block that runs meanwhile goes on to its end: nobody may
rely on changed code before `fence.i`, which ends every block. The memory of blocks is given back all at once, when all
harts are stopped (`SoftwareBackend.forget_code`).
"""

from __future__ import annotations

from enum import IntEnum

from vmm.codegen.ir import Function, Ref, Val, Var
from vmm.vcpu.layout import (
    BLOCK,
    DISPATCH,
    ENDS,
    HEAT,
    HOLE,
    NEAR,
    PAGE,
    PLACED,
    RECORDS_END,
    RECORDS_HEADER,
    RETIRED,
    STENCIL,
    TRANSLATED,
    WIDE_IMM,
    WRITES,
)
from vmm.vcpu.native.abi import Native, shared_of
from vmm.vcpu.native.decoder import INDEX, number_of
from vmm.vcpu.native.fusion import FUSED
from vmm.vcpu.native.memory import PAGE_MASK, spin_lock, spin_unlock, xtlb_index

HALFWORDS = PAGE // 2
NUMBERS = len(INDEX) + len(FUSED)
NO_REGISTER = 255
AROUND = 64  # bytes around a block's instructions, at most


class Piece(IntEnum):
    """Stencils that are no instruction's, by their rows in the table."""

    ENTER = NUMBERS  # into a block: counts its instructions; near a slice's end, to the first one's handler
    STEP = NUMBERS + 1  # out of a block, into the one that follows
    LEAVE = NUMBERS + 2  # to the handler of the instruction behind it
    CONTINUE = NUMBERS + 3  # to whatever the record behind it says


class Fill(IntEnum):
    """What goes into a hole."""

    FIELD = 0  # an operand: `width` bits from bit `low` of the record's operand bytes, shifted left by `scale`
    DELTA = 1  # bytes from the block's first record to this one
    TARGET = 2  # the same to the record that a taken branch goes to
    LEFT = 3  # instructions of the block behind this one
    COUNT = 4  # instructions of the block
    NEXT = 5  # jump: to the end of this piece
    TAKEN = 6  # jump: to the block at the target, or to `h_dispatch`
    SELF = 7  # jump: to the handler that does the instruction alone
    IMAGE = 8  # jump: to a place in the handlers' image


def define(native: Native) -> None:
    _warm(native)
    _place(native)
    _translate_page(native)


def _warm(native: Native) -> None:
    """(st, pc): a slice has ended before this pc."""
    f, st, (pc,) = native.plain("warm")
    shared = shared_of(st)
    entry = st.get("xtlb_now").offset(xtlb_index(pc))
    with f.if_(f.load("i64", entry, order="monotonic").ne(pc & PAGE_MASK)):
        f.ret()
    records = f.load("i64", entry, 8).to_ptr()
    number = f.load("i16", records, (pc & (PAGE - 1)) + RECORDS_END, order="monotonic")
    with f.if_((number & TRANSLATED).ne(0)):
        f.ret()
    # The second sample, and then at every doubling: each finds more of the page decoded.
    heat = f.rmw("add", records.offset(HEAT - RECORDS_HEADER), f.const(1), "monotonic") + 1
    with f.if_(heat.ltu(2) | (heat & (heat - 1)).ne(0)):
        f.ret()
    spin_lock(f, shared.addr("code_lock"), shared.get("sched_yield"))
    began = native.call(st, "now_ns")
    native.call(st, "translate_page", records)
    shared.set("translating_ns", shared.get("translating_ns") + (native.call(st, "now_ns") - began))
    spin_unlock(f, shared.addr("code_lock"))
    f.ret()


class _Page:
    """The page under translation, as generated code sees it."""

    def __init__(self, st: Ref, records: Val) -> None:
        self.f = st.f
        self.records = records
        self.shared = shared_of(st)
        self._numbers = records.offset(RECORDS_END)
        self._starts = self.shared.get("starts")

    def number_at(self, i: Val) -> Val:
        """Where the number of the handler of halfword `i` is."""
        return self._numbers.offset(i << 1)

    def number(self, i: Val) -> Val:
        return self.f.load("i16", self.number_at(i), order="acquire").zext() & (TRANSLATED - 1)

    def start_at(self, i: Val) -> Val:
        """Where the address of the block that begins at halfword `i` is: 0 none, 1 not yet."""
        return self._starts.offset(i << 2)

    def start(self, i: Val) -> Val:
        return self.f.load("i32", self.start_at(i)).zext()

    def set_start(self, i: Val, address: Val | int) -> None:
        self.f.store(self.f.value(address, "i64").trunc("i32"), self.start_at(i))

    def record(self, i: Val) -> Val:
        return self.records.offset(i << 3)

    def stencil(self, number: Val | int) -> Ref:
        return STENCIL.bind(self.shared.get("stencils").offset(self.f.value(number, "i64") * STENCIL.size))


def _has(stencil: Ref, flag: int) -> Val:
    return (stencil.get("flags") & flag).ne(0)


def _distance(record: Val, stencil: Ref) -> Val:
    """How many halfwords away a near branch goes."""
    operands = record.f.load("i32", record, 4)
    return record.f.select(_has(stencil, WIDE_IMM), operands.sar(8), operands.sar(16)).sext().sar(1)


def _translate_page(native: Native) -> None:
    """(st, the page's records), under `code_lock`."""
    f, st, (records,) = native.plain("translate_page")
    shared = shared_of(st)
    page = _Page(st, records)
    most = _find_starts(f, page)
    with f.if_((shared.get("code_next") + most).gtu(shared.get("code_end"))):
        shared.set("code_full", 1)
        f.ret()

    fixups = f.var("i64", 0)
    i = f.var("i64", 0)
    with f.loop():
        here = i.get()
        with f.if_(here.geu(HALFWORDS)):
            f.break_()
        with f.if_(page.start(here).eq(0)):
            i.set(here + 1)
            f.continue_()
        with f.if_(page.number(here).leu(DISPATCH) | ~_has(page.stencil(page.number(here)), PLACED)):
            page.set_start(here, 0)  # nothing to begin a block with
            i.set(here + 1)
            f.continue_()
        # How far it goes, and what comes behind.
        count, end, then = f.var("i64", 0), f.var("i64", here), f.var("i64", Piece.CONTINUE)
        with f.loop():
            at = end.get()
            number = page.number(at)
            with f.if_(at.geu(HALFWORDS)):
                f.break_()
            with f.if_(number.leu(DISPATCH)):
                f.break_()
            stencil = page.stencil(number)
            with f.if_(~_has(stencil, PLACED)):
                then.set(Piece.LEAVE)
                f.break_()
            with f.if_(at.ne(here) & (page.start(at).ne(0) | count.get().eq(BLOCK))):
                page.set_start(at, 1)
                then.set(Piece.STEP)
                f.break_()
            count.set(count.get() + 1)
            end.set(at + stencil.get("length").zext().sar(1))
            with f.if_(_has(stencil, ENDS)):
                then.set(0)
                f.break_()
        # Place it.
        page.set_start(here, shared.get("code_next"))
        n = count.get()
        native.call(st, "place", page.stencil(Piece.ENTER).ptr, page.record(here), 0, n, here, fixups.get())
        place_at, left = f.var("i64", here), f.var("i64", n)
        last = f.var("i64", NO_REGISTER)  # whose value the instruction before hands on
        with f.loop():
            with f.if_(left.get().eq(0)):
                f.break_()
            left.set(left.get() - 1)
            at = place_at.get()
            stencil = page.stencil(page.number(at))
            chosen = _taking(page, stencil, page.record(at), last)
            delta = (at - here) << 3
            fixups.set(native.call(st, "place", chosen, page.record(at), delta, left.get(), at, fixups.get()))
            slot = page.number_at(at)
            f.store(f.load("i16", slot) | TRANSLATED, slot)
            place_at.set(at + stencil.get("length").zext().sar(1))
        delta = (end.get() - here) << 3
        with f.if_(then.get().ne(0)):
            piece = page.stencil(then.get()).ptr
            native.call(st, "place", piece, page.record(end.get()), delta, 0, end.get(), fixups.get())
        shared.set("translated", shared.get("translated") + n)
        i.set(end.get())
    _join(f, page, fixups.get())
    shared.set("translations", shared.get("translations") + 1)
    f.ret()


def _taking(page: _Page, stencil: Ref, record: Val, last: Var) -> Val:
    """The variant of a stencil that takes the value of register `last` from the instruction before, if it reads it;
    and whose value it hands on itself."""
    f = page.f
    operands = f.load("i32", record, 4).zext()
    chosen = f.var("ptr", stencil.ptr)
    first = page.stencil(stencil.get("variants").zext())
    for which in (1, 0):
        # One that it does not have reads as register 0, whose value nobody hands on.
        with f.if_(((operands >> stencil.get("reads", which).zext()) & 0xFF).eq(last.get())):
            chosen.set(first.ptr.offset(which * STENCIL.size))
    with f.if_(_has(stencil, WRITES)):
        last.set(operands & 0xFF)
    return chosen.get()


def _find_starts(f: Function, page: _Page) -> Val:
    """Mark where blocks begin: where a run of decoded instructions begins, behind what ends a block or is not placed,
    and at the targets of near branches. Returns how many bytes of code the page can take at most."""
    most = f.var("i64", AROUND)
    with f.for_range(HALFWORDS + 2) as k:
        page.set_start(k, 0)
    i, fresh = f.var("i64", 0), f.var("i64", 1)
    with f.loop():
        here = i.get()
        with f.if_(here.geu(HALFWORDS)):
            f.break_()
        number = page.number(here)
        with f.if_(number.leu(DISPATCH)):
            fresh.set(1)
            i.set(here + 1)
            f.continue_()
        with f.if_(fresh.get().ne(0)):
            page.set_start(here, 1)
        stencil = page.stencil(number)
        fresh.set((_has(stencil, ENDS) | ~_has(stencil, PLACED)).zext())
        with f.if_(_has(stencil, NEAR)):
            target = here + _distance(page.record(here), stencil)
            with f.if_(target.ltu(HALFWORDS)):
                page.set_start(target, 1)
        most.set(most.get() + stencil.get("size").zext() + AROUND)
        i.set(here + stencil.get("length").zext().sar(1))
    return most.get()


def _join(f: Function, page: _Page, fixups: Val) -> None:
    """Direct the jumps to blocks, and let the records lead there."""
    shared = page.shared
    bias = shared.get("code_bias")
    with f.for_range(fixups) as k:
        pair = shared.get("fixups").offset(k << 3)
        place, wanted = f.load("i32", pair).zext(), f.load("i32", pair, 4).zext()
        start = page.start(wanted)
        with f.if_(start.gtu(1)):
            f.store((start - place - 4).trunc("i32"), (place + bias).to_ptr())
    retired = f.load("i32", shared.get("handlers"), 4 * RETIRED)
    with f.for_range(HALFWORDS) as i:
        start = page.start(i)
        with f.if_(start.gtu(1)):
            record = page.record(i)
            now = f.load("i32", record, order="monotonic")
            with f.if_(now.ne(retired)):
                f.cmpxchg(record, now, start.trunc("i32"))


def _place(native: Native) -> None:
    """(st, stencil, record, its delta, instructions left, its halfword, fixups): append a copy; fixups now."""
    f, st, (stencil_at, record, delta, left, halfword, fixups) = native.plain("place")
    shared = shared_of(st)
    stencil = STENCIL.bind(stencil_at)
    start = shared.get("code_next")
    size = stencil.get("size").zext()
    source = shared.get("pieces").offset(stencil.get("code").zext())
    to = (start + shared.get("code_bias")).to_ptr()
    with f.for_range((size + 7) >> 3) as i:
        f.store(f.load("i64", source, i << 3, align=1), to, i << 3, align=1)
    operands = f.load("i32", record, 4).zext()
    made = f.var("i64", fixups)
    first = shared.get("holes").offset(stencil.get("holes").zext() * HOLE.size)
    with f.for_range(stencil.get("hole_count").zext()) as k:
        hole = HOLE.bind(first.offset(k * HOLE.size))
        at = hole.get("at").zext()
        here = start + at
        value = f.var("i64", hole.get("addend").sext())

        def add(amount: Val) -> None:
            value.set(value.get() + amount)

        cases = {fill: f.label(fill.name.lower()) for fill in Fill}
        done = f.label("filled")
        f.switch(hole.get("fill"), [((int(fill),), label) for fill, label in cases.items()], done)

        f.at(cases[Fill.FIELD])
        width = hole.get("width").zext()
        raw = (operands >> hole.get("low").zext()) << (64 - width)
        field = f.select(hole.get("signed").ne(0), raw.sar(64 - width), raw >> (64 - width))
        add(field << hole.get("scale").zext())
        f.goto(done)
        f.at(cases[Fill.DELTA])
        add(delta)
        f.goto(done)
        f.at(cases[Fill.LEFT])
        add(left)
        f.goto(done)
        f.at(cases[Fill.COUNT])
        add(left)
        f.goto(done)
        f.at(cases[Fill.TARGET])
        add(delta + (_distance(record, stencil) << 3))
        f.goto(done)
        f.at(cases[Fill.NEXT])
        add(start + size - here)
        f.goto(done)
        f.at(cases[Fill.IMAGE])
        add(shared.get("image") - here)
        f.goto(done)
        f.at(cases[Fill.SELF])
        number = f.load("i16", number_of(record, halfword << 1)).zext() & (TRANSLATED - 1)
        own = STENCIL.bind(shared.get("stencils").offset(number * STENCIL.size)).get("own").zext()
        add(f.load("i32", shared.get("handlers"), own << 2).zext() - here)
        f.goto(done)
        f.at(cases[Fill.TAKEN])
        add(f.load("i32", shared.get("handlers"), 4 * DISPATCH).zext() - here)
        pair = shared.get("fixups").offset(made.get() << 3)
        f.store(here.trunc("i32"), pair)
        f.store((halfword + _distance(record, stencil)).trunc("i32"), pair, 4)
        made.set(made.get() + 1)
        f.goto(done)

        f.at(done)
        with f.if_else(hole.get("size").eq(8)) as e:
            f.store(value.get(), to, at, align=1)
            e.otherwise()
            f.store(value.get().trunc("i32"), to, at, align=1)
    shared.set("code_next", start + size)
    f.ret(made.get())
