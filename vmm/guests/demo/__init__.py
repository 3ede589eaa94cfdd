"""The guest that ships with the package: several harts hammer several devices and print what they saw.

`demo.c` says what it does; `make -C vmm/guests/demo` builds it. `board.h` is the little runtime under it.
"""

from __future__ import annotations

from pathlib import Path

#: An ELF program for machine mode on the `virt` board. Powers off with exit code 0 if all that it checked was right.
PROGRAM = Path(__file__).with_name("demo.elf")
