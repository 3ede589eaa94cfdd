"""Instructions that generated code leaves to Python: floating point rounded to nearest, ties away from zero (RMM).

The host's MXCSR has no such mode. Generated code has already found that the instruction is legal and that FS is on, and
it is the hart's next one again: nothing of it has been done.
"""

from __future__ import annotations

from vmm.isa.softfloat import RMM, evaluate
from vmm.isa.table import decode
from vmm.vcpu.software import SoftwareVcpu

_FS = 3 << 13
_DYNAMIC = 7  # the instruction's rounding mode is that in frm


def emulate(vcpu: SoftwareVcpu) -> None:
    """Do the instruction at pc after an exit with `Exit.EMULATE`, and go past it. It counts as any other does.

    If another hart has meanwhile put something else there, that is left to generated code.
    """
    pc, words = vcpu.pc, vcpu.words
    word = vcpu.fetch(pc)
    insn = None if word is None else decode(word)
    operands = {} if word is None or insn is None else insn.extract(word)
    mode = operands.get("rm")
    if insn is None or (words["frm"] if mode == _DYNAMIC else mode) != RMM:
        vcpu.flush()
        return
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
    words["fflags"] |= flags
    words["mstatus"] |= _FS  # dirty
    words["retired"] += 1
    vcpu.pc = pc + insn.length
