"""tools/first_divergence.py finds what differs, and nothing where nothing does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.vcpu.asm import assemble
from tools.first_divergence import main

pytestmark = pytest.mark.skipif(not shutil.which("qemu-system-riscv64"), reason="needs qemu-system-riscv64")

#: A loop with all that may differ: devices, time, a timer interrupt, a wait, floating point, a CSR that is unlike.
HONEST = """
    auipc x5,0; addi x5,x5,128; csrrw x0,mtvec,x5
    lui x6,6; csrrs x0,mstatus,x6
    csrrs x7,marchid,x0; csrrs x7,time,x0; csrrs x7,mcycle,x0
    lui x8,0x10000; lbu x9,5(x8); addi x10,x0,65; sb x10,0(x8)
    lui x11,0x200c; ld x12,-8(x11)
    addi x12,x12,200; lui x13,0x2004; sd x12,0(x13)
    addi x14,x0,128; csrrw x0,mie,x14; csrrwi x0,mstatus,8
    fcvt.d.l f1,x14; fdiv.d f2,f1,f1; fsqrt.d f3,f1
    top: addi x15,x15,1; sd x15,0(x5); amoadd.d x16,x15,(x5); wfi; jal x0,top
"""
HANDLER = "csrrs x17,mcause,x0; addi x18,x0,-1; sd x18,0(x13); csrrw x0,mie,x0; mret"


def run(program: bytes, directory: Path, *options: str) -> int:
    image = directory / "program.bin"
    image.write_bytes(program)
    return main(["--mem", "32", *options, "--", "-bios", str(image)])


def test_a_program_that_behaves_shows_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = assemble(HONEST)
    assert len(code) <= 128
    program = code.ljust(128, b"\0") + assemble(HANDLER)
    assert run(program, tmp_path, "--count", "40") == 0
    report = capsys.readouterr().out
    assert report.startswith("40 instructions compared; 1 interrupts and ")
    assert "marchid (1)" in report


def test_the_first_difference_is_shown_with_what_led_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """clmul: QEMU has it, the harts here do not."""
    program = assemble("addi x6,x0,3; addi x7,x0,7; .word 0x0a7312b3; c.nop; top: jal x0,top")
    assert run(program, tmp_path, "--count", "100", "--cpu", "rv64,h=off,zbc=on") == 1
    report = capsys.readouterr().out
    assert report.startswith("after 2 instructions they differ.")
    assert "0a7312b3" in report.splitlines()[3]
    assert any(line.split()[:1] == ["t0"] and line.split()[2].endswith("9") for line in report.splitlines())


def test_a_window_begins_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = assemble("addi x6,x0,3; .word 0x0a7312b3; addi x5,x5,1; top: addi x6,x6,1; jal x0,top")
    options = ("--from", "8000000c", "--count", "30", "--windows", "2", "--every", "0.01", "--cpu", "rv64,h=off,zbc=on")
    assert run(program, tmp_path, *options) == 0
    assert capsys.readouterr().out.startswith("60 instructions compared")


def test_a_qemu_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(b"\0" * 4, tmp_path, "--qemu", "no-such-qemu") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_qemu_that_does_not_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--", "-bios", str(tmp_path / "missing")]) == 2
    assert "missing" in capsys.readouterr().err
