"""All instructions, and the decoder."""

from __future__ import annotations

from vmm.isa import atomic, bitmanip, compressed, floating, integer, system
from vmm.isa.encoding import Instruction

#: Every 32-bit instruction by name.
BASE: dict[str, Instruction] = {
    insn.name: insn
    for insn in (
        *integer.I,
        *integer.M,
        *atomic.A,
        *floating.FD,
        *bitmanip.ZBA,
        *bitmanip.ZBB,
        *bitmanip.ZBS,
        *system.ZICSR,
        *system.ZIFENCEI,
        *system.PRIVILEGED,
        *system.ZICBOM,
        *system.ZICBOZ,
    )
}

#: Every 16-bit instruction by name.
COMPRESSED: dict[str, Instruction] = {insn.name: insn for insn in compressed.rows(BASE)}

#: Every instruction by name.
INSTRUCTIONS: dict[str, Instruction] = BASE | COMPRESSED


def _by_group() -> dict[tuple[int, int], list[Instruction]]:
    """Rows by (quadrant, funct3) of 16-bit or (opcode, funct3) of 32-bit instructions; no row spans many."""
    groups: dict[tuple[int, int], list[Instruction]] = {}
    for insn in INSTRUCTIONS.values():
        low, shift = (0x7F, 12) if insn.length == 4 else (0x3, 13)
        for funct3 in range(8):
            if (insn.match ^ (funct3 << shift)) & insn.mask & (7 << shift) == 0:
                groups.setdefault((insn.match & low, funct3), []).append(insn)
    return groups


_GROUPS = _by_group()


def length(word: int) -> int:
    """Bytes of the instruction that begins with the 16 bits `word`: longer ones than 4 do not exist here."""
    return 4 if word & 3 == 3 else 2


def decode(word: int) -> Instruction | None:
    """The instruction that `word` (16 bits, or 32 where the low two are set) holds; None if it is illegal."""
    key = (word & 0x7F, (word >> 12) & 7) if length(word) == 4 else (word & 3, (word >> 13) & 7)
    return next((insn for insn in _GROUPS.get(key, ()) if insn.matches(word)), None)
