"""Litmus tests between a hart and a device thread, through guest RAM: message passing, store buffering.

The device's side uses what devices use: `Dma`'s words (acquire, release) and fence.
"""

from __future__ import annotations

import struct
import threading

from vmm.fabric.clock import Clock
from vmm.fabric.dma import Dma
from vmm.fabric.ram import Ram
from vmm.isa.table import INSTRUCTIONS
from vmm.testing.fakes import FakeIoThread
from vmm.vcpu.layout import Exit
from vmm.vcpu.software import SoftwareBackend

BASE = 0x8000_0000
GO, X, Y, SEEN, DONE = (BASE + 0x1_0000 + 0x100 * i for i in range(5))  # a cache line of its own each
ROUNDS = 1000
_T0, _LAST, _GO, _X, _Y, _SEEN, _DONE = 5, 7, 10, 11, 12, 13, 14
FENCE = ("fence", {"pred": 3, "succ": 3})


def load(rd: int, base: int) -> tuple[str, dict[str, int]]:
    return "ld", {"rd": rd, "rs1": base, "imm": 0}


def store(rs2: int, base: int) -> tuple[str, dict[str, int]]:
    return "sd", {"rs2": rs2, "rs1": base, "imm": 0}


def play(body: list[tuple[str, dict[str, int]]], device: list[str]) -> list[tuple[int, int]]:
    """Both sides run `ROUNDS` rounds side by side; (what the hart saw, what the device saw) of each, as the age of the
    value: 0 is this round's.

    Round i writes i. The hart waits for i in GO, runs `body` with i in t0, and stores i in DONE; the device does its
    steps between: "x" and "y" read, "Y" writes, "fence" orders.
    """
    with Ram(BASE, 32 << 20) as ram:
        dma = Dma(ram)
        rounds = [("addi", {"rd": _LAST, "rs1": _LAST, "imm": 1})]
        wait = [load(_T0, _GO), ("bne", {"rs1": _T0, "rs2": _LAST, "imm": -4})]
        program = [*rounds, *wait, *body, FENCE, store(_T0, _DONE)]
        program.append(("jal", {"rd": 0, "imm": -4 * len(program)}))
        for i, (name, operands) in enumerate(program):
            struct.pack_into("<I", ram.view, 4 * i, INSTRUCTIONS[name].encode(**operands))
        backend = SoftwareBackend(ram, Clock(FakeIoThread()), 1, plic_base=0xC00_0000, clint_base=0x200_0000, sbi=True)
        hart = backend.vcpus[0]
        hart.start_at(BASE, 0, 0)
        for register, address in ((_GO, GO), (_X, X), (_Y, Y), (_SEEN, SEEN), (_DONE, DONE)):
            hart.x[register] = address
        ended: list[int] = []
        thread = threading.Thread(target=lambda: ended.append(hart.run()), name="vcpu0")
        thread.start()
        outcomes = []
        for i in range(1, ROUNDS + 1):
            saw = 0
            dma.put_u64(GO, i)
            for step in device:
                if step == "Y":
                    dma.put_u64(Y, i)
                elif step == "fence":
                    dma.fence()
                elif step == "await y":
                    while dma.u64(Y) != i:
                        pass
                else:
                    saw = i - dma.u64(X)
            while dma.u64(DONE) != i:
                pass
            outcomes.append((i - dma.u64(SEEN), saw))
        hart.kick()
        thread.join(10)
        assert ended == [Exit.KICK]
        return outcomes


def test_a_device_that_sees_a_harts_flag_sees_what_was_written_before_it() -> None:
    outcomes = play([store(_T0, _X), FENCE, store(_T0, _Y)], ["await y", "x"])
    assert {device for _, device in outcomes} == {0}


def test_of_a_hart_and_a_device_that_write_fence_and_read_one_at_least_sees_the_other() -> None:
    outcomes = play([store(_T0, _X), FENCE, load(6, _Y), store(6, _SEEN)], ["Y", "fence", "x"])
    assert all(hart == 0 or device == 0 for hart, device in outcomes)
