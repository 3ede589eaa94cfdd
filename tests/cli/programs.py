"""Bare-metal programs for the command line's tests, a few instructions each."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.machine.files import elf

A0, T0, T1 = 10, 5, 6
UART, FINISHER = 0x1000_0000, 0x10_0000
PASS, FAIL, RESET = 0x5555, 0x3333, 0x7777


def li(register: int, value: int) -> list[int]:
    """lui, addiw"""
    low = (value & 0xFFF) - ((value & 0x800) << 1)
    high = (value - low) >> 12 & 0xFFFFF
    return [high << 12 | register << 7 | 0x37, (low & 0xFFF) << 20 | register << 15 | register << 7 | 0x1B]


def store(width: int, value: int, base: int) -> int:
    """sb, sh, sw, sd by width 0 to 3"""
    return value << 20 | base << 15 | width << 12 | 0x23


def say(text: str) -> list[int]:
    words = li(T0, UART)
    for byte in text.encode():
        words += [*li(T1, byte), store(0, T1, T0)]
    return words


def finish(value: int) -> list[int]:
    return [*li(T0, FINISHER), *li(T1, value), store(2, T1, T0), *FOREVER]


FOREVER = [0x1050_0073, 0xFFDF_F06F]
"""wfi; j -4"""

SPIN = [0x0000_006F]
"""j ."""

ILLEGAL = [0x0000_0000]


def program(folder: Path, *parts: list[int]) -> Path:
    """An ELF file of instructions, for `--bios`."""
    words = [word for part in parts for word in part]
    code = struct.pack(f"<{len(words)}I", *words)
    path = folder / "program.elf"
    path.write_bytes(elf([(0x8000_0000, code, len(code))]))
    return path
