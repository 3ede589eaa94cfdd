"""The pre-decoder: from the instruction tables, native code that turns an instruction into a record.

A record changes once, as a whole: by a compare-exchange from undecoded to the handler with its operands. Harts may
decode it at the same time, and see different bytes if others rewrite them; the first one's stands. Were it written
twice, a third hart could run the first one's handler on the second one's operands, and branch out of the page. Later
the handler alone may become the one of retired pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmm.codegen.ir import Function, Ref, Val
from vmm.isa.encoding import BitField, Flag, Instruction
from vmm.isa.table import BASE, COMPRESSED
from vmm.vcpu.layout import (
    EXEC,
    ILLEGAL,
    PAGE,
    PAGE_END,
    RECORD,
    RECORDS_END,
    RECORDS_HEADER,
    SINK,
    STRADDLING,
    UNDECODED,
    Cause,
)
from vmm.vcpu.native.abi import Native, shared_of

#: Handlers that are no instruction's, in the order of their numbers in `layout`.
_SPECIAL = ("undecoded", "page_end", "retired", "illegal", "straddling", "dispatch")


@dataclass(frozen=True, slots=True)
class Found:
    """What the pre-decoder knows when it chooses a handler. Values are i64, conditions i1."""

    operands: Mapping[str, Val]
    near: Val  # a relative target lies in the same page, and near targets are wanted


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the handlers of an instruction: how it is specialized, and for which records."""

    name: str = ""
    when: Callable[[Found], Val] | None = None  # None: whatever the others leave
    zero: frozenset[str] = frozenset()  # operands that are x0, or an immediate 0
    far: bool = False  # the target may be in another page
    polls: bool = True  # looks at the requests of others on its way; forward branches leave that to the backward ones
    static: bool = False  # rounds as its rm field says; else rm is dynamic


def _is_zero(operand: str) -> Callable[[Found], Val]:
    return lambda found: found.operands[operand].eq(0)


def _near(forward: bool, zero: bool) -> Variant:
    def when(found: Found) -> Val:
        imm = found.operands["imm"]
        here = found.near & (imm.gts(0) if forward else imm.les(0))
        return here & found.operands["rs2"].eq(0) if zero else here

    name = ("forward" if forward else "backward") + ("_zero" if zero else "")
    return Variant(name, when, zero=frozenset({"rs2"} if zero else ()), polls=not forward)


_FAR = Variant("far", far=True)
_COMPARED_WITH_ZERO = ("beq", "bne", "blt", "bge")
#: `li`, `mv` and the like: what compilers emit all the time.
_SPECIAL_OPERANDS = {
    "addi": (
        Variant("li", _is_zero("rs1"), zero=frozenset({"rs1"})),
        Variant("mv", _is_zero("imm"), zero=frozenset({"imm"})),
    ),
    "add": (Variant("mv", _is_zero("rs1"), zero=frozenset({"rs1"})),),
    "sltu": (Variant("snez", _is_zero("rs1"), zero=frozenset({"rs1"})),),
    "addiw": (Variant("sext", _is_zero("imm"), zero=frozenset({"imm"})),),
}


def variants(insn: Instruction) -> tuple[Variant, ...]:
    """The handlers that a 32-bit instruction (or what a compressed one stands for) comes in; the first that fits."""
    if insn.flags & Flag.BRANCH:
        zeros = (True, False) if insn.name in _COMPARED_WITH_ZERO else (False,)
        return (*(_near(forward, zero) for zero in zeros for forward in (True, False)), _FAR)
    if insn.flags & Flag.JAL:
        return (_near(forward=True, zero=False), _near(forward=False, zero=False), _FAR)
    if insn.flags & Flag.JALR:
        return (Variant("near", lambda found: found.near), _FAR)
    if insn.flags & Flag.ROUNDS:
        return (Variant("dynamic", lambda found: found.operands["rm"].eq(7)), Variant("static", static=True))
    return (*_SPECIAL_OPERANDS.get(insn.name, ()), Variant())


def handler_name(insn: Instruction, length: int, variant: Variant) -> str:
    return "_".join(part for part in ("h", insn.name.replace(".", "_"), variant.name, str(length)) if part)


