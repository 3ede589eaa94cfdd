"""A guest in machine mode whose harts each run a script: loads and stores anywhere, of any size, whatever they trap on.

A script is made by the test, mostly at random. The guest that runs it stands in memory that no script and no device is
pointed at, takes every trap, and goes on with the next line. When all harts are through their scripts, hart 0 puts the
UART in order and prints "done".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.assembler import RAM_BASE, assemble
from tests.machine.files import elf

SCRIPTS = RAM_BASE + 0x1_0000
SCRIPT_BYTES = 0x4_0000
BOARD = RAM_BASE + 0x3F_0000
"""A page for what scripts agree on; random addresses are never in it. Zero at first."""
SANDBOX = RAM_BASE + 0x40_0000
"""Memory that scripts, devices and random code may do with as they like."""
SANDBOX_BYTES = 0x10_0000
LINE = struct.Struct("<QQQ")

#: What a line can do with its address (a0) and its value (a1), in at most three instructions.
_OPERATIONS = {
    "load1": "lbu t1, 0(a0)",
    "load2": "lhu t1, 0(a0)",
    "load4": "lwu t1, 0(a0)",
    "load8": "ld t1, 0(a0)",
    "store1": "sb a1, 0(a0)",
    "store2": "sh a1, 0(a0)",
    "store4": "sw a1, 0(a0)",
    "store8": "sd a1, 0(a0)",
    "float": "flw ft0, 0(a0); fsd ft0, 0(a0)",
    "amo4": "amoadd.w t1, a1, (a0)",
    "amo8": "amoswap.d t1, a1, (a0)",
    "reserve4": "lr.w t1, (a0); sc.w t2, a1, (a0)",
    "reserve8": "lr.d t1, (a0); sc.d t2, a1, (a0)",
    "zero": "cbo.zero (a0)",
    "translated_load": "csrs mstatus, s3; ld t1, 0(a0)",
    "translated_store": "csrs mstatus, s3; sd a1, 0(a0)",
    "translated_byte": "csrs mstatus, s3; lb t1, 0(a0)",
    "satp": "csrw satp, a1; sfence.vma zero, zero",
    "satp_only": "csrw satp, a1",
    "fence_address": "sfence.vma a0, zero",
    "fence_i": "fence.i",
    "interrupts": "csrw mie, a1",
    "enable": "csrs mstatus, a1",
    "wfi": "wfi",
    "delegate": "csrw medeleg, a1; csrw mideleg, a1",
    "stvec": "csrw stvec, a1",
    "until": "j until",
    "spin": "j spin",
    "again": "j again",
    "leave": "j leave",
    "end": "j end",
}
OPERATIONS = {name: number for number, name in enumerate(_OPERATIONS)}


_RUNNER = """
            # s0 line, s1 operations, s3 MPRV and MPP = S, s4 all of MPRV and MPP, s5 traps, s6 next, s7 MPP = M,
            # s8 hart, s9 rounds left
    start:  mv    s8, a0
            la    t0, trap; csrw mtvec, t0
            la    t0, saved; slli t1, s8, 7; add t0, t0, t1; csrw mscratch, t0
            la    s1, table
            la    s6, next
            li    s3, 0x20800; li s4, 0x21800; li s7, 0x1800
            li    s5, 0
            li    t0, 0x6000; csrs mstatus, t0
            li    t0, -1; csrw menvcfg, t0
            # S- and U-mode may touch all but this program and the finisher (priv. spec 3.7.1)
            li    t0, (RAM_BASE >> 2) | 0x7ffff; csrw pmpaddr0, t0
            li    t0, (0x100000 >> 2) | 0x1ff; csrw pmpaddr1, t0
            li    t0, -1; csrw pmpaddr2, t0
            li    t0, 0x1f1818; csrw pmpcfg0, t0
            li    t0, SCRIPT_BYTES; mul t0, t0, s8; li s0, SCRIPTS; add s0, s0, t0
            ld    s9, 0(s0); addi s0, s0, 8

    next:   csrc  mstatus, s4
            ld    t0, 0(s0); ld a0, 8(s0); ld a1, 16(s0)
            addi  s0, s0, 24
            slli  t0, t0, 4; add t0, t0, s1
            jr    t0

    again:  addi  s9, s9, -1                # run the script once more, if there are rounds left
            beqz  s9, next
            li    t0, SCRIPT_BYTES; mul t0, t0, s8; li s0, SCRIPTS + 8; add s0, s0, t0
            j     next

    until:  ld    t1, 0(a0); bltu t1, a1, until     # another hart puts a1 or more there
            j     next

    spin:   addi  a1, a1, -1; bnez a1, spin         # a1 times
            j     next

            # to a0 in mode a1 (bits 1:0), for a1 >> 2 ticks at most
    leave:  csrrci zero, mstatus, 8         # the time may be over before mret
            csrr  t0, mscratch
            sd    s0, 0(t0); sd s1, 8(t0); sd s3, 16(t0); sd s4, 24(t0); sd s5, 32(t0); sd s6, 40(t0); sd s7, 48(t0)
            sd    s8, 56(t0); sd s9, 64(t0)
            csrw  mepc, a0
            andi  t0, a1, 3; slli t0, t0, 11; csrs mstatus, t0
            srli  t0, a1, 2; csrr t1, time; add t0, t0, t1
            li    t1, 0x2004000; slli t2, s8, 3; add t1, t1, t2; sd t0, 0(t1)
            li    t0, 0x80; csrw mie, t0
            li    t0, SANDBOX; li t1, SANDBOX_BYTES / 2; add sp, t0, t1; mv gp, t0; mv tp, t0
            addi  ra, t0, 64; mv s0, t0; addi s1, t0, 1024; li s2, 0x10000000; li s3, 0x10001000; li s4, 0xc000000
            mret

    trap:   csrr  t0, mstatus; srli t0, t0, 11; andi t0, t0, 3; addi t0, t0, -3
            beqz  t0, mine
            csrr  t0, mscratch
            ld    s0, 0(t0); ld s1, 8(t0); ld s3, 16(t0); ld s4, 24(t0); ld s5, 32(t0); ld s6, 40(t0); ld s7, 48(t0)
            ld    s8, 56(t0); ld s9, 64(t0)
    mine:   addi  s5, s5, 1
            csrr  t0, mcause
            bgez  t0, back
            csrw  mie, zero
    back:   csrw  mepc, s6
            csrs  mstatus, s7
            mret

    end:    csrw  mie, zero
            la    t0, done; li t1, 1
            amoadd.d t2, t1, (t0)
            bnez  s8, sleep
    wait:   ld    t1, 0(t0); ld t2, harts - done(t0); bltu t1, t2, wait
            sd    zero, 0(t0)
            li    t0, 0x10000000            # UART: 115200 8N1, no interrupts, no loop back, empty FIFOs
            li    t1, 0x80; sb t1, 3(t0); li t1, 2; sb t1, 0(t0); sb zero, 1(t0); li t1, 3; sb t1, 3(t0)
            sb    zero, 1(t0); li t1, 7; sb t1, 2(t0); sb zero, 4(t0)
            la    a0, text
    put:    lbu   t1, 0(a0); beqz t1, sleep
    full:   lbu   t2, 5(t0); andi t2, t2, 0x20; beqz t2, full
            sb    t1, 0(t0); addi a0, a0, 1; j put
    sleep:  wfi
            j     sleep

            .align 16
    table:  TABLE
            .align 8
    done:   .dword 0
    harts:  .dword HARTS
    text:   .byte 10; .ascii done
            .align 8
    saved:  .zero 128 * 32
