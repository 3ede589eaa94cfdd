"""The CLINT through its registers (ACLINT spec 1.0: MSWI, MTIMER), and Sstc beside it."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, CLINT, HANDLER, Bench, until
from vmm.vcpu.layout import MSI, MTI, STI, Exit

MTIMECMP, MTIME = CLINT + 0x4000, CLINT + 0xBFF8
NEVER = (1 << 64) - 1
STCE = 1 << 63


def line(bench: Bench, irq: int, hart: int = 0) -> bool:
    return bench.harts[hart].csr("mip") >> irq & 1 == 1


def test_msip_raises_and_lowers_one_harts_line(pair: Bench) -> None:
    pair.store(CLINT + 4, 1)
    assert (line(pair, MSI, 0), line(pair, MSI, 1)) == (False, True)
    assert (pair.load(CLINT), pair.load(CLINT + 4)) == (0, 1)
    pair.store(CLINT + 4, 0xFFFF_FFFE)
    assert not line(pair, MSI, 1)


def test_msip_of_a_hart_that_does_not_exist_is_zero(pair: Bench) -> None:
    pair.store(CLINT + 8, 1)
    assert pair.load(CLINT + 8) == 0


def test_mtime_is_guest_time_in_ticks_of_100_ns(bench: Bench) -> None:
    before = bench.clock.now() // 100
    ticks = bench.load(MTIME, 8)
    assert before <= ticks <= bench.clock.now() // 100
    high, low = bench.load(MTIME + 4), bench.load(MTIME)
    assert ticks <= high << 32 | low


def test_mtime_can_be_written_whole_and_in_halves(bench: Bench) -> None:
    bench.store(MTIME, 1 << 40, 8)
    assert 0 <= bench.load(MTIME, 8) - (1 << 40) < 10**9
    bench.store(MTIME + 4, 7)
    assert bench.load(MTIME + 4) == 7
    assert bench.steps("csrrs x5,time,x0").x[5] >> 32 == 7
    bench.store(MTIME, 5)
    assert 0 <= bench.load(MTIME, 8) - (7 << 32 | 5) < 10**9


def test_mtimecmp_can_be_written_in_halves(bench: Bench) -> None:
    bench.store(MTIMECMP, 0x1111_2222)
    bench.store(MTIMECMP + 4, 0x3333_4444)
    assert bench.load(MTIMECMP, 8) == 0x3333_4444_1111_2222
    assert bench.load(MTIMECMP + 4) == 0x3333_4444
    bench.store(MTIMECMP, 0x5555_6666_7777_8888, 8)
    assert bench.load(MTIMECMP) == 0x7777_8888


def test_each_hart_has_its_mtimecmp(pair: Bench) -> None:
    pair.store(MTIMECMP + 8, 123, 8)
    assert (pair.load(MTIMECMP, 8), pair.load(MTIMECMP + 8, 8)) == (NEVER, 123)
    assert (pair.harts[0].words["mtimecmp"], pair.harts[1].words["mtimecmp"]) == (NEVER, 123)


def test_a_time_gone_by_interrupts_and_a_later_one_takes_it_back(bench: Bench) -> None:
    bench.store(MTIMECMP, 0, 8)
    assert bench.steps("c.nop; csrrs x5,mip,x0").x[5] >> MTI & 1
    bench.store(MTIMECMP, NEVER, 8)
    assert bench.steps("csrrs x5,mip,x0").x[5] >> MTI & 1 == 0


def test_the_interrupt_comes_no_earlier_than_its_time(bench: Bench) -> None:
    h = bench.hart
    h.set_csr("mtvec", HANDLER)
    h.set_csr("mie", 1 << MTI)
    h.set_csr("mstatus", 8)
    bench.code("top: addi x5,x5,1; jal x0,top")
    bench.code("csrrs x7,time,x0; lw x0,0(x8)", at=HANDLER)
    h.x[8] = 0x1000_0000
    for ticks in (1, 50, 3000):
        deadline = bench.load(MTIME, 8) + ticks
        bench.store(MTIMECMP, deadline, 8)
        bench.code("top: addi x5,x5,1; jal x0,top")
        h.set_csr("mstatus", 8)
        h.pc = BASE
        assert h.run() == Exit.MMIO_READ
        assert h.csr("mcause") == 1 << 63 | MTI
        assert h.x[7] >= deadline


def test_a_busy_hart_takes_the_timer_that_another_hart_sets_for_it(pair: Bench) -> None:
    h = pair.harts[1]
    h.set_csr("mtvec", HANDLER)
    h.set_csr("mie", 1 << MTI)
    h.set_csr("mstatus", 8)
    pair.code("jal x0,0", at=BASE + 0x1000)
    pair.code("addi x9,x0,1; jal x0,0", at=HANDLER)
    h.pc = BASE + 0x1000
    with pair.running(1):
        pair.store(MTIMECMP + 8, 0, 8)
        until(lambda: h.x[9] == 1)
    assert h.csr("mcause") == 1 << 63 | MTI


def test_stimecmp_raises_the_supervisors_timer(bench: Bench) -> None:
    h = bench.hart
    h.set_csr("menvcfg", h.csr("menvcfg") | STCE)
    assert bench.steps("csrrw x0,stimecmp,x0; csrrs x5,mip,x0").x[5] >> STI & 1
    assert bench.steps("csrrw x0,stimecmp,x7; csrrs x5,mip,x0", x7=NEVER).x[5] >> STI & 1 == 0


@pytest.mark.parametrize(("stce", "tm"), [(False, True), (True, False), (False, False)])
def test_the_supervisor_needs_leave_for_stimecmp(stce: bool, tm: bool, bench: Bench) -> None:
    h = bench.hart
    h.set_csr("pmpaddr0", (1 << 54) - 1)
    h.set_csr("pmpcfg0", 0x1F)
    h.set_csr("menvcfg", STCE if stce else 0)
    h.set_csr("mcounteren", 2 if tm else 0)
    h.privilege = 1
    assert bench.trap("csrrw x0,stimecmp,x5")[0] == 2


def test_stip_is_the_timers_alone_under_sstc(bench: Bench) -> None:
    h = bench.hart
    assert bench.steps("csrrs x0,mip,x7; csrrs x5,mip,x0", x7=1 << STI).x[5] >> STI & 1
    h.set_csr("mip", 0)
    h.set_csr("menvcfg", h.csr("menvcfg") | STCE)
    assert bench.steps("csrrs x0,mip,x7; csrrs x5,mip,x0", x7=1 << STI).x[5] >> STI & 1 == 0
