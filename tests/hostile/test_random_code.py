"""Random instructions: any words, and any operands of the instructions that there are, in every mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.assembler import RAM_BASE, assemble
from tests.hostile.dice import MEM, Dice
from tests.hostile.guests import DEADLINE_S, survives
from tests.hostile.scripted import SANDBOX, SANDBOX_BYTES, Line
from tests.machine.files import elf
from tests.machines import Machines
from vmm.bql import Policy
from vmm.isa.csr import NUMBERS
from vmm.isa.disasm import register_names
from vmm.isa.encoding import Instruction
from vmm.isa.table import INSTRUCTIONS
from vmm.machine.config import Config
from vmm.machine.lifecycle import LifecycleError

USER, SUPERVISOR = 0, 1
TICKS_PER_US = 10


class Code:
    """Makes instructions."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        rows = list(INSTRUCTIONS.values())
        system = [row for row in rows if row.extension in ("Zicsr", "privileged", "Zicbom", "Zicboz", "Zifencei", "A")]
        self.rows = [*rows, *system * 4]

    def words(self, size: int) -> bytes:
        """`size` bytes of instructions, about one in eight of them no instruction at all."""
        out = bytearray()
        while len(out) < size:
            insn = self.dice.choice(self.rows)
            word = self.dice.getrandbits(32) if not self.dice.randrange(8) else self.operands(insn)
            out += word.to_bytes(4, "little")[: insn.length if word else 4]
        return bytes(out[:size])

    def operands(self, insn: Instruction) -> int:
        while True:
            word = insn.match | self.dice.getrandbits(8 * insn.length) & ~insn.mask & (1 << 8 * insn.length) - 1
            if "csr" in insn.syntax and self.dice.randrange(4):
                word = word & 0xF_FFFF | self.dice.choice(list(NUMBERS.values())) << 20
            if insn.matches(word):
                return word


def visits(dice: Dice, count: int, mode: int | None = None) -> list[Line]:
    """Calls of places in the sandbox, each for some microseconds, between which page tables and mappings change."""
    script: list[Line] = []
    for _ in range(count):
        if not dice.randrange(8):
            tables = [0, 8 << 60 | SANDBOX >> 12, 9 << 60 | dice.place() >> 12, dice.value()]
            script.append(Line("satp", value=dice.choice(tables)))
        if not dice.randrange(4):
            # traps that stay in S-mode are handled by random code, too, until the time is over
            script += [Line("delegate", value=dice.choice([0, 0xFFFF, 0xB1FF])), Line("stvec", value=dice.place(4))]
        chosen = dice.choice([USER, SUPERVISOR]) if mode is None else mode
        ticks = TICKS_PER_US * dice.choice([1, 3, 10, 50])
        script.append(Line("leave", dice.place(2), chosen | ticks << 2))
        if not dice.randrange(16):
            script.append(Line("fence_i"))
    return script


@pytest.mark.parametrize("locking", ["device", "bql"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_random_code_in_supervisor_and_user_mode(
    boot: Machines, tmp_path: Path, seed: int, number: int, locking: Policy
) -> None:
    """All harts run, and overwrite, the same code."""
    dice = Dice(seed * 8 + number)
    code = Code(dice).words(0x8000)
    memory = (code + bytes(0x8000)) * (SANDBOX_BYTES // 0x1_0000)
    scripts = [visits(dice, 600) for _ in range(number)]
    survives(boot, tmp_path, scripts, memory=memory, locking=locking, svadu=number == 2)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(8))
def test_random_code_for_longer(boot: Machines, tmp_path: Path, seed: int, number: int) -> None:
    dice = Dice(seed * 1000 + number)
    memory = Code(dice).words(SANDBOX_BYTES)
    scripts = [visits(dice, 2500) for _ in range((1, 2, 4, 4)[number % 4])]
    survives(boot, tmp_path, scripts, memory=memory, locking=("device", "bql")[number % 2], svadu=number % 3 == 0)


@pytest.mark.parametrize("locking", ["device", "bql"])
@pytest.mark.parametrize("number", range(3))
def test_random_code_in_machine_mode_never_gets_the_better_of_the_monitor(
    boot: Machines, tmp_path: Path, seed: int, number: int, locking: Policy
) -> None:
    """It may sleep for ever, trap for ever, or power off; it can be paused, reset and stopped."""
    dice = Dice(seed * 100 + number)
    path = tmp_path / "random.elf"
    path.write_bytes(elf([(RAM_BASE, prologue(dice) + Code(dice).words(0x4000), 0x8000)]))
    machine = boot(Config(bios=path, smp=1 + number, mem=MEM, locking=locking, check_locks=True, console="null"))
    for _ in range(4):
        if machine.wait(0.05) is not None:
            break
        try:
            machine.pause()
            machine.resume()
            machine.reset()
        except LifecycleError:
            assert machine.wait(DEADLINE_S) is not None
    outcome = machine.outcome
    assert outcome is None or outcome.reason.name in ("POWER_OFF", "GUEST_EXIT"), outcome


def prologue(dice: Dice) -> bytes:
    """Registers that point to memory, devices and code; traps go to the code behind."""
    places = [RAM_BASE + 0x100, RAM_BASE + 0x2000, 0x1000_0000, 0x1000_1000, 0x200_4000, 0xC20_0004, 0x80_0000_0000, 8]
    integer, _ = register_names()
    loads = [f"li {name}, {dice.choice(places)}" for name in integer[1:]]
    return assemble("; ".join(["la t0, over; csrw mtvec, t0; li t0, 0x6000; csrs mstatus, t0", *loads, "over: nop"]))
