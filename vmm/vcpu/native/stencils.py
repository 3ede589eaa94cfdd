"""Stencils: for every handler the same instruction as a piece of machine code with holes, for the baseline translator.

A stencil is made by the emitter that makes the handler. Only the operands differ: where the handler reads a field of
its record, the stencil has a hole, a number of 32 bits that `translator` fills in when it places a copy. Stencils of a
block stand one behind the other, so there is no jump between them.

The result of an instruction goes to the hart's state, as ever, and on to the next stencil in a register too: a way
through memory takes seven cycles. So an instruction that reads integer registers has a variant for each operand that
may come from there.

In translated code `ip` is the record of the block's first instruction, and `n` what is left of the slice behind its
last one, until control leaves the block: the holes `delta` and `left` are what to add for one instruction.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vmm.codegen.image import Image
from vmm.codegen.ir import Val
from vmm.codegen.llvm import Gap, compile_pieces
from vmm.isa.encoding import Flag, Instruction, Packing
from vmm.isa.table import BASE
from vmm.vcpu.layout import ENDS, HOLE, NEAR, NO_READ, PLACED, RECORD, STENCIL, WIDE_IMM, WRITES
from vmm.vcpu.native.abi import Frame, Native
from vmm.vcpu.native.decoder import HANDLERS, INDEX, Variant, handler_name
from vmm.vcpu.native.fusion import FUSED
from vmm.vcpu.native.handlers import Interpreted, twin_name
from vmm.vcpu.native.translator import Fill, Piece

NEXT, TAKEN, SELF = "hole_next", "hole_taken", "hole_self"
_BY_NAME = {
    "hole_delta": Fill.DELTA, "hole_target": Fill.TARGET, "hole_left": Fill.LEFT, "hole_count": Fill.COUNT,
    NEXT: Fill.NEXT, TAKEN: Fill.TAKEN, SELF: Fill.SELF,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hole:
    """Four bytes at `at`, or eight: what fills them, plus `addend`; for a jump, minus their own address."""

    at: int
    size: int
    fill: Fill
    addend: int
    low: int = 0
    width: int = 0
    signed: bool = False
    scale: int = 0


@dataclass(frozen=True, slots=True)
class Stencil:
    code: bytes
    holes: tuple[Hole, ...]


class _Placeable(Frame):
    """A frame whose `ip` and `n` are those of one instruction of a block, where they are asked for."""

    @property
    def last(self) -> Val:
        """The result of the instruction before."""
        return self.more[0]

    @last.setter
    def last(self, result: Val) -> None:
        self.more = [result]

    @property
    def ip(self) -> Val:
        return self.block.offset(self.hole("hole_delta"))

    @ip.setter
    def ip(self, block: Val) -> None:
        self.block = block

    @property
    def n(self) -> Val:
        return self.behind_block + self.hole("hole_left")

    @n.setter
    def n(self, behind_block: Val) -> None:
        self.behind_block = behind_block

    def hole(self, name: str) -> Val:
        return self.native.m.hole(self.f, name)

    def next(self, ip: Val, length: int, n: Val) -> None:
        self.tail(self.native.handler(NEXT), self.block, self.behind_block)


class _Placed(Interpreted):
    """`isa.Context` over holes."""

    h: _Placeable

    def compute(self) -> Val | None:
        result = super().compute()
        if result is not None:
            self.h.last = result
        return result

    @property
    def n(self) -> Val:
        return self.h.n

    def _slot(self, operand: str) -> Val:
        return self.h.hole(f"hole_field_{operand}")

    def _register(self, bank: str, operand: str) -> Val:
        return self.h.st.addr(bank).offset(self.h.hole(f"hole_register_{operand}"))

    @property
    def imm(self) -> Val:
        return self.f.const(0) if "imm" in self.variant.zero else self._slot("imm")

    def _go_relative(self, distance: Val) -> None:
        h = self.h
        if self.variant.far:
            h.go("jump", h.pc + distance, self.n)
            return
        ip = h.block.offset(h.hole("hole_target"))
        if self.variant.polls:
            self._look_at_requests(ip)
        h.tail(h.native.handler(TAKEN), ip, self.n)


def is_placed(insn: Instruction, variant: Variant) -> bool:
    """Whether a block may hold it. The others go through their handler: they are rare, and slow anyway."""
    return not insn.flags & (Flag.CSR | Flag.SYSTEM) and not variant.static


def operands_of(insn: Instruction, variant: Variant) -> tuple[str, ...]:
    """The integer registers that have a variant each in which they come from the instruction before."""
    if insn.flags & (Flag.FP | Flag.AMO | Flag.JAL | Flag.JALR) or not is_placed(insn, variant):
        return ()
    return tuple(name for name in ("rs1", "rs2") if name in insn.operands and name not in variant.zero)


def stencils(functions: dict[str, int]) -> dict[str, Stencil]:
    """All stencils, by the name of their handler, and the pieces around them. `functions` are the handlers' image's."""
    native = Native("vmm-stencils", open=True, more=("last",))
    _around(native)
    packed: dict[str, Instruction] = {}
    for insn, length, variant in HANDLERS:
        if not is_placed(insn, variant):
            continue
        twin = twin_name(insn, length)
        for operand in ("", *operands_of(insn, variant)):
            name = handler_name(insn, length, variant) + (f":{operand}" if operand else "")
            h = _Placeable(native, name.replace(":", "_from_"))
            placed = _Placed(h, insn, length, h.n, variant, native.handler(twin) if twin else None)
            if operand:
                placed.known[operand] = h.last
            placed.run()
            packed[h.f.proto.name] = insn
    return {
        name.replace("_from_", ":"): Stencil(
            *_without_last_jump(code, tuple(_hole(packed.get(name), functions, gap) for gap in gaps))
        )
        for name, (code, gaps) in compile_pieces(native.m.text()).items()
    }


def _around(native: Native) -> None:
    h = _Placeable(native, Piece.ENTER.name)
    n = h.behind_block - h.hole("hole_count")
    with h.f.if_(n.lts(0), likely=False):
        h.tail(native.handler(SELF), h.block, h.behind_block)
    h.tail(native.handler(NEXT), h.block, n)

    h = _Placeable(native, Piece.STEP.name)
    h.tail(native.handler(NEXT), h.ip, h.behind_block)

    h = _Placeable(native, Piece.LEAVE.name)
    h.tail(native.handler(SELF), h.ip, h.behind_block)

    h = _Placeable(native, Piece.CONTINUE.name)
    h.dispatch(h.ip, h.behind_block)


def _hole(insn: Instruction | None, functions: dict[str, int], gap: Gap) -> Hole:
    at, size, symbol, addend = gap
    if symbol in _BY_NAME:
        return Hole(at, size, _BY_NAME[symbol], addend)
    if symbol in functions:
        return Hole(at, size, Fill.IMAGE, addend + functions[symbol])
    assert insn is not None, symbol
    _, kind, operand = symbol.split("_")
    slot = next(slot for slot in insn.packing.value if slot.operand == operand)
    scale = RECORD.bit_length() - 1 if kind == "register" else 0
    return Hole(at, size, Fill.FIELD, addend, slot.low, slot.width, slot.signed, scale)


def _without_last_jump(code: bytes, holes: tuple[Hole, ...]) -> tuple[bytes, tuple[Hole, ...]]:
    """What a piece jumps to at its end is what stands behind it."""
    last = len(code) - 4
    if holes and (holes[-1].at, holes[-1].fill) == (last, Fill.NEXT) and code[last - 1] == 0xE9:
        return code[: last - 1], holes[:-1]
    return code, holes


# -- the table, as native code reads it -------------------------------------------------------------------------------


def table(functions: dict[str, int]) -> Image:
    """Rows of `layout.STENCIL` by the number of their handler, their holes, and their bytes: an image whose symbols say
    where each begins. `functions` are those of the handlers' image."""
    found = stencils(functions)
    rows, holes, code = bytearray(), bytearray(), bytearray()

    def add(stencil: Stencil | None, own: int, length: int, flags: int, variants: int, reads: Sequence[int]) -> None:
        code.extend(bytes(-len(code) % 8))
        mine = stencil or Stencil(b"", ())
        first, second = (*reads, NO_READ, NO_READ)[:2]
        rows.extend(
            _ROW.pack(
                len(code), len(mine.code), own, len(holes) // HOLE.size, len(mine.holes), length, flags,
                variants, first, second,
            )
        )  # fmt: skip
        for h in mine.holes:
            holes.extend(_HOLE.pack(h.addend, h.at, h.fill, h.size, h.low, h.width, h.signed, h.scale))
        code.extend(mine.code)

    plain = {handler_name(*row): row for row in HANDLERS}
    last: list[tuple[str, int, int, int]] = []
    for name, number in INDEX.items():
        if name not in plain:
            add(None, number, 0, 0, 0, ())
            continue
        insn, length, variant = plain[name]
        operands = operands_of(insn, variant)
        variants = max(Piece) + 1 + len(last) if operands else 0
        reads = [slot.low for operand in operands for slot in insn.packing.value if slot.operand == operand]
        add(found.get(name), number, length, _flags(insn, variant), variants, reads)
        last += [(f"{name}:{operand}", number, length, _flags(insn, variant)) for operand in operands]
    for pair, _ in FUSED:  # the second half has its own record
        number = INDEX[handler_name(BASE[pair.first], pair.first_length, Variant())]
        rows.extend(rows[number * STENCIL.size : (number + 1) * STENCIL.size])
    for piece in Piece:
        add(found[piece.name], 0, 0, PLACED, 0, ())
    for name, number, length, flags in last:
        add(found[name], number, length, flags, 0, ())
    code.extend(bytes(8))  # copies are made eight bytes at a time
    return Image(bytes(rows + holes + code), {"stencils": 0, "holes": len(rows), "pieces": len(rows) + len(holes)})


def _flags(insn: Instruction, variant: Variant) -> int:
    near = bool(insn.flags & (Flag.BRANCH | Flag.JAL)) and not variant.far
    wide = insn.packing is Packing.U24
    ends = bool(insn.flags & (Flag.JAL | Flag.JALR))
    writes = "rd" in insn.operands and not insn.is_fp_register("rd")
    return PLACED * is_placed(insn, variant) | ENDS * ends | NEAR * near | WIDE_IMM * wide | WRITES * writes


_ROW = struct.Struct("<iHHiHBBHBB")
_HOLE = struct.Struct("<iHBBBBBB")
