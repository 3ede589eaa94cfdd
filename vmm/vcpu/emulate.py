"""Instructions that generated code leaves to Python: floating point rounded to nearest, ties away from zero (RMM).

The host's MXCSR has no such mode. Generated code has already found that the instruction is legal and that FS is on, and
it is the hart's next one again: nothing of it has been done.
"""

from __future__ import annotations

from vmm.errors import InternalError
from vmm.isa.encoding import Flag
from vmm.isa.softfloat import RMM, evaluate
from vmm.isa.table import decode
from vmm.vcpu.software import SoftwareVcpu

_FS = 3 << 13


def emulate(vcpu: SoftwareVcpu) -> None:
    """Do the instruction at pc after an exit with `Exit.EMULATE`, and go past it. It counts as any other does."""
    pc = vcpu.pc
    word = vcpu.fetch(pc)
    insn = None if word is None else decode(word)
    if word is None or insn is None or not insn.flags & Flag.ROUNDS:
        raise InternalError(f"{vcpu!r} left {word} to be emulated")
    operands = insn.extract(word)
    raws = [
        (vcpu.f if insn.is_fp_register(name) else vcpu.x)[operands[name]]
        for name in ("rs1", "rs2", "rs3")
        if name in operands
    ]
    result, flags = evaluate(insn.name, RMM, *raws)
    if insn.is_fp_register("rd"):
        vcpu.f[operands["rd"]] = result
    elif operands["rd"]:
        vcpu.x[operands["rd"]] = result
    words = vcpu.words
    words["fflags"] |= flags
    words["mstatus"] |= _FS  # dirty
    words["retired"] += 1
    vcpu.pc = pc + insn.length