def _rows() -> list[tuple[Instruction, int, Variant]]:
    short = {insn.base.name for insn in COMPRESSED.values()}
    return [
        (insn, length, variant)
        for insn in BASE.values()
        for length in ((4, 2) if insn.name in short else (4,))
        for variant in variants(insn)
    ]


#: Every instruction handler: (32-bit instruction, its length in memory, variant).
HANDLERS = _rows()

#: Number of each of these handlers and of the special ones in the table of handler addresses; `fusion` has the rest.
_PLAIN = [*(f"h_{name}" for name in _SPECIAL), *(handler_name(*row) for row in HANDLERS)]
INDEX = {name: i for i, name in enumerate(_PLAIN)}


def define(native: Native) -> None:
    _decode(native)
    _special(native)


def _extract(f: Function, word: Val, field: BitField) -> Val:
    """The operand in `word` (i64), sign-extended if it is signed."""
    value = f.const(field.add)
    for hi, lo, at in field.pieces:
        value = value + (word.field(hi, lo) << at)
    if field.signed and field.pieces:
        spare = 64 - field.width
        value = (value << spare).sar(spare)
    return value


def _decode(native: Native) -> None:
    """(st, instruction, its byte offset in the page, 1: far targets only) -> number of its handler, and its operands
    in the upper half."""
    f, _st, (word, offset, only_far) = native.plain("decode")
    illegal = f.label("illegal")

    def result(operands: Val, index: Val) -> None:
        f.ret((operands << 32) | index)

    def leaf(insn: Instruction) -> None:
        packed = f.const(0)
        values = {}
        for slot in insn.packing.value:
            if slot.operand not in insn.sources:
                continue
            value = _extract(f, word, insn.sources[slot.operand])
            values[slot.operand] = value
            if slot.operand == "rd" and not insn.base.is_fp_register("rd"):
                value = f.select(value.eq(0), f.const(SINK), value)
            packed = packed | ((value & ((1 << slot.width) - 1)) << slot.low)
        near = only_far.eq(0)
        if insn.flags & (Flag.BRANCH | Flag.JAL):
            near = near & (offset + values["imm"]).ltu(PAGE)
        found = Found(values, near)
        *special, default = variants(insn.base)
        index = f.const(INDEX[handler_name(insn.base, insn.length, default)])
        for variant in reversed(special):
            assert variant.when is not None
            number = INDEX[handler_name(insn.base, insn.length, variant)]
            index = f.select(variant.when(found), f.const(number), index)
        result(packed, index)

    def group(rows: list[Instruction]) -> None:
        for insn in rows:
            here = (word & insn.mask).eq(insn.match)
            for x in insn.where:
                value = insn.operands[x.operand]
                for excluded in x.values:
                    here = here & _extract(f, word, value).ne(excluded)
            with f.if_(here):
                leaf(insn)
        f.goto(illegal)

    def tree(insns: list[Instruction], low_bits: int, shift: int) -> None:
        groups: dict[int, list[Instruction]] = {}
        for insn in insns:
            for funct3 in range(8):
                if (insn.match ^ (funct3 << shift)) & insn.mask & (7 << shift) == 0:
                    groups.setdefault(insn.match & ((1 << low_bits) - 1) | funct3 << low_bits, []).append(insn)
        key = (word & ((1 << low_bits) - 1)) | (((word >> shift) & 7) << low_bits)
        labels = {k: f.label("group") for k in groups}
        f.switch(key, [((k,), label) for k, label in labels.items()], illegal)
        for k, rows in groups.items():
            f.at(labels[k])
            group(rows)

    with f.if_((word & 3).eq(3)):
        tree(list(BASE.values()), 7, 12)
    tree(list(COMPRESSED.values()), 2, 13)
    f.at(illegal)
    result(f.const(0), f.const(ILLEGAL))

    # (st, record, its byte offset in the page, number of its handler, operands): if it is still undecoded
    f, st, (record, offset, number, operands) = native.plain("commit")
    table = shared_of(st).get("handlers")
    undecoded = f.load("i32", table, 4 * UNDECODED).zext()
    _, done = f.cmpxchg(record, undecoded, (operands << 32) | f.load("i32", table, number << 2).zext())
    with f.if_(done):
        f.store(number.trunc("i16"), number_of(record, offset), order="release")
    f.ret()


def number_of(record: Val, offset: Val) -> Val:
    """Where the handler's number of the record of byte `offset` is: a u16 a halfword, behind the page's records."""
    return record.offset(-(offset << 2) + offset).offset(RECORDS_END)


