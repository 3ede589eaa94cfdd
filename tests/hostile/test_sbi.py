"""Calls to the built-in SBI with any arguments, from all harts at once, which start and stop each other meanwhile."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.assembler import RAM_BASE, assemble, labels
from tests.hostile.dice import INTERESTING, MEM, RAM_END, Dice
from tests.hostile.guests import DEADLINE_S
from tests.hostile.scripted import SANDBOX, SANDBOX_BYTES
from tests.machine.files import elf
from tests.machines import Machines
from vmm.bql import Policy
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome, Reason

PROGRAM = RAM_BASE + 0x20_0000
SCRIPTS = PROGRAM + 0x1_0000
SCRIPT_BYTES = 0x2_0000
CALL = struct.Struct("<8Q")

HSM, SRST, DBCN, TIME, IPI, RFENCE, BASE = 0x48534D, 0x53525354, 0x4442434E, 0x54494D45, 0x735049, 0x52464E43, 0x10
PMU, STA, SUSP, FWFT = 0x504D55, 0x535441, 0x53555350, 0x46574654
END = (1 << 64) - 1
ENDED = Outcome(Reason.GUEST_RESET)

_GUEST = """
            # s0 next call, s8 hart
    second: addi  zero, zero, 0
    start:  mv    s8, a0
            la    t0, trap; csrw stvec, t0
            li    t0, SCRIPT_BYTES; mul t0, t0, s8; li s0, SCRIPTS; add s0, s0, t0
            li    t0, 0x222; csrw sie, t0; csrrsi zero, sstatus, 2
    next:   ld    a0, 0(s0); ld a1, 8(s0); ld a2, 16(s0); ld a3, 24(s0)
            ld    a4, 32(s0); ld a5, 40(s0); ld a6, 48(s0); ld a7, 56(s0)
            addi  s0, s0, 64
            addi  t0, a7, 1; beqz t0, end
            ecall
            j     next

    resume: mv    s8, a0                # behind a suspension; a1 is what the call was told to pass on
            mv    s0, a1
            j     next

            .align 4
    trap:   csrr  t0, scause; bltz t0, quiet
            la    t0, next; csrw sepc, t0
            sret
    quiet:  csrrci zero, sip, 2         # an interrupt: a call for this hart, or its timer
            li    t0, 0x20; csrc sie, t0
            sret

    end:    bnez  s8, stop
            li    a0, 1; li a1, 0; li a6, 0; li a7, 0x53525354; ecall       # ask for a reset
    stop:   li    a7, 0x48534d; li a6, 1; ecall
            j     stop
