"""All of the software VCPU's native code as one image: `native_text()` makes it, `vmm.vcpu.software` caches it."""

from __future__ import annotations

from vmm.vcpu.native import csr, decoder, entry, fusion, handlers, irqchip, memory, sbi, translator, traps
from vmm.vcpu.native.abi import Native


def native_text() -> str:
    """The LLVM text of the whole module."""
    native = Native()
    for part in (memory, traps, csr, irqchip, sbi, decoder, fusion, handlers, translator, entry):
        part.define(native)
    return native.m.text()
