"""QEMU's `virt` board, the machine that our guests and bare-metal programs are first held against."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

QEMU = "qemu-system-riscv64"

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
needs_cross_compiler = pytest.mark.skipif(
    shutil.which("riscv64-unknown-elf-gcc") is None, reason="riscv64-unknown-elf-gcc is not installed"
)


@dataclass(frozen=True)
class Run:
    """What a guest printed, in lines, and the code that it gave to the test finisher."""

    lines: list[str]
    status: int

    def starting_with(self, word: str) -> list[str]:
        return [line.removeprefix(word).strip() for line in self.lines if line.startswith(word)]


def run(*arguments: str | Path, harts: int = 1, qemu: tuple[str, ...] = (QEMU,), limit: float = 100) -> Run:
    """Boot with QEMU's own arguments until the guest powers off; `limit` in seconds."""
    done = subprocess.run(
        [*qemu, "-M", "virt", "-smp", str(harts), "-nographic", "-monitor", "none", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=limit,
        check=False,
    )
    return Run(done.stdout.decode(errors="replace").splitlines(), done.returncode)
