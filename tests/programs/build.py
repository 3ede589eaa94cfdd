"""The bare-metal programs of this directory as files, built when they are missing or older than their sources."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CROSS_COMPILER = "riscv64-unknown-elf-gcc"

#: Programs that print PASS and FAIL lines, and programs that print "name iterations ticks".
CHECKS = tuple(sorted(path.stem for path in HERE.glob("checks/*.c")))
SPEED = (*sorted(path.stem for path in HERE.glob("speed/*.c")), "branchy69k", "branchy685k")


def program(name: str) -> Path:
    """The ELF file of one program. FileNotFoundError without the cross compiler, RuntimeError if it does not build."""
    if shutil.which(CROSS_COMPILER) is None:
        raise FileNotFoundError(f"{CROSS_COMPILER} is not installed (Debian: gcc-riscv64-unknown-elf)")
    with open(HERE / "Makefile") as lock:  # against another run of the tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-s", "-C", HERE, f"build/{name}.elf"], capture_output=True, text=True, check=False
        )
    if made.returncode:
        raise RuntimeError(made.stderr)
    return HERE / "build" / f"{name}.elf"
