"""Zicsr, Zifencei, the privileged instructions, and cache blocks (Zicbom, Zicboz)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.isa.context import Context, CsrOp
from vmm.isa.encoding import Flag, family

if TYPE_CHECKING:  # types only, see context.py
    from vmm.codegen.ir import Val

_CSR_NUMBER = 0xFFF


def _csr(c: Context, op: CsrOp, operand: Val) -> Val:
    """`csrrw` always writes; `csrrs` and `csrrc` do not if their rs1 *field* is 0 (unpriv. spec, "Zicsr").

    That `csrrw` with rd = x0 must not read is not observable: no CSR here has a side effect on reading.
    """
    writes = c.const(1, "i1") if op == "write" else c.rs1_field.ne(0)
    return c.csr(op, c.imm & _CSR_NUMBER, operand, writes)


# fmt: off
ZICSR = (
    *family("Zicsr", "rd, csr, rs1", Flag.CSR, [
        ("csrrw", "uimm[11:0] rs1 001 rd 1110011", lambda c: _csr(c, "write", c.rs1), "read and write CSR"),
        ("csrrs", "uimm[11:0] rs1 010 rd 1110011", lambda c: _csr(c, "set", c.rs1),   "read CSR and set bits"),
        ("csrrc", "uimm[11:0] rs1 011 rd 1110011", lambda c: _csr(c, "clear", c.rs1), "read CSR and clear bits"),
    ]),
    *family("Zicsr", "rd, csr, zimm", Flag.CSR, [
        ("csrrwi", "uimm[11:0] rs1 101 rd 1110011", lambda c: _csr(c, "write", c.rs1_field), "read and write CSR, immediate"),
        ("csrrsi", "uimm[11:0] rs1 110 rd 1110011", lambda c: _csr(c, "set", c.rs1_field),   "read and set bits, immediate"),
        ("csrrci", "uimm[11:0] rs1 111 rd 1110011", lambda c: _csr(c, "clear", c.rs1_field), "read and clear bits, immediate"),
    ]),
)

ZIFENCEI = family("Zifencei", "", Flag.SYSTEM, [
    ("fence.i", "------------ ----- 001 ----- 0001111", lambda c: c.system("fence_i"), "see instructions written so far"),
])

PRIVILEGED = (
    *family("I", "", Flag.SYSTEM, [
        ("ecall",  "000000000000 00000 000 00000 1110011", lambda c: c.system("ecall"),  "call the environment"),
        ("ebreak", "000000000001 00000 000 00000 1110011", lambda c: c.system("ebreak"), "call the debugger"),
    ]),
    *family("privileged", "", Flag.SYSTEM, [
        ("sret", "0001000 00010 00000 000 00000 1110011", lambda c: c.system("sret"), "return from S-mode trap"),
        ("mret", "0011000 00010 00000 000 00000 1110011", lambda c: c.system("mret"), "return from M-mode trap"),
        ("wfi",  "0001000 00101 00000 000 00000 1110011", lambda c: c.system("wfi"),  "wait for interrupt"),
    ]),
    *family("privileged", "rs1, rs2", Flag.SYSTEM, [
        ("sfence.vma", "0001001 rs2 rs1 000 00000 1110011", lambda c: c.system("sfence_vma"), "see page tables written so far"),
    ]),
)

ZICBOM = family("Zicbom", "(rs1)", Flag.SYSTEM, [
    ("cbo.inval", "000000000000 rs1 010 00000 0001111", lambda c: c.system("cbo_inval"), "invalidate cache block"),
    ("cbo.clean", "000000000001 rs1 010 00000 0001111", lambda c: c.system("cbo_clean"), "write back cache block"),
    ("cbo.flush", "000000000010 rs1 010 00000 0001111", lambda c: c.system("cbo_flush"), "write back and invalidate"),
])

ZICBOZ = family("Zicboz", "(rs1)", Flag.SYSTEM, [
    ("cbo.zero", "000000000100 rs1 010 00000 0001111", lambda c: c.system("cbo_zero"), "write zeros to cache block"),
])
# fmt: on
