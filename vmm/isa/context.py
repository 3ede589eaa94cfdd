"""What the semantics of an instruction may ask of the tier that runs them.

Semantics are written once, as functions of a `Context`, and every tier (interpreter, translator, test harness) supplies
its own: operands become fields of a pre-decoded record, constants or SSA values. All values are `i64` unless said
otherwise, and addresses are guest virtual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # types only: `codegen` is in the same layer and is not imported at run time
    from vmm.codegen.ir import Function, Val

AmoOp = Literal["xchg", "add", "and", "or", "xor", "min", "max", "umin", "umax"]
CsrOp = Literal["write", "set", "clear"]
SystemOp = Literal[
    "ecall", "ebreak", "mret", "sret", "wfi", "sfence_vma", "fence", "fence_i",
    "cbo_inval", "cbo_clean", "cbo_flush", "cbo_zero",
]  # fmt: skip

#: Accrued exception bits, as in `fcsr` (unpriv. spec, "Floating-Point Control and Status Register").
NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16


class Context(Protocol):
    """The operands and the outside world of one instruction. x0 reads as zero; a write to it is the tier's business."""

    @property
    def f(self) -> Function:
        """The function under construction, for intrinsics and control flow."""

    @property
    def rs1(self) -> Val: ...
    @property
    def rs2(self) -> Val: ...
    @property
    def imm(self) -> Val:
        """The immediate, extended from its 16 or 24 bits as the packing of the instruction says."""

    @property
    def rs1_field(self) -> Val:
        """The five bits of the rs1 field themselves: a register number, or the immediate of `csrrwi` and friends."""

    @property
    def rm_field(self) -> Val:
        """The rounding mode field (0..4, or 7 for dynamic)."""

    @property
    def pc(self) -> Val: ...
    @property
    def next_pc(self) -> Val:
        """Address of the instruction that follows in memory: pc + 2 or pc + 4."""

    def const(self, value: int, ty: str = "i64") -> Val: ...
    def select(self, cond: Val, a: Val | int, b: Val | int) -> Val: ...

    # -- memory: `size` in bytes; a fault ends the instruction before it has changed anything --------------------------

    def load(self, addr: Val, size: int, signed: bool) -> Val: ...
    def store(self, addr: Val, size: int, value: Val) -> None: ...
    def amo(self, op: AmoOp, addr: Val, size: int, value: Val) -> Val:
        """The old value, sign-extended."""

    def lr(self, addr: Val, size: int) -> Val:
        """The value loaded, sign-extended; reserves."""

    def sc(self, addr: Val, size: int, value: Val) -> Val:
        """0 if stored, 1 if not."""

    # -- control flow: takes effect after rd has been written ---------------------------------------------------------

    def branch(self, cond: Val) -> None:
        """To pc + imm if `cond` (i1)."""

    def jal(self) -> None:
        """To pc + imm."""

    def jalr(self, target: Val) -> None: ...

    # -- system -------------------------------------------------------------------------------------------------------

    def csr(self, op: CsrOp, number: Val, operand: Val, writes: Val) -> Val:
        """The old value. `writes` (i1) is false for the forms that must not write, nor trap as if they did."""

    def system(self, op: SystemOp) -> None: ...

    # -- floating point: FS was checked and marked dirty, the rounding mode of `rm` is in force ------------------------

    def freg(self, n: int) -> Val:
        """The 64 raw bits of f[rs1], f[rs2] or f[rs3] for n = 1, 2, 3."""

    def set_freg(self, raw: Val) -> None:
        """Write the 64 raw bits of f[rd]."""

    def raise_flags(self, bits: Val | int) -> None:
        """Accrue the exception flags `bits` (i64, as in fcsr)."""
