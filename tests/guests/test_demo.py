"""The demo that ships with the package is what its source says, and finds nothing wrong with QEMU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.guests import qemu
from vmm.guests.demo import PROGRAM

#: The compiler that the committed program was built by.
COMPILER_VERSION = "12.2.0"


def test_it_is_small_enough_for_the_wheel() -> None:
    assert PROGRAM.read_bytes()[:4] == b"\x7fELF"
    assert PROGRAM.stat().st_size < 16 << 10


@qemu.needs_cross_compiler
def test_it_is_built_from_its_source(tmp_path: Path) -> None:
    version = subprocess.run(
        ["riscv64-unknown-elf-gcc", "-dumpfullversion"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if version != COMPILER_VERSION:
        pytest.skip(f"committed by gcc {COMPILER_VERSION}, this is {version}")
    source = tmp_path / "demo"
    shutil.copytree(PROGRAM.parent, source, ignore=shutil.ignore_patterns("*.elf", "__pycache__"))
    subprocess.run(["make", "-s", "-C", source], check=True)
    assert (source / "demo.elf").read_bytes() == PROGRAM.read_bytes()


@qemu.needs_qemu
@pytest.mark.parametrize("harts", [1, 2])
def test_it_passes_on_qemu_and_tells_of_each_hart(harts: int) -> None:
    ran = qemu.run("-bios", PROGRAM, harts=harts)
    assert ran.status == 0
    assert ran.lines[-1] == "PASS: powering off"
    table = [line.split()[0] for line in ran.lines if line.split()[1:] and line.split()[1][0].isdigit()]
    assert [word for word in table if word.isdigit() or word == "all"] == [*map(str, range(harts)), "all"]
    assert all(len(line) <= 80 for line in ran.lines if "isa" not in line and " x rv64" not in line)
