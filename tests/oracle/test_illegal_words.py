"""Words that the tables call illegal, by QEMU's system emulator: it must trap on each of them, with the same mtval.

All 16-bit words that decode to nothing, and 32-bit words that are nearly an instruction.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.oracle.program import code, op
from vmm.fabric.clock import Clock
from vmm.fabric.ram import Ram
from vmm.isa.table import INSTRUCTIONS, decode, length
from vmm.testing.fakes import FakeIoThread
from vmm.vcpu.layout import Cause, Exit
from vmm.vcpu.software import SoftwareBackend

BASE, SIZE = 0x8000_0000, 64 << 20
UART, FINISHER = 0x1000_0000, 0x10_0000
MSTATUS, MTVEC, MEPC, MCAUSE, MTVAL = 0x300, 0x305, 0x341, 0x342, 0x343
NOP = 0x0001

QEMU = shutil.which("qemu-system-riscv64")
#: Without the extensions that QEMU's processor has and this one lacks.
CPU = "rv64,h=off,zbc=off"

Trap = tuple[int, int, int]  # mepc, mcause, mtval


def nearly_instructions(count: int) -> list[int]:
    """32-bit words that decode to nothing, a few bits away from ones that do."""
    r = random.Random(9)
    rows = [insn for insn in INSTRUCTIONS.values() if insn.length == 4]
    words: list[int] = []
    while len(words) < count:
        insn = r.choice(rows)
        word = insn.match | r.getrandbits(32) & ~insn.mask
        for _ in range(r.randrange(1, 4)):
            word ^= 1 << r.randrange(2, 32)
        if decode(word) is None:
            words.append(word)
    return words


def program(words: list[int]) -> bytes:
    """Runs each word, writes down its trap 16 MiB further on, and sends what it wrote to the UART."""
    handler = [
        *(op("csrrs", rd=n, imm=csr) for n, csr in ((9, MEPC), (10, MCAUSE), (11, MTVAL))),
        *(op("sd", rs1=8, rs2=9 + k, imm=8 * k) for k in range(3)),
        *(op("addi", rd=8, rs1=8, imm=24), op("addi", rd=9, rs1=9, imm=4)),
        *(op("csrrw", rs1=9, imm=MEPC), op("mret")),
    ]
    start = [
        *(op("auipc", rd=5), op("addi", rd=5, rs1=5, imm=8 * 4), op("csrrw", rs1=5, imm=MTVEC)),
        *(op("lui", rd=6, imm=6), op("csrrs", rs1=6, imm=MSTATUS)),  # FS on
        *(op("auipc", rd=8, imm=0x1000), op("addi", rd=13, rs1=8)),
        op("jal", imm=4 + 4 * len(handler)),
    ]
    finish = [
        op("lui", rd=12, imm=UART >> 12),
        *(op("lbu", rd=11, rs1=13), op("sb", rs1=12, rs2=11), op("addi", rd=13, rs1=13, imm=1)),
        op("bne", rs1=13, rs2=8, imm=-12),
        *(op("lui", rd=12, imm=FINISHER >> 12), op("lui", rd=11, imm=5), op("addi", rd=11, rs1=11, imm=0x555)),
        *(op("sw", rs1=12, rs2=11), op("jal", imm=0)),
    ]
    body = b"".join(code([w] if length(w) == 4 else [w, NOP]) for w in words)
    return code(start + handler) + body + code(finish)


def traps(records: bytes) -> list[Trap]:
    return list(struct.iter_unpack("<3Q", records[: len(records) // 24 * 24]))


def expected(words: list[int]) -> list[Trap]:
    begin = BASE + len(program([])) - 10 * 4
    return [(begin + 4 * i, Cause.ILLEGAL, w) for i, w in enumerate(words)]


def by_qemu(words: list[int], directory: Path) -> list[Trap]:
    image, out = directory / "words.bin", directory / "traps"
    image.write_bytes(program(words))
    subprocess.run(
        [
            *(str(QEMU), "-M", "virt", "-cpu", CPU, "-m", "64M", "-bios", str(image), "-display", "none"),
            *("-monitor", "none", "-serial", f"file:{out}"),
        ],
        check=True,
        timeout=60,
    )
    return traps(out.read_bytes())


def by_vcpu(words: list[int]) -> list[Trap]:
    with Ram(BASE, SIZE) as ram:
        backend = SoftwareBackend(ram, Clock(FakeIoThread()), 1, plic_base=0xC00_0000, clint_base=0x200_0000, sbi=False)
        image = program(words)
        ram.view[: len(image)] = image
        v = backend.vcpus[0]
        v.pc = BASE
        assert v.run() == Exit.MMIO_WRITE
        return traps(bytes(ram.view[v.x[13] - BASE : v.x[8] - BASE]))


@pytest.fixture(scope="module")
def words() -> list[int]:
    return [w for w in range(1 << 16) if w & 3 != 3 and decode(w) is None] + nearly_instructions(20_000)


def test_what_the_tables_call_illegal_traps_here(words: list[int]) -> None:
    assert by_vcpu(words) == expected(words)


@pytest.mark.skipif(not QEMU, reason="needs qemu-system-riscv64")
def test_what_the_tables_call_illegal_traps_in_qemu(words: list[int], tmp_path: Path) -> None:
    assert by_qemu(words, tmp_path) == expected(words)
