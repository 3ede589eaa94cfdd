"""Remote fences of the built-in SBI: when the call returns, no hart uses an old translation (SBI 2.0, chapter 8)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vcpu.bench import BASE, DATA, TABLES, Bench, until
from tests.vcpu.tables import A, D, PageTables, R, V, W, X
from vmm.vcpu.layout import Exit

VA = 0x4000_0000
RWX = V | R | W | X | A | D
FENCE_I, SFENCE, SFENCE_ASID = range(3)
RFENCE = 0x52464E43


@pytest.fixture
def kernel() -> Iterator[tuple[Bench, PageTables]]:
    """Two harts in S-mode under the built-in SBI, with one page at VA."""
    with Bench(2, sbi=True) as bench:
        tables = PageTables(bench.ram, TABLES)
        tables.map(BASE, BASE, RWX, level=1)
        tables.map(DATA, DATA, RWX, level=1)
        tables.map(VA, DATA + 0x10_0000, RWX)
        for hart in bench.harts:
            hart.set_csr("satp", tables.satp)
        yield bench, tables


READER = "top: ld x5,0(x6); sd x5,0(x7); addi x8,x8,1; sd x8,8(x7); jal x0,top"


def fence(bench: Bench, function: int = SFENCE, mask: int = 0b10) -> None:
    """Hart 0 calls the SBI; the call must be answered by generated code."""
    bench.steps("ecall; c.nop", x10=mask, x11=0, x12=VA, x13=0x1000, x14=0, x16=function, x17=RFENCE)
    assert bench.hart.x[10] == 0


def start_reader(bench: Bench) -> None:
    bench.code(READER, at=BASE + 0x1000)
    reader = bench.harts[1]
    reader.pc, reader.x[6], reader.x[7] = BASE + 0x1000, VA, DATA


def rounds(bench: Bench, more: int) -> None:
    """Wait until the reader has gone round so many times more."""
    now = bench.get(DATA + 8)
    until(lambda: bench.get(DATA + 8) >= now + more)


@pytest.mark.parametrize("function", [SFENCE, SFENCE_ASID])
def test_a_busy_hart_sees_the_new_page_once_the_call_returns(function: int, kernel: tuple[Bench, PageTables]) -> None:
    bench, tables = kernel
    pages = [DATA + 0x10_0000, DATA + 0x10_1000]
    for n, page in enumerate(pages):
        bench.set(page, n + 1)
    start_reader(bench)
    with bench.running(1):
        rounds(bench, 10)
        for n in range(1, 40):
            tables.map(VA, pages[n % 2], RWX)
            fence(bench, function)
            rounds(bench, 2)  # the round that had begun, and one more
            assert bench.get(DATA) == n % 2 + 1


def test_a_fence_waits_for_no_hart_that_is_out(kernel: tuple[Bench, PageTables]) -> None:
    bench, tables = kernel
    bench.set(DATA + 0x10_0000, 1)
    bench.set(DATA + 0x10_1000, 2)
    start_reader(bench)
    reader = bench.harts[1]
    assert reader.run(5) == Exit.BUDGET
    assert bench.get(DATA) == 1
    tables.map(VA, DATA + 0x10_1000, RWX)
    fence(bench)
    assert reader.run(5) == Exit.BUDGET
    assert bench.get(DATA) == 2, "it serves the request when it comes back in"


def test_a_fence_waits_for_no_hart_that_sleeps(kernel: tuple[Bench, PageTables]) -> None:
    bench, tables = kernel
    bench.set(DATA + 0x10_0000, 1)
    bench.set(DATA + 0x10_1000, 2)
    bench.code("ld x5,0(x6); wfi; ld x5,0(x6); sd x5,0(x7); top: jal x0,top", at=BASE + 0x1000)
    sleeper = bench.harts[1]
    sleeper.pc, sleeper.x[6], sleeper.x[7] = BASE + 0x1000, VA, DATA
    sleeper.set_csr("sie", 2)
    with bench.running(1):
        until(lambda: sleeper.words["waiting"] != 0)
        tables.map(VA, DATA + 0x10_1000, RWX)
        fence(bench)  # which may end the wait, as anything may (priv. spec 3.3.3)
        bench.steps("ecall; c.nop", x10=0b10, x11=0, x16=0, x17=0x735049)  # an IPI surely does
        until(lambda: bench.get(DATA) != 0)
    assert bench.get(DATA) == 2


def test_two_harts_may_fence_each_other_at_once(kernel: tuple[Bench, PageTables]) -> None:
    bench, _ = kernel
    loop = """
        top: addi x10,x0,3; addi x11,x0,0; addi x12,x0,0; addi x13,x0,0; addi x16,x0,1; addi x17,x18,0
        ecall; addi x8,x8,1; sd x8,0(x7); jal x0,top
    """
    for n, hart in enumerate(bench.harts):
        bench.code(loop, at=BASE + 0x1000 * n)
        hart.pc, hart.x[7], hart.x[18] = BASE + 0x1000 * n, DATA + 64 * n, RFENCE
    with bench.running(0), bench.running(1):
        until(lambda: min(bench.get(DATA), bench.get(DATA + 64)) > 300)


def test_a_remote_fence_i_makes_new_code_run(kernel: tuple[Bench, PageTables]) -> None:
    bench, _ = kernel
    bench.code("top: addi x8,x0,1; sd x8,0(x7); jal x0,top", at=BASE + 0x1000)
    hart = bench.harts[1]
    hart.pc, hart.x[7] = BASE + 0x1000, DATA
    with bench.running(1):
        until(lambda: bench.get(DATA) == 1)
        for n in range(2, 50):
            bench.steps("sw x5,0(x6)", x5=0x00000413 | n << 20, x6=BASE + 0x1000)  # addi x8,x0,n
            fence(bench, FENCE_I)
            until(lambda n=n: bench.get(DATA) == n)  # type: ignore[misc]
