"""What is computed in registers, against QEMU's user-mode emulator: encodings of ours, run there and here."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isa.native import Probe
from tests.isa.test_floating import EDGES as FLOATS
from tests.isa.test_floating import some
from tests.isa.test_integer import EDGES as INTEGERS
from vmm.isa.encoding import Flag, Instruction
from vmm.isa.softfloat import RMM, evaluate
from vmm.isa.table import BASE

COMPILER, QEMU = shutil.which("riscv64-linux-gnu-gcc"), shutil.which("qemu-riscv64-static")
CASES = 300  # of each instruction
_ELSEWHERE = Flag.LOAD | Flag.STORE | Flag.AMO | Flag.BRANCH | Flag.JAL | Flag.JALR | Flag.CSR | Flag.SYSTEM
COMPUTATION = [insn for insn in BASE.values() if not insn.flags & _ELSEWHERE and insn.name not in ("auipc", "fence")]
_IMMEDIATES = {6: (0, 1, 31, 63), 5: (0, 1, 31), 12: (0, 1, -1, 2047, -2048), 20: (0, 1, -1, 0x7FFFF, -0x80000)}

#: x5, x6, f1, f2 and f3 are what the instruction reads; x7 and f4 are what it may write.
_STUB = """
stub{n}:
    ld   t3, 8(a0)
    fsrm t3
    ld   t0, 16(a0)
    ld   t1, 24(a0)
    fld  f1, 32(a0)
    fld  f2, 40(a0)
    fld  f3, 48(a0)
    li   t2, 0
    fmv.d.x f4, x0
    fsflags x0
    .4byte {word:#x}
    frflags t3
    sd   t2, 0(a1)
    fsd  f4, 8(a1)
    sd   t3, 16(a1)
    ret
"""
_REGISTERS = {"x": {"rd": 7, "rs1": 5, "rs2": 6}, "f": {"rd": 4, "rs1": 1, "rs2": 2, "rs3": 3}}

Case = tuple[
    Instruction, int, int, tuple[int, int], tuple[int, int, int]
]  # instruction, imm, rm, x operands, f operands


def variants() -> list[tuple[Instruction, int]]:
    """Every instruction, with each of the immediates to be tried."""
    rows = []
    for insn in COMPUTATION:
        field = insn.operands.get("imm")
        rows += [(insn, imm) for imm in (_IMMEDIATES[field.width] if field else (0,))]
    return rows


def word(insn: Instruction, imm: int) -> int:
    operands = {}
    for name in insn.operands:
        if name == "imm":
            operands[name] = imm
        else:
            operands[name] = 7 if name == "rm" else _REGISTERS["f" if insn.is_fp_register(name) else "x"][name]
    return insn.encode(**operands)


def cases(rows: list[tuple[Instruction, int]]) -> Iterator[tuple[int, Case]]:
    r = random.Random(11)
    for n, (insn, imm) in enumerate(rows):
        single = insn.name.endswith((".s", ".s.w")) or insn.name in ("fmv.x.w", "fmv.w.x") or insn.name == "fcvt.d.s"
        kind = "d" if insn.name == "fcvt.s.d" or not single else "s"
        for _ in range(CASES if imm == 0 else CASES // 10):
            x = tuple(
                r.choice(INTEGERS) if r.random() < 0.4 else r.getrandbits(64) >> r.randrange(64) for _ in range(2)
            )
            f = tuple(r.choice(FLOATS[kind]) if r.random() < 0.3 else some(kind, r) for _ in range(3))
            yield n, (insn, imm, r.randrange(5), (x[0], x[1]), (f[0], f[1], f[2]))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not COMPILER or not QEMU:
        pytest.skip("needs riscv64-linux-gnu-gcc and qemu-riscv64-static")
    directory = tmp_path_factory.mktemp("oracle")
    rows = variants()
    stubs = "".join(_STUB.format(n=n, word=word(*row)) for n, row in enumerate(rows))
    table = "".join(f"    .dword stub{n}\n" for n in range(len(rows)))
    source = directory / "stubs.s"
    source.write_text(f".text\n{stubs}\n.section .rodata\n.balign 8\n.globl stubs\nstubs:\n{table}")
    program = directory / "oracle"
    c = Path(__file__).with_name("oracle.c")
    subprocess.run([COMPILER, "-static", "-O1", "-o", program, c, source], check=True)
    return program


def test_every_computation_agrees_with_qemu(oracle: Path) -> None:
    rows = variants()
    work = list(cases(rows))
    sent = b"".join(struct.pack("<7Q", n, rm, *x, *f) for n, (_, _, rm, x, f) in work)
    assert QEMU
    received = subprocess.run(
        [QEMU, "-cpu", "rv64,zba=on,zbb=on,zbs=on", oracle], input=sent, capture_output=True, check=True
    ).stdout
    assert len(received) == 24 * len(work)
    probes = {insn.name: Probe(insn.name) for insn in COMPUTATION}
    for (rd, fd, flags), (_, (insn, imm, rm, x, f)) in zip(struct.iter_unpack("<3Q", received), work, strict=True):
        operands = {"rs1": x[0], "rs2": x[1], "f1": f[0], "f2": f[1], "f3": f[2], "imm": imm & (1 << 64) - 1}
        if rm == RMM and insn.flags & Flag.ROUNDS:
            raws = [
                f[n] if insn.is_fp_register(name) else x[n]
                for n, name in enumerate(("rs1", "rs2", "rs3"))
                if name in insn.operands
            ]
            result, raised = evaluate(insn.name, rm, *raws)
            got = (0, result, raised) if insn.is_fp_register("rd") else (result, 0, raised)
        else:
            out = probes[insn.name].run(rm % RMM, **operands)
            got = (out["rd"], out["fd"], Probe.flags(out))
        if insn.name == "ctzw" and not x[0] & 0xFFFFFFFF:
            rd = 32  # QEMU before 8.0 counts on into the high word
        assert got == (rd, fd, flags), (insn.name, imm, rm, [hex(v) for v in (*x, *f)])
