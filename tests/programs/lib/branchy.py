"""Generates the assembly of much code that jumps about: `branchy.py FUNCTIONS`, some 233 bytes each.

Each function mixes a0 by steps that differ from function to function, with branches that depend on the data. `branchy`
is a table of them all in random order; `branchy.c` calls them in turns, so that the code's size counts.
"""

from __future__ import annotations

import random
import sys

#: The steps; {c} is a constant, {s} a shift, {b} a bit of 11, {d} a digit. Labels are local to a step.
STEPS = (
    "andi t0, a0, {b}; beqz t0, 1f; li t1, {c}; add a0, a0, t1; j 2f; 1: srli t1, a0, {s}; xor a0, a0, t1; 2:",
    "slli t0, a0, {s}; xor a0, a0, t0; bgez a0, 1f; li t1, {c}; add a0, a0, t1; 1:",
    "li t0, 2 * {c} + 1; mul a0, a0, t0; addi a0, a0, {b} - 1",
    "srli t0, a0, {s}; andi t0, t0, 7; addi t0, t0, -{d}; bnez t0, 1f; li t1, {c}; sub a0, t1, a0; 1:",
    "andi t0, a0, 3; beqz t0, 2f; 1: srli t1, a0, {s}; add a0, a0, t1; addi t0, t0, -1; bnez t0, 1b; 2:",
    "andi t0, a0, 15; li t1, {d}; bgeu t0, t1, 1f; li t1, {c}; sub a0, a0, t1; 1: srli t1, a0, {s}; xor a0, a0, t1",
)
STEPS_PER_FUNCTION = 10


def program(functions: int) -> str:
    choice = random.Random(functions)
    lines = [".text"]
    for index in range(functions):
        lines.append(f"f{index}:")
        for _ in range(STEPS_PER_FUNCTION):
            values = {"c": choice.randrange(1 << 19), "s": choice.randrange(1, 31)}
            values |= {"b": 1 << choice.randrange(11), "d": choice.randrange(1, 8)}
            lines.append(choice.choice(STEPS).format(**values))
        lines.append("ret")
    order = list(range(functions))
    choice.shuffle(order)
    lines += [".section .rodata", ".balign 8", ".globl branchy", "branchy:", *(f".dword f{index}" for index in order)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(program(int(sys.argv[1])), end="")
