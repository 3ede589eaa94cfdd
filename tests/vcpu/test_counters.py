"""cycle, instret and time (priv. spec 3.1.10): exact, whatever happens in between."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, CLINT, DEVICE, HANDLER, Bench
from vmm.vcpu.layout import Exit

RUN = "csrrs x5,{0},x0; {1}; csrrs x6,{0},x0"


@pytest.mark.parametrize("counter", ["minstret", "instret", "mcycle", "cycle"])
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("c.nop", 1),
        ("addi x7,x0,50; addi x7,x7,-1; bne x7,x0,-4", 101),
        ("jal x0,8; c.nop; c.nop; c.nop", 2),
        ("fence.i", 1),
        ("sfence.vma x0,x0", 1),
        ("csrrw x0,mscratch,x0", 1),
        ("csrrw x0,mie,x0", 1),
        ("csrrwi x0,mstatus,0", 1),
        ("slli x7,x8,4; srli x7,x7,4", 2),
    ],
)
def test_the_difference_of_two_readings_is_what_ran_between(counter: str, text: str, count: int, bench: Bench) -> None:
    h = bench.steps(RUN.format(counter, text))
    assert h.x[6] - h.x[5] == count + 1


def test_a_reading_counts_what_came_before_it(bench: Bench) -> None:
    assert bench.steps("c.nop; c.nop; csrrs x5,minstret,x0").x[5] == 2


@pytest.mark.parametrize("counter", ["minstret", "mcycle"])
def test_what_is_written_is_what_the_next_instruction_reads(counter: str, bench: Bench) -> None:
    h = bench.steps(f"csrrw x0,{counter},x7; csrrs x5,{counter},x0; c.nop; csrrs x6,{counter},x0", x7=1000)
    assert (h.x[5], h.x[6]) == (1000, 1002)


def test_what_is_written_from_outside_is_read_from_outside(bench: Bench) -> None:
    bench.steps("c.nop; c.nop")
    bench.hart.set_csr("minstret", 500)
    assert bench.hart.csr("minstret") == 500
    assert bench.steps("c.nop; csrrs x5,minstret,x0").x[5] == 501


def test_an_instruction_that_traps_does_not_retire(bench: Bench) -> None:
    bench.hart.set_csr("mtvec", HANDLER)
    bench.code("csrrs x5,minstret,x0; ecall; csrrs x6,minstret,x0; c.nop")
    bench.code("csrrs x7,mepc,x0; addi x7,x7,4; csrrw x0,mepc,x7; mret", at=HANDLER)
    assert bench.hart.run(7) == Exit.BUDGET
    assert bench.hart.x[6] - bench.hart.x[5] == 5, "the reading, and the handler's four"
    assert bench.hart.instructions == 7


def test_counters_go_on_over_slices_and_exits(bench: Bench) -> None:
    bench.code(
        "csrrs x5,minstret,x0; lui x7,100; addi x7,x7,-1; bne x7,x0,-4; lw x8,0(x9); csrrs x6,minstret,x0; c.nop"
    )
    h = bench.hart
    h.x[9] = DEVICE
    while h.run(77_777) != Exit.MMIO_READ:
        pass
    bench.answer()
    h.run(2)
    assert h.x[6] - h.x[5] == 1 + 1 + 2 * 409_600 + 1


def test_time_is_the_clints(bench: Bench) -> None:
    h = bench.steps("ld x5,0(x8); csrrs x6,time,x0; ld x7,0(x8)", x8=CLINT + 0xBFF8)
    assert h.x[5] <= h.x[6] <= h.x[7]
    assert h.x[7] <= bench.clock.now() // 100


@pytest.mark.parametrize("counter", ["cycle", "time", "instret"])
@pytest.mark.parametrize("allowed", [False, True])
def test_counterens_gate_the_counters(counter: str, allowed: bool, bench: Bench) -> None:
    h = bench.hart
    h.set_csr("pmpaddr0", (1 << 54) - 1)
    h.set_csr("pmpcfg0", 0x1F)
    bit = 1 << {"cycle": 0, "time": 1, "instret": 2}[counter]
    for privilege, mcounteren, scounteren in (
        (1, bit, 0),
        (0, bit, bit),
        (1, 7 ^ bit, 7),
        (0, 7, 7 ^ bit),
        (0, 7 ^ bit, 7),
    ):
        h.set_csr("mcounteren", mcounteren)
        h.set_csr("scounteren", scounteren)
        may = bool(mcounteren & bit) and (privilege == 1 or bool(scounteren & bit))
        if may is not allowed:
            continue
        h.privilege = privilege
        if may:
            bench.steps(f"csrrs x5,{counter},x0")
        else:
            assert bench.trap(f"csrrs x5,{counter},x0")[0] == 2


def test_writing_a_user_counter_is_illegal(bench: Bench) -> None:
    assert bench.trap("csrrw x0,instret,x5") == (2, 0, 0xC0229073)


def test_counters_of_events_are_zero(bench: Bench) -> None:
    h = bench.steps("csrrw x0,mhpmcounter3,x7; csrrs x5,mhpmcounter3,x0; csrrs x6,hpmcounter31,x0", x7=5)
    assert (h.x[5], h.x[6], h.pc) == (0, 0, BASE + 12)
