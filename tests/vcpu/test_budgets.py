"""`run(budget=n)` stops after exactly n instructions, and what happens does not depend on where it stops."""

from __future__ import annotations

import random

import pytest

from tests.oracle.generate import Generator
from tests.oracle.peers import Here
from tests.oracle.program import Program
from tests.vcpu.bench import BASE, DATA, DEVICE, HANDLER, Bench
from vmm.vcpu.layout import Exit

PROGRAM = Program(Generator(77).blocks(3000), 77)


def registers(here: Here) -> tuple[int, ...]:
    v = here.vcpu
    return (v.pc, *v.x[:32], *v.f, v.csr("fcsr"), v.instructions)


@pytest.mark.parametrize("mode", ["bare", "sv39"])
def test_splitting_a_run_anywhere_changes_nothing(mode: str) -> None:
    here = Here(mode)
    whole = here.run(PROGRAM)
    end = registers(here)
    for seed, longest in enumerate((3, 40, 5000)):
        r = random.Random(seed)
        here.load(PROGRAM)
        while True:
            before, k = here.vcpu.instructions, r.randrange(longest)
            if here.go(k):
                break
            assert here.vcpu.instructions - before == k
        assert registers(here) == end
        assert here.outcome(PROGRAM) == whole
    here.close()


def test_a_run_that_stops_somewhere_is_where_single_steps_come_to() -> None:
    stepped, run = Here(), Here()
    r = random.Random(5)
    stepped.load(PROGRAM)
    for k in sorted(r.sample(range(1, 20_000), 12)):
        while stepped.vcpu.instructions < k:
            stepped.go(1)
        run.load(PROGRAM)
        run.go(k)
        assert registers(run) == registers(stepped)
    stepped.close()
    run.close()


def test_a_budget_of_nothing_runs_nothing(bench: Bench) -> None:
    bench.code("addi x5,x5,1; jal x0,0")
    assert bench.hart.run(0) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.x[5], bench.hart.instructions) == (BASE, 0, 0)


def test_a_loop_of_one_instruction_is_counted(bench: Bench) -> None:
    bench.code("jal x0,0")
    for k in (1, 2, 99_999, 100_000, 100_001, 250_000):
        before = bench.hart.instructions
        assert bench.hart.run(k) == Exit.BUDGET
        assert bench.hart.instructions - before == k


def test_an_instruction_that_traps_counts_as_one(bench: Bench) -> None:
    bench.code("ecall")
    bench.code("c.nop; c.nop", at=HANDLER)
    bench.hart.set_csr("mtvec", HANDLER)
    assert bench.hart.run(1) == Exit.BUDGET
    assert bench.hart.pc == HANDLER
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.instructions) == (HANDLER + 2, 2)


def test_a_fetch_that_faults_counts_as_one(bench: Bench) -> None:
    bench.hart.set_csr("mtvec", HANDLER)
    bench.hart.pc = DEVICE
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.csr("mcause"), bench.hart.instructions) == (HANDLER, 1, 1)


def test_an_instruction_across_two_pages_counts_as_one(bench: Bench) -> None:
    at = BASE + 4096 - 2
    bench.code("addi x5,x5,1; addi x5,x5,1", at=at)
    bench.hart.pc = at
    for n in (1, 2):
        assert bench.hart.run(1) == Exit.BUDGET
        assert (bench.hart.pc, bench.hart.x[5]) == (at + 4 * n, n)


def test_the_first_of_a_fused_pair_can_be_the_last_of_a_budget(bench: Bench) -> None:
    """slli and srli run as one elsewhere."""
    bench.code("slli x5,x6,16; srli x5,x5,16; jal x0,-8")
    bench.hart.x[6] = 0xFFFF_1234_5678_9ABC
    assert bench.hart.run(300) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.x[5]) == (BASE, 0x1234_5678_9ABC)
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.x[5]) == (BASE + 4, 0x1234_5678_9ABC_0000)
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.x[5]) == (BASE + 8, 0x1234_5678_9ABC)


def test_an_access_that_python_serves_counts_once_when_it_is_done(bench: Bench) -> None:
    bench.code("lw x5,0(x6); addi x5,x5,1; c.nop")
    bench.hart.x[6] = DEVICE
    assert bench.hart.run(2) == Exit.MMIO_READ
    assert bench.hart.instructions == 0
    bench.answer(41)
    assert bench.hart.run(2) == Exit.BUDGET
    assert (bench.hart.instructions, bench.hart.x[5], bench.hart.pc) == (2, 42, BASE + 8)


def test_an_instruction_that_is_emulated_counts_once(bench: Bench) -> None:
    bench.hart.set_csr("mstatus", 3 << 13)
    bench.code("fadd.d f1,f2,f3,rmm; c.nop; c.nop")
    assert bench.hart.run(3) == Exit.EMULATE
    assert bench.hart.instructions == 0
    bench.until_exit(budget=2)
    assert bench.hart.pc == BASE + 8


def test_waiting_counts_as_one(bench: Bench) -> None:
    bench.code("wfi; c.nop")
    bench.hart.set_csr("mie", 1 << 3)
    bench.hart.set_csr("mip", 0)
    bench.store(0x200_0000, 1)  # CLINT: a software interrupt, pending but not taken in M-mode with MIE clear
    bench.code("wfi; c.nop")
    bench.hart.pc, before = BASE, bench.hart.instructions
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.pc, bench.hart.instructions - before) == (BASE + 4, 1)


def test_memory_is_as_the_budget_says(bench: Bench) -> None:
    """Every hundredth store of a loop has been made, and no more."""
    bench.code("sd x5,0(x6); addi x5,x5,1; jal x0,-8")
    bench.hart.x[6] = DATA
    for n in range(1, 5):
        assert bench.hart.run(300) == Exit.BUDGET
        assert bench.get(DATA) == 100 * n - 1