"""


class Line(NamedTuple):
    operation: str
    address: int = 0
    value: int = 0


Script = Sequence[Line]

_MEETINGS = BOARD + 0xF00


def meet(number: int, harts: int) -> list[Line]:
    """All harts wait here for each other; each meeting of a program has its own number, from 0."""
    return [Line("amo4", _MEETINGS + 8 * number, 1), Line("until", _MEETINGS + 8 * number, harts)]


def program(folder: Path, scripts: Sequence[Script], *, rounds: int = 1, memory: bytes = b"") -> Path:
    """An ELF file for `--bios`, with one script for each hart, each run `rounds` times. `memory` is put into the
    sandbox."""
    names = {
        "RAM_BASE": RAM_BASE,
        "SCRIPTS": SCRIPTS,
        "SCRIPT_BYTES": SCRIPT_BYTES,
        "SANDBOX": SANDBOX,
        "SANDBOX_BYTES": SANDBOX_BYTES,
        "HARTS": len(scripts),
    }
    code = assemble(
        _RUNNER.replace("TABLE", "\n".join(f"{text}; j next; .align 16" for text in _OPERATIONS.values())), **names
    )
    assert len(code) <= SCRIPTS - RAM_BASE
    segments = [(RAM_BASE, code, len(code))]
    for hart, script in enumerate(scripts):
        lines = [*script, Line("again"), Line("end")]
        data = rounds.to_bytes(8, "little") + b"".join(
            LINE.pack(OPERATIONS[line.operation], line.address % (1 << 64), line.value % (1 << 64)) for line in lines
        )
        assert len(data) <= SCRIPT_BYTES
        segments.append((SCRIPTS + hart * SCRIPT_BYTES, data, len(data)))
    segments.append((BOARD, b"", 0x1000))
    segments.append((SANDBOX, memory, SANDBOX_BYTES))
    path = folder / "scripted.elf"
    path.write_bytes(elf(segments))
    return path
