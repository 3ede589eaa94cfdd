"""Code and page tables that change under the harts that use them; harts that sleep for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assembler import RAM_BASE, assemble
from tests.hostile.dice import Dice
from tests.hostile.guests import DEADLINE_S, everything, survives
from tests.hostile.scripted import BOARD, SANDBOX, SANDBOX_BYTES, Line, program
from tests.machine.files import elf
from tests.machines import Machines
from vmm.bql import Policy
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome, Reason, State

SUPERVISOR = 1

#: Instructions of four bytes that may stand at one place, whoever executes them when.
BODIES = [
    "addi a2, a2, 1",
    "lui a2, 0x12345",
    "auipc a2, 0",
    "ld a2, 0(a0)",
    "sd a2, 64(a0)",
    "amoadd.d a2, a2, (a0)",
    "fcvt.s.w ft0, a2, rmm",
    "fadd.d ft0, ft0, ft1, rmm",
    "fadd.d ft0, ft0, ft1, rne",
    "csrr a2, cycle",
    ".half 0x0605, 0x0605",  # c.addi a2, 1, twice
    ".half 0x8082, 0x0605",  # c.ret first
    ".word 0",  # no instruction
    "ecall",
    "fence.i",
    "beq a2, a2, 8 + here",
]


def bodies() -> list[int]:
    return [int.from_bytes(assemble(body, here=0x8000_0000), "little") for body in BODIES]


@pytest.mark.parametrize("harts", [2, 4])
@pytest.mark.parametrize("locking", ["device", "bql"])
def test_code_is_rewritten_while_other_harts_run_it(
    boot: Machines, tmp_path: Path, seed: int, harts: int, locking: Policy
) -> None:
    """Four instructions, at odd places of two pages too, are run in S-mode and rewritten all the time."""
    dice, words = Dice(seed), bodies()
    nop, ret = (int.from_bytes(assemble(text), "little") for text in ("nop", "ret"))
    places = [SANDBOX + 0x100, SANDBOX + 0x140, SANDBOX + 0xFF4, SANDBOX + 0xFF6, SANDBOX + 0x1F00]
    memory = bytearray(0x3000)
    for place in places:
        for number, word in enumerate([nop, nop, nop, ret]):
            at = place - SANDBOX + 4 * number
            memory[at : at + 4] = word.to_bytes(4, "little")
    scripts: list[list[Line]] = []
    for _ in range(harts):
        script = []
        for _ in range(1200):
            place = dice.choice(places)
            kind = dice.randrange(6)
            if kind < 2:
                size = 4 if place % 4 == 0 else 2
                at = place + 4 * dice.randrange(3) + (dice.randrange(2) * 2 if size == 2 else 0)
                script.append(Line(f"store{size}", at, dice.choice(words)))
            elif kind == 2:
                script.append(Line("fence_i"))
            else:
                script.append(Line("leave", place, SUPERVISOR | 30 << 2))
        scripts.append(script)
    survives(boot, tmp_path, scripts, memory=bytes(memory), rounds=5, locking=locking)


# -- page tables -------------------------------------------------------------------------------------------------------

SV39, SV48, SV57 = 8, 9, 10
TABLES = 16
"""Pages at the start of the sandbox that are used as tables, most of the time."""


def entry(dice: Dice) -> int:
    """A page table entry: to tables, to memory, to devices, to nowhere; or what is reserved."""
    if not dice.randrange(12):
        return dice.value()
    target = dice.choice(
        [
            SANDBOX + 0x1000 * dice.randrange(TABLES),
            SANDBOX + 0x1000 * dice.randrange(TABLES),
            SANDBOX + 0x1000 * dice.randrange(SANDBOX_BYTES >> 12),
            *(0x1000_0000, 0x1000_1000, 0x200_0000, 0xC00_0000, 0x10_1000, 0x1000, 0, 0x5000_0000),
            *(0x8000_0000, 0x8040_0000, 0xC000_0000, 1 << 55, (1 << 56) - 0x1000),
        ]
    )
    flags = dice.choice([0x01, 0x01, 0x01, 0xCF, 0xDF, 0x4B, 0x8F, 0x0F, 0x0B, 0x03, 0x05, 0x00, dice.randrange(1024)])
    high = dice.choice([0, 0, 0, 0, 1 << 61, 2 << 61, 3 << 61, 1 << 63, 1 << 54])  # Svpbmt, Svnapot, reserved
    return target >> 12 << 10 | flags | high


def table_script(dice: Dice, count: int) -> list[Line]:
    script: list[Line] = []
    for _ in range(count):
        table = SANDBOX + 0x1000 * dice.randrange(TABLES)
        virtual = dice.choice(
            [dice.getrandbits(64), dice.getrandbits(39), dice.getrandbits(30), dice.getrandbits(12), -8]
        )
        virtual = virtual % (1 << 64) & ~7 | dice.choice([0, 0, 0, 1, 4])
        match dice.randrange(10):
            case 0:
                mode = dice.choice([SV39, SV39, SV48, SV48, SV57, 0, dice.randrange(16)])
                root = dice.choice([table, table, table, 0x1000_0000, 0xC00_0000, 0x5000_0000, 1 << 55])
                satp = mode << 60 | dice.choice([0, 1, 0xFFFF]) << 44 | root >> 12
                script.append(Line(dice.choice(["satp", "satp_only"]), value=satp))
            case 1 | 2:
                slot = dice.choice([0, 1, 2, 3, 256, 510, 511, dice.randrange(512)])
                script.append(Line("store8", table + 8 * slot, entry(dice)))
            case 3:
                script.append(Line("fence_address", virtual))
            case 4:
                script.append(Line("leave", virtual, 1 | 40 << 2))
            case _:
                operation = dice.choice(["translated_load", "translated_store", "translated_byte"])
                script.append(Line(operation, virtual, dice.value()))
    return script


@pytest.mark.parametrize("svadu", [False, True])
@pytest.mark.parametrize("harts", [1, 4])
def test_page_tables_that_point_at_devices_nowhere_and_at_each_other(
    boot: Machines, tmp_path: Path, seed: int, harts: int, svadu: bool
) -> None:
    """All harts walk, and change, the same tables."""
    dice = Dice(seed * 16 + harts)
    tables = b"".join(entry(dice).to_bytes(8, "little") for _ in range(512 * TABLES))
    survives(boot, tmp_path, [table_script(dice, 2500) for _ in range(harts)], memory=tables, rounds=2, svadu=svadu)


def test_a_page_that_changes_its_place_while_it_is_used(boot: Machines, tmp_path: Path, seed: int) -> None:
    """One hart moves a virtual page between memory, a device and nowhere; three load, store and jump there."""
    dice = Dice(seed)
    root, low = SANDBOX, SANDBOX + 0x1000
    tables = bytearray(0x3000)
    tables[0:8] = (low >> 12 << 10 | 1).to_bytes(8, "little")
    tables[0x1000:0x1008] = (low + 0x1000 >> 12 << 10 | 1).to_bytes(8, "little")
    places = [SANDBOX + 0x8000, SANDBOX + 0x9000, 0x1000_0000, 0x1000_1000, 0x5000_0000]
    mover = [
        Line("store8", low + 0x1000, dice.choice([*(place >> 12 << 10 | 0xCF for place in places), 0, 0x1F]))
        for _ in range(2000)
    ]
    users: list[list[Line]] = []
    for _ in range(3):
        script = [Line("satp", value=SV39 << 60 | root >> 12)]
        for _ in range(2000):
            operation = dice.choice(["translated_load", "translated_store", "leave", "fence_address"])
            script.append(
                Line(operation, 8 * dice.randrange(512), 1 | 20 << 2 if operation == "leave" else 0x8082_8082)
            )
        users.append(script)
    survives(boot, tmp_path, [mover, *users], memory=bytes(tables), rounds=3)


# -- sleep and time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harts_", [1, 4])
@pytest.mark.parametrize("locking", ["device", "bql"])
def test_harts_that_sleep_with_nothing_enabled_can_be_paused_reset_and_stopped(
    boot: Machines, tmp_path: Path, harts_: int, locking: Policy
) -> None:
    scripts = [[Line("store8", BOARD + 8 * hart, 1), Line("wfi")] for hart in range(harts_)]
    machine = boot(everything(tmp_path, program(tmp_path, scripts), smp=harts_, locking=locking))
    for _ in range(5):
        machine.pause()
        machine.resume()
        machine.reset()
        machine.pause()
        machine.reset()
        machine.resume()
    assert machine.wait(0.05) is None
    assert machine.state is State.RUNNING


def test_a_hart_that_only_polls_a_device_takes_its_timer_interrupt(boot: Machines, tmp_path: Path) -> None:
    text = """
                la   t0, trap; csrw mtvec, t0
                li   t1, 0x2004000; csrr t2, time; addi t2, t2, 1000; sd t2, 0(t1)
                li   t0, 0x80; csrw mie, t0; csrrsi zero, mstatus, 8
                li   t0, 0x10000000
        poll:   lbu  t1, 5(t0); j poll
                .align 4
        trap:   li   t0, 0x100000; li t1, 0x5555; sw t1, 0(t0)
        halt:   j    halt
    """
    path = tmp_path / "poll.elf"
    path.write_bytes(elf([(RAM_BASE, assemble(text), 0x1000)]))
    assert boot(Config(bios=path)).wait(DEADLINE_S) == Outcome(Reason.POWER_OFF)
