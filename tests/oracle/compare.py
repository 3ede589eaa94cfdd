"""One program run by two peers; where they differ, the smallest program that still does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tests.oracle.peers import Disagreement
from tests.oracle.program import FCSR, SCRATCH, STATE, WINDOW, WINDOW_SIZE, Block, F, Item, Outcome, Program, X
from vmm.isa.disasm import disassemble
from vmm.isa.encoding import Flag
from vmm.isa.table import decode, length


class Peer(Protocol):
    def run(self, program: Program) -> Outcome: ...


def check(blocks: Sequence[Block], seed: int, oracle: Peer, *subjects: Peer) -> int:
    """Run the blocks by all: the number of instructions compared, or Disagreement with what a reader needs."""
    program = Program(blocks, seed)
    wanted = _run(oracle, program)
    for subject in subjects:
        got = _run(subject, program)
        block = wanted.first_difference(got)
        if block is not None:
            raise Disagreement(f"seed {seed}, block {block}: {explain(program, block, wanted, got, oracle, subject)}")
        if wanted.scratch != got.scratch:
            at = next(i for i, (a, b) in enumerate(zip(wanted.scratch, got.scratch, strict=True)) if a != b)
            raise Disagreement(f"seed {seed}: memory outside of all windows differs, first at {SCRATCH + at:#x}")
    return sum(b.instructions for b in blocks)


def _run(peer: Peer, program: Program) -> Outcome:
    try:
        return peer.run(program)
    except Disagreement as e:
        raise Disagreement(f"seed {program.seed}, {peer!r}: {e}") from e


Found = tuple[Block, bytes, bytes]  # a block on which two differ, and both results


def shrink(block: Block, seed: int, oracle: Peer, subject: Peer) -> Found | None:
    """The fewest instructions of a block on which the two differ, best one; None if they only do in this place."""

    def first(candidates: Sequence[Block]) -> Found | None:
        program = Program(candidates, seed)
        wanted, got = oracle.run(program), subject.run(program)
        n = wanted.first_difference(got)
        return None if n is None else (candidates[n], wanted.state(n), got.state(n))

    items = block.items
    found = first([replace(block, items=items[:n]) for n in range(1, len(items) + 1)])
    if found is None:
        return None
    *before, last = found[0].items
    program = Program([replace(block, items=tuple(before))], seed)
    alone = first([Block(oracle.run(program).state(0), block.window, (last,))])
    if alone is not None:
        return alone
    while len(found[0].items) > 1:  # it takes more than one: leave out each in turn
        items = found[0].items
        fewer = first([replace(block, items=items[:n] + items[n + 1 :]) for n in range(len(items))])
        if fewer is None:
            break
        found = fewer
    return found


def explain(program: Program, block: int, wanted: Outcome, got: Outcome, oracle: Peer, subject: Peer) -> str:
    """A difference for a reader: instructions, what they read, and both results."""
    whole = program.blocks[block]
    shrunk = shrink(whole, block, oracle, subject)
    if shrunk is None:
        place = program.places[block] + length(0x3)
        lines = [f"{oracle!r} and {subject!r} differ, but only at {place:#x} and after what came before:"]
        shrunk = whole, wanted.state(block), got.state(block)
    else:
        place = 0
        lines = [f"{oracle!r} and {subject!r} differ on"]
    found, a, b = shrunk
    for item in found.items:
        for word in item:
            lines.append(f"    {word:08x}  {disassemble(word, place, numeric=True)}")
            place += length(word)
    lines.append(f"with the window at {found.window:#x}, and")
    lines += [f"    {name:6} {value}" for name, value in _inputs(found)]
    lines.append(f"results: {oracle!r}, {subject!r}")
    lines += [
        f"    {_name(at):6} {_word(a, at)}  {_word(b, at)}" for at in range(0, STATE, 8) if _word(a, at) != _word(b, at)
    ]
    return "\n".join(lines)


def _word(state: bytes, at: int) -> str:
    return f"{int.from_bytes(state[at : at + 8], 'little'):016x}"


def _name(at: int) -> str:
    if at < F:
        return f"x{(at - X) // 8 + 1}"
    if at < FCSR:
        return f"f{(at - F) // 8}"
    return "fcsr" if at == FCSR else f"[{at - WINDOW:#04x}]"


def _inputs(block: Block) -> list[tuple[str, str]]:
    """What the instructions read: registers, fcsr, the window if there is an access to it."""
    places = {at for item in block.items for at in _reads(item)}
    return [(_name(at), _word(block.state, at)) for at in sorted(places)]


def _reads(item: Item) -> set[int]:
    places: set[int] = set()
    for word in item:
        insn = decode(word)
        assert insn is not None
        for source, field in insn.sources.items():
            if source not in ("rs1", "rs2", "rs3") or (insn.flags & Flag.CSR and insn.name.endswith("i")):
                continue
            number = field.extract(word)
            if insn.base.is_fp_register(source):
                places.add(F + 8 * number)
            elif number:
                places.add(X + 8 * (number - 1))
        if insn.flags & (Flag.FP | Flag.CSR):
            places.add(FCSR)
        if insn.flags & (Flag.LOAD | Flag.STORE | Flag.AMO):
            places |= set(range(WINDOW, WINDOW + WINDOW_SIZE, 8))
    return places