"""
_NAMES = {"SCRIPTS": SCRIPTS, "SCRIPT_BYTES": SCRIPT_BYTES}
_PLACES = labels(_GUEST, PROGRAM, **_NAMES)

Call = tuple[int, ...]


def call(dice: Dice, hart: int, harts: int) -> Call:
    """One that does not end the run, and does not stop hart 0, which ends the run."""
    extension = dice.choice(
        [HSM, HSM, DBCN, DBCN, TIME, IPI, RFENCE, BASE, PMU, STA, SUSP, FWFT, SRST, *range(0x11), dice.value()]
    )
    function = dice.choice([0, 0, 1, 2, 3, 4, 7, dice.value()])
    arguments = [dice.choice([dice.value(), dice.randrange(8), dice.choice(INTERESTING)]) for _ in range(6)]
    match extension:
        case 0x48534D:  # hart, where, what to tell it; or, to suspend: how, where, what
            function = dice.choice([0, 0, 0, 1, 2, 2, 3, 3, 4, dice.value()])
            if hart == 0 and function == 1:
                function = 2
            where = [_PLACES["second"], _PLACES["second"] + 1, SANDBOX, 0, 0x1000_0000, RAM_END, dice.value()]
            arguments[0] = dice.choice([*range(harts), harts, dice.value()])
            arguments[1] = dice.choice(where[:1] * 6 + where)
            if function == 3:
                kind = dice.choice([0, 1 << 31, 1, 0x1000_0000, 0x9000_0000, dice.getrandbits(32)])
                return (kind, dice.choice([1, RAM_END, 0x1000_0000]), 0, 0, 0, 0, function, extension)
        case 0x4442434E:  # length, low, high; reading stays out of the program
            arguments[0] = dice.choice([0, 1, 16, 4096, 1 << 20, dice.value()])
            arguments[1] = dice.choice([dice.place(), RAM_END - 8, RAM_END, 0, 0x1000_0000, dice.value()])
            arguments[2] = dice.choice([0, 0, 0, 1, dice.value()])
        case 0x735049 | 0x52464E43:  # mask, its first hart, start, size, ASID
            arguments[0] = dice.choice([0, 1, 2, 3, 15, 1 << harts, dice.value()])
            arguments[1] = dice.choice([0, 0, 1, harts, END, dice.value()])
        case 0x54494D45:
            arguments[0] = dice.choice([0, END, 1 << 20, dice.value()])
        case 0x53525354:
            arguments[0] = dice.choice([3, 0xEFFF_FFFF, 0xF000_0000, 0xFFFF_FFFF])
        case 0x08:
            extension = 0x09
    if extension == END:
        extension = 0x09
    return (*(argument % (1 << 64) for argument in arguments), function % (1 << 64), extension)


def suspension(place: int) -> Call:
    """Suspends without keeping registers; goes on at `resume` with the script at `place`."""
    return (1 << 31, _PLACES["resume"], place, 0, 0, 0, 3, HSM)


def script(dice: Dice, hart: int, harts: int, count: int) -> list[Call]:
    calls: list[Call] = []
    for number in range(count):
        if dice.randrange(20):
            calls.append(call(dice, hart, harts))
        else:
            calls.append(suspension(SCRIPTS + hart * SCRIPT_BYTES + CALL.size * (number + 1)))
    return calls


def kernel(folder: Path, scripts: Sequence[Sequence[Call]]) -> Path:
    segments = [(PROGRAM, code := assemble(_GUEST, PROGRAM, **_NAMES), len(code))]
    for hart, calls in enumerate(scripts):
        data = b"".join(CALL.pack(*one) for one in [*calls, (0, 0, 0, 0, 0, 0, 0, END)])
        assert len(data) <= SCRIPT_BYTES
        segments.append((SCRIPTS + hart * SCRIPT_BYTES, data, len(data)))
    segments.append((SANDBOX, b"\r\n" * 64, SANDBOX_BYTES))
    path = folder / "kernel.elf"
    path.write_bytes(elf(segments, entry=_PLACES["start"]))
    return path


def survives(boot: Machines, folder: Path, dice: Dice, harts: int, count: int, locking: Policy) -> None:
    scripts = [script(dice, hart, harts, count) for hart in range(harts)]
    for _ in range(3):
        machine = boot(
            Config(
                kernel=kernel(folder, scripts), smp=harts, mem=MEM, check_locks=True, no_reboot=True, locking=locking
            )
        )
        assert machine.wait(DEADLINE_S) == ENDED


@pytest.mark.parametrize("locking", ["device", "bql"])
@pytest.mark.parametrize("harts", [1, 2, 4])
def test_any_call_with_any_arguments(boot: Machines, tmp_path: Path, seed: int, harts: int, locking: Policy) -> None:
    survives(boot, tmp_path, Dice(seed * 8 + harts), harts, 600, locking)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(6))
def test_any_call_for_longer(boot: Machines, tmp_path: Path, seed: int, number: int) -> None:
    harts = (1, 4, 4)[number % 3]
    survives(boot, tmp_path, Dice(seed * 1000 + number), harts, 2000, ("device", "bql")[number % 2])


@pytest.mark.parametrize("place", [RAM_BASE + 0x30_0000, RAM_END - 2, SANDBOX + 2])
def test_a_hart_started_where_nothing_good_is_leaves_the_others_alone(
    boot: Machines, tmp_path: Path, place: int
) -> None:
    """It traps for ever, at addresses that are no code and with no handler."""
    starts = [(hart, place, 0, 0, 0, 0, 0, HSM) for hart in (1, 2, 3)]
    config = Config(kernel=kernel(tmp_path, [starts]), smp=4, mem=MEM, check_locks=True, no_reboot=True)
    assert boot(config).wait(DEADLINE_S) == ENDED