def fetch(native: Native, st: Ref, record: Val, offset: Val, at: Val) -> Val:
    """The instruction (i64) at byte `at` of the page in which `record` is that of byte `offset`. Of one that straddles
    the page's end only the first half."""
    f = st.f
    header = record.offset(-((offset << 2) + RECORDS_HEADER))
    # Say which chunks hold code first, read them after: see memory.py about the order.
    page = f.load("i64", header, 8)
    chunks = (f.const(1) << (at >> 6)) | (f.const(1) << f.min_u((at + 3) >> 6, f.const(63)))
    f.rmw("or", shared_of(st).get("code_masks").offset(page << 3), chunks)
    host = (f.load("i64", header, 0) + at).to_ptr()
    word = f.var("i64", f.load("i16", host, order="seq_cst").zext())
    with f.if_((word.get() & 3).eq(3) & at.ltu(PAGE - 2)):
        word.set(word.get() | (f.load("i16", host, 2, order="monotonic").zext() << 16))
    return word.get()


def _special(native: Native) -> None:
    # The first execution of an instruction: decode it, then run it.
    h = native.frame("h_undecoded")
    f, st, pc = h.f, h.st, h.pc
    offset = pc & (PAGE - 1)
    word = fetch(native, st, h.ip, offset, offset)
    with f.if_(offset.eq(PAGE - 2) & (word & 3).eq(3)):
        h.call("commit", h.ip, offset, STRADDLING, 0)
        h.dispatch(h.ip, h.n)
    decoded = h.call("decode", word, offset, 0)
    h.call("commit", h.ip, offset, h.call("fuse", h.ip, offset, decoded), decoded >> 32)
    h.dispatch(h.ip, h.n)

    # Whatever the record says: for jumps of translated code to what is not translated.
    h = native.frame("h_dispatch")
    h.dispatch(h.ip, h.n)

    # Behind the last record of a page: on to the next page.
    h = native.frame("h_page_end")
    h.go("jump", h.pc, h.n)

    # Everywhere in a page that was written to: find the records that took its place, around the TLB that led here.
    h = native.frame("h_retired")
    h.go("jump_slow", h.pc, h.n)

    h = native.frame("h_illegal")
    pc = h.pc
    n = h.n - 1
    with h.f.if_(n.lts(0), likely=False):
        h.go("slice_end", pc, n)
    h.call("illegal", pc)
    h.go("fault", pc, n)

    # A 32-bit instruction whose halves lie in two pages: fetched anew each time, decoded into the hart's own scratch.
    h = native.frame("h_straddling")
    f, st, pc = h.f, h.st, h.pc
    with f.if_(h.n.les(0)):
        h.go("slice_end", pc, h.n - 1)
    header = h.ip.offset(-(((PAGE - 2) << 2) + RECORDS_HEADER))
    low = f.load("i16", (f.load("i64", header, 0) + (PAGE - 2)).to_ptr(), order="monotonic").zext()
    second = pc + 2
    pa = h.call("translate", second, EXEC)
    with f.if_(st.get("fault").ne(0)):
        h.go("fault", pc, h.n - 1)
    shared = h.shared()
    offset = pa - shared.get("ram_base")
    allowed = h.call("pmp_allows", pa, 2, EXEC, st.get("prv"))
    with f.if_(offset.geu(shared.get("ram_size")) | ~allowed):
        h.call("set_fault", Cause.FETCH_ACCESS, second)
        h.go("fault", pc, h.n - 1)
    high = f.load("i16", (shared.get("ram_host") + offset).to_ptr(), order="monotonic").zext()
    scratch = st.addr("scratch")
    decoded = h.call("decode", low | (high << 16), 0, 1)
    handler = f.load("i32", shared.get("handlers"), (decoded & 0xFFFF_FFFF) << 2)
    f.store(handler, scratch)
    f.store((decoded >> 32).trunc("i32"), scratch, 4)
    # Behind it, wherever it ends: the first half may by now be an instruction of 16 bits.
    for behind in (1, 2):
        f.store(f.load("i32", shared.get("handlers"), 4 * PAGE_END), scratch, behind * RECORD)
    st.set("pcbias", pc - (scratch.to_int() >> 2))
    h.dispatch(scratch, h.n)
