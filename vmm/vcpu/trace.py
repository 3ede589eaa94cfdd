"""Traces of what harts do: every exit to Python (`--trace-exits`), every instruction (`--trace-exec`).

Both are threads of another kind, so that a run without traces pays nothing for them. An instruction trace steps the
hart by exact budgets of one; it shows what changed, and the trap if one was taken.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TextIO

from vmm.isa.disasm import disassemble, register_names
from vmm.vcpu.layout import Exit, Mmio
from vmm.vcpu.thread import VcpuThread

_CSRS = (
    *("mstatus", "mie", "medeleg", "mideleg", "mtvec", "mscratch", "mepc", "mcause", "mtval", "menvcfg"),
    *("stvec", "sscratch", "sepc", "scause", "stval", "satp", "stimecmp", "frm"),
)
_SETTLED = (Exit.BUDGET, Exit.KICK)


class TracedVcpuThread(VcpuThread):
    """A VCPU thread that writes down what it does. Harts share the files: each line is one `write`."""

    def __init__(self, *args: Any, exits: TextIO | None, instructions: TextIO | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exits_to = exits
        self._x_names, self._f_names = register_names(numeric=False)
        if instructions is not None:
            self._enter = partial(self._step, instructions)

    def _handle(self, reason: int) -> bool:
        if reason == Exit.BUDGET:
            return not self._gate.must_hold(self)
        arguments = self._arguments(reason)
        again = super()._handle(reason)
        if self._exits_to is not None and reason not in _SETTLED:
            self._exits_to.write(
                f"{self.name} {self.vcpu.pc:#018x} {Exit(reason).name} {arguments}{self._answer(reason)}\n"
            )
        return again

    def _arguments(self, reason: int) -> str:
        v = self.vcpu
        if reason == Exit.MMIO_READ:
            return f"{v.mmio_addr[0]:#x}/{v.mmio_size[0]}"
        if reason == Exit.MMIO_WRITE:
            return f"{v.mmio_addr[0]:#x}/{v.mmio_size[0]} <- {v.mmio_value[0]:#x}"
        if reason == Exit.SBI:
            return f"extension {v.x[17]:#x} function {v.x[16]} ({', '.join(hex(a) for a in v.x[10:16])})"
        return ""

    def _answer(self, reason: int) -> str:
        v = self.vcpu
        if reason in (Exit.MMIO_READ, Exit.MMIO_WRITE) and v.mmio_state[0] == Mmio.FAULT:
            return " faults"
        if reason == Exit.MMIO_READ:
            return f" -> {v.mmio_value[0]:#x}"
        return f" -> {v.x[10]:#x}, {v.x[11]:#x}" if reason == Exit.SBI else ""

    def _step(self, out: TextIO) -> int:
        """One instruction, and a line about it."""
        v = self.vcpu
        w = v.words
        pc, x, f = v.pc, list(v.x[:32]), list(v.f)
        csrs, traps, steps = [w[name] for name in _CSRS], w["trap_count"], v.instructions
        word = v.fetch(pc)
        reason = v.run(1)
        if v.instructions == steps:  # it left to Python before it was done, and will come again
            return reason
        changes = [f"{self._x_names[i]}={v.x[i]:#x}" for i in range(1, 32) if v.x[i] != x[i]]
        changes += [f"{self._f_names[i]}={v.f[i]:#x}" for i in range(32) if v.f[i] != f[i]]
        changes += [f"{name}={w[name]:#x}" for name, old in zip(_CSRS, csrs, strict=True) if w[name] != old]
        text = "(fetch faults)" if word is None else f"{word:08x} {disassemble(word, pc)}"
        trap = " TRAP" if w["trap_count"] != traps else ""
        out.write(f"{self.name} {pc:#018x} {text}{trap}  {' '.join(changes)}".rstrip() + "\n")
        return reason
