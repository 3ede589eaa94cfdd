"""Random programs by QEMU and here: every user-mode instruction, registers, flags and memory compared.

A failure names its seed and shows one instruction, what it read, and both results; the seed alone makes it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.oracle.compare import check
from tests.oracle.generate import Generator
from tests.oracle.peers import Disagreement, Here, Qemu
from tests.oracle.program import Block, Outcome, Program, op
from vmm.isa.encoding import Flag
from vmm.isa.table import INSTRUCTIONS, decode

PER_SEED = 20_500
CHUNKS = 7  # of the two million
MODES = ("bare", "sv39", "sv48")


@pytest.fixture(scope="module")
def qemu() -> Qemu:
    found = Qemu.installed()
    if found is None:
        pytest.skip("needs qemu-riscv64-static")
    return found


@pytest.fixture(scope="module")
def everywhere() -> Iterator[tuple[Here, ...]]:
    found = (*(Here(mode) for mode in MODES), *(Here(mode, translated=True) for mode in ("bare", "sv39")))
    yield found
    for peer in found:
        peer.close()


@pytest.fixture(scope="module")
def here(everywhere: tuple[Here, ...]) -> Here:
    return everywhere[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_random_programs_agree_with_qemu(seed: int, qemu: Qemu, everywhere: tuple[Here, ...]) -> None:
    assert check(Generator(seed, qemu.without).blocks(PER_SEED), seed, qemu, *everywhere) >= PER_SEED


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_two_million_instructions_agree_with_qemu(chunk: int, qemu: Qemu, everywhere: tuple[Here, ...]) -> None:
    seeds = range(1000 * (chunk + 1), 1000 * (chunk + 1) + 15)
    compared = sum(check(Generator(n, qemu.without).blocks(PER_SEED), n, qemu, *everywhere) for n in seeds)
    assert compared >= 2_000_000 / CHUNKS


@pytest.mark.slow
@pytest.mark.timeout(300)  # it may have to be fetched
def test_the_newest_qemu_agrees_too(everywhere: tuple[Here, ...]) -> None:
    newer = Qemu.newer()
    if newer is None:
        pytest.skip("no newer QEMU in the cache, and none could be fetched")
    for seed in range(100, 105):
        check(Generator(seed, newer.without).blocks(PER_SEED), seed, newer, *everywhere)


def test_every_instruction_of_user_mode_is_generated() -> None:
    seen = {w for seed in (1, 2) for b in Generator(seed).blocks(PER_SEED) for item in b.items for w in item}
    names = {insn.name for insn in map(decode, seen) if insn is not None}
    elsewhere = {"ecall", "ebreak", "c.ebreak", "mret", "sret", "wfi", "sfence.vma"}
    assert names == set(INSTRUCTIONS) - elsewhere


def test_every_rounding_mode_is_generated_for_every_instruction_that_rounds() -> None:
    seen = {w for seed in range(1, 5) for b in Generator(seed).blocks(PER_SEED) for item in b.items for w in item}
    modes: dict[str, set[int]] = {name: set() for name, insn in INSTRUCTIONS.items() if insn.flags & Flag.ROUNDS}
    for word in seen:
        insn = decode(word)
        if insn is not None and insn.name in modes:
            modes[insn.name].add(insn.extract(word)["rm"])
    assert all(found == {0, 1, 2, 3, 4, 7} for found in modes.values())


class Wrong:
    """A peer that takes one instruction for another."""

    def __init__(self, peer: Here, instead_of: str, does: str) -> None:
        self._peer, self._from, self._to = peer, INSTRUCTIONS[instead_of], INSTRUCTIONS[does]

    def run(self, program: Program) -> Outcome:
        blocks = [replace(b, items=tuple(tuple(map(self._mistake, item)) for item in b.items)) for b in program.blocks]
        return self._peer.run(Program(blocks, program.seed))

    def _mistake(self, word: int) -> int:
        return word ^ self._from.match ^ self._to.match if self._from.matches(word) else word


def test_a_difference_is_shrunk_to_the_instruction_that_makes_it(here: Here) -> None:
    with pytest.raises(Disagreement) as caught:
        check(Generator(3).blocks(5000), 1, here, Wrong(here, "mulh", "mulhu"))
    report = str(caught.value)
    assert report.startswith("seed 1, block ")
    assert len(re.findall(r"(?m)^    [0-9a-f]{8}  ", report)) == 1
    assert re.search(r"(?m)^    [0-9a-f]{8}  mulh x\d+,x\d+,x\d+$", report)
    assert re.search(r"(?ms)^results: .*^    x\d+ +[0-9a-f]{16}  [0-9a-f]{16}$", report)


def test_a_wrong_flag_is_seen(here: Here) -> None:
    with pytest.raises(Disagreement, match=r"feq\.s"):
        check(Generator(4).blocks(5000), 1, here, Wrong(here, "feq.s", "fle.s"))


def test_a_store_to_the_wrong_place_is_seen(here: Here) -> None:
    block = Block(bytes(640), 0x1800FC0, ((op("addi", rd=5, imm=7),),))
    stray = Block(bytes(640), 0x1800FC0, ((op("lui", rd=6, imm=0x1801), op("sd", rs1=6, rs2=6, imm=0x400)),))
    assert check([block], 0, here, here) == 1

    class Stray:
        def run(self, program: Program) -> Outcome:
            outcome = here.run(Program([stray], 0))
            return Outcome(here.run(program).states, outcome.scratch)

    with pytest.raises(Disagreement, match="outside of all windows"):
        check([block], 0, here, Stray())
