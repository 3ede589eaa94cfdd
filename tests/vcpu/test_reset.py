"""The state after power-on and after a reset (priv. spec 3.4; with the built-in SBI: SBI 2.0, 9.1)."""

from __future__ import annotations

import pytest

from tests.oracle.generate import Generator
from tests.oracle.peers import Here
from tests.oracle.program import Program
from tests.vcpu.bench import BASE, CLINT, DATA, Bench
from vmm.errors import ConfigError
from vmm.isa.csr import CSRS
from vmm.vcpu.layout import Exit

UNLIKE_AT_RESET = {"time", "mhartid"}


def csrs(bench: Bench, hart: int = 0) -> dict[str, int]:
    h = bench.harts[hart]
    return {c.name: h.csr(c.name) for c in CSRS.values() if c.name not in UNLIKE_AT_RESET}


def test_machine_mode_with_everything_off(bench: Bench) -> None:
    h = bench.hart
    assert h.privilege == 3
    assert h.csr("mstatus") & (1 << 3 | 1 << 17) == 0, "MIE and MPRV"
    assert h.csr("mcause") == 0
    assert h.csr("satp") == 0
    assert h.csr("pmpcfg0") == h.csr("pmpcfg2") == 0
    assert h.csr("misa") == 2 << 62 | sum(1 << ord(c) - ord("A") for c in "ACDFIMSU")
    assert list(h.x) == [0] * 33
    assert list(h.f) == [0] * 32


def test_each_hart_knows_its_number(pair: Bench) -> None:
    assert [pair.steps("csrrs x5,mhartid,x0", hart=n).x[5] for n in range(2)] == [0, 1]


def test_a_kernel_finds_supervisor_mode_and_what_sbi_promises() -> None:
    with Bench(sbi=True) as bench:
        h = bench.hart
        assert h.privilege == 1
        assert h.csr("satp") == 0
        assert h.csr("sstatus") & 2 == 0
        bench.steps(
            "csrrs x5,time,x0; csrrs x5,cycle,x0; csrrs x5,instret,x0; csrrw x0,stimecmp,x5; cbo.zero (x6)", x6=DATA
        )


def test_a_reset_leaves_no_trace_of_what_ran(bench: Bench) -> None:
    fresh = csrs(bench)
    h = bench.hart
    bench.store(CLINT, 1)
    bench.store(CLINT + 0x4000, 0, 8)
    bench.steps("lr.d x5,(x6)", x6=DATA)
    for c in CSRS.values():
        if not c.read_only:
            h.set_csr(c.name, (1 << 64) - 1)
    h.kick()
    bench.backend.reset()
    assert csrs(bench) == fresh
    assert list(h.x) == [0] * 33
    assert h.instructions == 0
    bench.steps("sc.d x7,x8,(x6)", x6=DATA, x7=9)
    assert h.x[7] == 1, "the reservation is gone"


def test_wires_keep_their_levels_over_a_reset(bench: Bench) -> None:
    for address, value in ((0xC00_0028, 1), (0xC00_2000, 1 << 10)):
        bench.store(address, value)
    bench.backend.wire(10).set(True)
    assert bench.hart.csr("mip") == 1 << 11
    bench.backend.reset()
    assert bench.load(0xC00_1000) == 1 << 10


def test_the_same_program_runs_the_same_after_a_reset() -> None:
    program = Program(Generator(5).blocks(2000), 5)
    here = Here("sv39")
    first = here.run(program)
    count = here.vcpu.instructions
    for _ in range(3):
        assert here.run(program) == first
        assert here.vcpu.instructions == count
    here.close()


@pytest.mark.parametrize("harts", [0, 33, -1])
def test_harts_are_1_to_32(harts: int) -> None:
    with pytest.raises(ConfigError, match="--smp"):
        Bench(harts)


def test_32_harts_run(bench: Bench) -> None:
    with Bench(32) as many:
        for n in range(32):
            assert many.steps("csrrs x5,mhartid,x0", hart=n).x[5] == n
            many.harts[n].pc = BASE


def test_calls_to_sbi_that_generated_code_does_not_know_are_exits() -> None:
    with Bench(sbi=True) as bench:
        bench.code("ecall; c.nop")
        h = bench.hart
        h.x[17], h.x[16], h.x[10] = 0x10, 3, 0x48534D
        assert h.run(10) == Exit.SBI
        assert h.pc == BASE + 4, "it goes on behind the call"
        h.x[10], h.x[11] = 0, 1
        assert h.run(1) == Exit.BUDGET
        assert (h.pc, h.instructions) == (BASE + 6, 2)


def test_a_call_from_user_mode_is_the_kernels() -> None:
    with Bench(sbi=True) as bench:
        h = bench.hart
        h.set_csr("stvec", DATA)
        bench.code("ecall")
        h.privilege = 0
        assert h.run(1) == Exit.BUDGET
        assert (h.pc, h.csr("scause"), h.csr("sepc"), h.privilege) == (DATA, 8, BASE, 1)
