"""WFI: sleeps without a processor, and wakes for whatever is enabled (priv. spec 3.3.3)."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, CLINT, DATA, HANDLER, PLIC, Bench, until
from vmm.vcpu.layout import MEI, MSI, MTI, SEI, SSI, STI, Exit

TICKS = 2000  # 0.2 ms
MIE = 8


def asleep(bench: Bench, hart: int = 0) -> bool:
    return bench.harts[hart].words["waiting"] != 0


def sleep(bench: Bench, irq: int, hart: int = 0, *, taken: bool = True) -> None:
    """Ready to run into a WFI, with one interrupt enabled; behind it and in the handler, a store says where it went."""
    h = bench.harts[hart]
    at = BASE + 0x1000 * (hart + 1)
    bench.code("wfi; sd x7,0(x6); top: jal x0,top", at=at)
    bench.code("csrrw x0,mie,x0; sd x8,0(x6); top: jal x0,top", at=HANDLER)
    h.pc, h.x[6], h.x[7], h.x[8] = at, DATA, 1, 2
    h.set_csr("mtvec", HANDLER)
    h.set_csr("mie", 1 << irq)
    h.set_csr("mstatus", MIE if taken else 0)


def wakes(bench: Bench, by: object, hart: int = 0, *, taken: bool = True) -> None:
    """Sleeps, until the call."""
    assert callable(by)
    with bench.running(hart):
        until(lambda: asleep(bench, hart))
        by()
        until(lambda: bench.get(DATA) != 0)
    assert bench.get(DATA) == (2 if taken else 1)
    assert bench.harts[hart].words["wfi_count"] == 1


def test_the_machine_timer_wakes_it(bench: Bench) -> None:
    now = bench.load(CLINT + 0xBFF8, 8)
    bench.store(CLINT + 0x4000, now + TICKS, 8)
    sleep(bench, MTI)
    with bench.running():
        until(lambda: bench.get(DATA) != 0)
    assert bench.get(DATA) == 2
    assert bench.hart.csr("mcause") == 1 << 63 | MTI
    assert bench.load(CLINT + 0xBFF8, 8) >= now + TICKS


def test_the_supervisor_timer_wakes_it(bench: Bench) -> None:
    h = bench.hart
    h.set_csr("menvcfg", h.csr("menvcfg") | 1 << 63)
    h.set_csr("stimecmp", h.csr("time") + TICKS)
    sleep(bench, STI)
    with bench.running():
        until(lambda: bench.get(DATA) != 0)
    assert h.csr("mcause") == 1 << 63 | STI
    assert h.words["idle_ns"] <= bench.clock.now()


def test_another_harts_software_interrupt_wakes_it(pair: Bench) -> None:
    sleep(pair, MSI, hart=1)
    wakes(pair, lambda: pair.store(CLINT + 4, 1), hart=1)
    assert pair.harts[1].csr("mcause") == 1 << 63 | MSI


def test_a_wire_wakes_it(bench: Bench) -> None:
    bench.store(PLIC + 4 * 10, 1)
    bench.store(PLIC + 0x2000, 1 << 10)
    sleep(bench, MEI)
    wakes(bench, lambda: bench.backend.wire(10).set(True))
    assert bench.hart.csr("mcause") == 1 << 63 | MEI


def test_a_wire_to_the_supervisor_wakes_it(bench: Bench) -> None:
    bench.store(PLIC + 4 * 10, 1)
    bench.store(PLIC + 0x2080, 1 << 10)
    sleep(bench, SEI)
    wakes(bench, lambda: bench.backend.wire(10).set(True))
    assert bench.hart.csr("mcause") == 1 << 63 | SEI


def test_a_kick_takes_it_out_behind_the_instruction(bench: Bench) -> None:
    sleep(bench, MSI)
    with bench.running() as exits:
        until(lambda: asleep(bench))
    assert exits == [Exit.KICK]
    assert bench.hart.pc == BASE + 0x1004


def test_an_interrupt_that_is_enabled_but_masked_wakes_it_without_a_trap(pair: Bench) -> None:
    sleep(pair, MSI, hart=1, taken=False)
    wakes(pair, lambda: pair.store(CLINT + 4, 1), hart=1, taken=False)


def test_an_interrupt_that_is_not_enabled_does_not_wake_it(pair: Bench) -> None:
    sleep(pair, MSI, hart=1)
    with pair.running(1):
        until(lambda: asleep(pair, 1))
        pair.store(PLIC + 4 * 10, 1)
        pair.store(PLIC + 0x2100, 1 << 10)  # hart 1, M-mode; mie has MSI alone
        pair.backend.wire(10).set(True)
        assert pair.get(DATA) == 0
        until(lambda: asleep(pair, 1))
    assert pair.get(DATA) == 0


@pytest.mark.parametrize("irq", [MSI, SSI])
def test_what_is_pending_already_does_not_let_it_sleep(irq: int, bench: Bench) -> None:
    if irq == MSI:
        bench.store(CLINT, 1)
    sleep(bench, irq)
    bench.hart.set_csr("mip", 1 << irq)
    bench.hart.run(2)
    assert bench.hart.words["idle_ns"] < 1_000_000_000
    assert bench.hart.csr("mcause") == 1 << 63 | irq


def test_time_asleep_is_counted(bench: Bench) -> None:
    sleep(bench, MSI)
    began = bench.clock.now()
    with bench.running():
        until(lambda: asleep(bench))
    assert 0 < bench.hart.statistics()["idle_ns"] <= bench.clock.now() - began
