"""Harts with memory and code of a test's making, without a machine around them."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tests.vcpu.asm import assemble
from vmm.fabric.clock import Clock
from vmm.fabric.ram import Ram
from vmm.testing.fakes import FakeIoThread
from vmm.vcpu.emulate import emulate
from vmm.vcpu.layout import Exit, Mmio
from vmm.vcpu.software import SoftwareBackend, SoftwareVcpu

BASE = 0x8000_0000
DATA = BASE + (4 << 20)  # far from the code
HANDLER = BASE + (8 << 20)
TABLES = BASE + (12 << 20)
DEVICE = 0x1000_0000
PLIC, CLINT = 0xC00_0000, 0x200_0000
PATIENCE = 20.0  # seconds until a test that waits for another thread fails


class Bench:
    """`harts` harts at BASE, with `sbi` in S-mode. Time runs."""

    def __init__(self, harts: int = 1, *, sbi: bool = False, megabytes: int = 32, jit: bool = False) -> None:
        self.ram = Ram(BASE, megabytes << 20)
        self.home = FakeIoThread()
        self.clock = Clock(self.home)
        self.backend = SoftwareBackend(self.ram, self.clock, harts, plic_base=PLIC, clint_base=CLINT, sbi=sbi, jit=jit)
        self.harts = self.backend.vcpus
        self.hart = self.harts[0]
        self.clock.resume()
        for hart in self.harts:
            hart.pc = BASE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.ram.close()

    # -- memory -------------------------------------------------------------------------------------------------------

    def put(self, address: int, data: bytes) -> None:
        """Write as a device does."""
        at = address - BASE
        self.ram.view[at : at + len(data)] = data
        self.ram.written(address, len(data))

    def code(self, text: str, at: int = BASE) -> int:
        """Assemble to `at`; the address behind it."""
        data = assemble(text)
        self.put(at, data)
        return at + len(data)

    def get(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.ram.view[address - BASE : address - BASE + size], "little")

    def set(self, address: int, value: int, size: int = 8) -> None:
        self.put(address, value.to_bytes(size, "little"))

    # -- running ------------------------------------------------------------------------------------------------------

    def steps(self, text: str, hart: int = 0, at: int = BASE, **registers: int) -> SoftwareVcpu:
        """Run this code from its first instruction to its last, with x registers as given (`x5=...`)."""
        end = self.code(text, at)
        h = self.harts[hart]
        h.pc = at
        for name, value in registers.items():
            (h.f if name[0] == "f" else h.x)[int(name[1:])] = value & (1 << 64) - 1
        for _ in range(10_000):
            if h.pc == end:
                return h
            assert h.run(1) == Exit.BUDGET
        raise AssertionError(f"{h!r} does not come to the end")

    def trap(self, text: str, hart: int = 0, at: int = BASE, **registers: int) -> tuple[int, int, int]:
        """Run one instruction that traps to M-mode: mcause, mepc relative to `at`, mtval. The mode stays as it was."""
        h = self.harts[hart]
        h.set_csr("mtvec", HANDLER)
        self.code(text, at)
        h.pc = at
        for name, value in registers.items():
            h.x[int(name[1:])] = value & (1 << 64) - 1
        mode, traps, status = h.privilege, h.words["trap_count"], h.csr("mstatus")
        assert h.run(1) == Exit.BUDGET
        assert h.words["trap_count"] == traps + 1, "it did not trap"
        assert h.pc == HANDLER
        h.privilege = mode
        h.set_csr("mstatus", status)
        return h.csr("mcause"), h.csr("mepc") - at, h.csr("mtval")

    def load(self, address: int, size: int = 4, hart: int = 0) -> int:
        """What the guest reads there."""
        name = {1: "lbu", 2: "lhu", 4: "lwu", 8: "ld"}[size]
        return self.steps(f"{name} x5, 0(x6)", hart, x6=address).x[5]

    def store(self, address: int, value: int, size: int = 4, hart: int = 0) -> None:
        name = {1: "sb", 2: "sh", 4: "sw", 8: "sd"}[size]
        self.steps(f"{name} x5, 0(x6)", hart, x5=value, x6=address)

    def until_exit(self, hart: int = 0, budget: int | None = None) -> Exit:
        """Run on; what is emulated is not an exit."""
        h = self.harts[hart]
        while (reason := h.run(budget)) == Exit.EMULATE:
            emulate(h)
        return Exit(reason)

    def answer(self, value: int = 0, state: int = Mmio.DONE, hart: int = 0) -> None:
        h = self.harts[hart]
        h.mmio_value[0] = value
        h.mmio_state[0] = state

    @contextmanager
    def running(self, hart: int = 0) -> Iterator[list[Exit]]:
        """Run a hart on another thread. At the end of the block it is kicked out; the list then holds its exits."""
        exits: list[Exit] = []

        def main() -> None:
            exits.append(Exit(self.harts[hart].run()))

        thread = threading.Thread(target=main)
        thread.start()
        try:
            yield exits
        finally:
            self.harts[hart].kick()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def until(happened: Callable[[], bool]) -> None:
    """Wait for another thread, giving it the processor."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        os.sched_yield()


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)
