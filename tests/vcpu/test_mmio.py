"""Accesses outside of RAM: the exit that Python answers, and what the guest sees of it."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, CLINT, DATA, DEVICE, HANDLER, TABLES, Bench
from tests.vcpu.tables import A, D, PageTables, R, V, W, X
from vmm.vcpu.layout import Cause, Exit, Mmio

ALL = (1 << 64) - 1


@pytest.mark.parametrize(
    ("text", "size", "answer", "result"),
    [
        ("lb x5,0(x6)", 1, 0x80, -128 & ALL),
        ("lbu x5,0(x6)", 1, 0x80, 0x80),
        ("lh x5,0(x6)", 2, 0x8000, -0x8000 & ALL),
        ("lhu x5,0(x6)", 2, 0x8000, 0x8000),
        ("lw x5,0(x6)", 4, 0x8000_0000, -0x8000_0000 & ALL),
        ("lwu x5,0(x6)", 4, 0x8000_0000, 0x8000_0000),
        ("ld x5,0(x6)", 8, 1 << 63, 1 << 63),
        ("c.lw x8,0(x9)", 4, 0xFFFF_FFFE, -2 & ALL),
    ],
)
def test_loads_ask_and_extend_the_answer(text: str, size: int, answer: int, result: int, bench: Bench) -> None:
    bench.code(f"{text}; c.nop")
    h = bench.hart
    h.x[6] = h.x[9] = DEVICE + 0x18
    assert h.run(100) == Exit.MMIO_READ
    assert (h.mmio_addr[0], h.mmio_size[0], h.pc) == (DEVICE + 0x18, size, BASE)
    bench.answer(answer)
    assert h.run(1) == Exit.BUDGET
    assert h.x[8 if text[0] == "c" else 5] == result


@pytest.mark.parametrize(
    ("text", "size", "value"),
    [
        ("sb x5,0(x6)", 1, 0xF0),
        ("sh x5,0(x6)", 2, 0xDEF0),
        ("sw x5,0(x6)", 4, 0x9ABC_DEF0),
        ("sd x5,0(x6)", 8, 0x1234_5678_9ABC_DEF0),
        ("c.sw x8,0(x9)", 4, 0x9ABC_DEF0),
        ("fsw f5,0(x6)", 4, 0x9ABC_DEF0),
        ("fsd f5,0(x6)", 8, 0x1234_5678_9ABC_DEF0),
    ],
)
def test_stores_say_what_they_write_and_no_more(text: str, size: int, value: int, bench: Bench) -> None:
    bench.code(f"{text}; c.nop")
    h = bench.hart
    h.set_csr("mstatus", 3 << 13)
    h.x[5] = h.x[8] = h.f[5] = 0x1234_5678_9ABC_DEF0
    h.x[6] = h.x[9] = DEVICE
    assert h.run(100) == Exit.MMIO_WRITE
    assert (h.mmio_addr[0], h.mmio_size[0], h.mmio_value[0]) == (DEVICE, size, value)
    bench.answer()
    assert h.run(1) == Exit.BUDGET
    assert h.pc == BASE + (2 if text[0] == "c" else 4)


def test_a_refused_load_is_an_access_fault(bench: Bench) -> None:
    bench.hart.set_csr("mtvec", HANDLER)
    bench.code("lw x5,4(x6)")
    bench.hart.x[5], bench.hart.x[6] = 77, DEVICE
    assert bench.hart.run(100) == Exit.MMIO_READ
    bench.answer(1, Mmio.FAULT)
    assert bench.hart.run(1) == Exit.BUDGET
    h = bench.hart
    assert (h.csr("mcause"), h.csr("mtval"), h.csr("mepc")) == (Cause.LOAD_ACCESS, DEVICE + 4, BASE)
    assert (h.x[5], h.pc) == (77, HANDLER)


def test_a_refused_store_is_an_access_fault(bench: Bench) -> None:
    bench.hart.set_csr("mtvec", HANDLER)
    bench.code("sw x5,4(x6)")
    bench.hart.x[6] = DEVICE
    assert bench.hart.run(100) == Exit.MMIO_WRITE
    bench.answer(0, Mmio.FAULT)
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.csr("mcause"), bench.hart.csr("mtval")) == (Cause.STORE_ACCESS, DEVICE + 4)


def test_an_answer_that_is_not_given_is_asked_for_again(bench: Bench) -> None:
    bench.code("lw x5,0(x6)")
    bench.hart.x[6] = DEVICE
    for _ in range(3):
        assert bench.hart.run(100) == Exit.MMIO_READ
    assert bench.hart.instructions == 0


def test_an_answer_is_used_once(bench: Bench) -> None:
    bench.code("lw x5,0(x6); lw x7,0(x6); c.nop")
    bench.hart.x[6] = DEVICE
    for answer in (11, 22):
        assert bench.hart.run(100) == Exit.MMIO_READ
        bench.answer(answer)
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.x[5], bench.hart.x[7]) == (11, 22)


def test_the_load_to_x0_is_made_too(bench: Bench) -> None:
    bench.code("lw x0,0(x6); c.nop")
    bench.hart.x[6] = DEVICE
    assert bench.hart.run(100) == Exit.MMIO_READ
    bench.answer(5)
    assert bench.hart.run(1) == Exit.BUDGET
    assert (bench.hart.x[0], bench.hart.pc) == (0, BASE + 4)


def test_an_interrupt_does_not_come_between_the_answer_and_its_instruction(bench: Bench) -> None:
    """It would throw the answer away, and a read with side effects would be made twice."""
    h = bench.hart
    h.set_csr("mtvec", HANDLER)
    h.set_csr("mie", 1 << 3)
    h.set_csr("mstatus", 8)
    bench.code("lw x5,0(x6); jal x0,0")
    h.x[6] = DEVICE
    assert h.run(100) == Exit.MMIO_READ
    h.words["mip_hw"] |= 1 << 3
    h.words["poll"] |= 1
    bench.answer(9)
    bench.code("jal x0,0", at=HANDLER)
    assert h.run(2) == Exit.BUDGET
    assert h.pc == HANDLER
    assert (h.x[5], h.csr("mepc")) == (9, BASE + 4)


def test_a_kick_does_not_lose_the_answer(bench: Bench) -> None:
    bench.code("lw x5,0(x6); c.nop; jal x0,0")
    h = bench.hart
    h.x[6] = DEVICE
    assert h.run(100) == Exit.MMIO_READ
    bench.answer(9)
    h.kick()
    assert h.run(100) == Exit.KICK
    assert h.run(1) == Exit.BUDGET
    assert h.x[5] == 9


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("amoadd.w x5,x5,(x6)", Cause.STORE_ACCESS),
        ("sc.w x5,x5,(x6)", Cause.STORE_ACCESS),
        ("lh x5,1(x6)", Cause.LOAD_MISALIGNED),
        ("sd x5,4(x6)", Cause.STORE_MISALIGNED),
        ("cbo.zero (x6)", Cause.STORE_ACCESS),
    ],
)
def test_devices_take_aligned_loads_and_stores_alone(text: str, cause: Cause, bench: Bench) -> None:
    assert bench.trap(text, x6=DEVICE)[0] == cause


def test_generated_code_answers_for_the_interrupt_controllers(bench: Bench) -> None:
    assert bench.load(CLINT + 0x4000, 8) == ALL
    assert bench.load(0xC00_0004) == 0


def test_code_cannot_be_fetched_from_a_device(bench: Bench) -> None:
    bench.hart.set_csr("mtvec", HANDLER)
    bench.hart.pc = DEVICE + 0x100
    bench.hart.run(1)
    assert (bench.hart.csr("mcause"), bench.hart.csr("mtval")) == (Cause.FETCH_ACCESS, DEVICE + 0x100)


# -- across a page boundary -------------------------------------------------------------------------------------------


def straddle(bench: Bench, first: int, second: int) -> None:
    """S-mode, where the pages at 0x10000 and 0x11000 are these."""
    tables = PageTables(bench.ram, TABLES)
    bits = V | R | W | A | D
    tables.map(BASE, BASE, bits | X)
    for va, pa in ((0x10000, first), (0x11000, second)):
        if pa:
            tables.map(va, pa, bits)
    h = bench.hart
    h.set_csr("satp", tables.satp)
    h.set_csr("pmpaddr0", ALL >> 10)
    h.set_csr("pmpcfg0", 0x1F)
    h.privilege = 1


@pytest.mark.parametrize(("first", "second"), [(DATA, DEVICE), (DEVICE, DATA), (DEVICE, DEVICE + 4096)])
@pytest.mark.parametrize(("text", "cause"), [("ld x5,-4(x6)", Cause.LOAD_ACCESS), ("sd x5,-4(x6)", Cause.STORE_ACCESS)])
def test_no_access_reaches_a_device_across_a_page(
    text: str, cause: Cause, first: int, second: int, bench: Bench
) -> None:
    straddle(bench, first, second)
    bench.set(DATA + 4088, 0x1111_1111_1111_1111)
    assert bench.trap(text, x5=ALL, x6=0x11000)[0] == cause
    assert bench.get(DATA + 4088) == 0x1111_1111_1111_1111


@pytest.mark.parametrize(("text", "cause"), [("ld x5,-3(x6)", Cause.LOAD_PAGE), ("sd x5,-3(x6)", Cause.STORE_PAGE)])
def test_the_fault_of_the_second_page_is_told_with_its_first_byte(text: str, cause: Cause, bench: Bench) -> None:
    straddle(bench, DATA, 0)
    bench.set(DATA + 4088, 0x1111_1111_1111_1111)
    assert bench.trap(text, x5=ALL, x6=0x11000) == (cause, 0, 0x11000)
    assert bench.get(DATA + 4088) == 0x1111_1111_1111_1111, "nothing of it has been written"


@pytest.mark.parametrize(("text", "cause"), [("ld x5,-3(x6)", Cause.LOAD_PAGE), ("sd x5,-3(x6)", Cause.STORE_PAGE)])
def test_the_fault_of_the_first_page_is_told_with_the_address(text: str, cause: Cause, bench: Bench) -> None:
    straddle(bench, 0, DATA)
    assert bench.trap(text, x5=ALL, x6=0x11000) == (cause, 0, 0x10FFD)


def test_neighbours_need_not_be_neighbours_in_memory(bench: Bench) -> None:
    straddle(bench, DATA + 0x3000, DATA)
    h = bench.steps("sd x5,-3(x6); ld x7,-3(x6); lw x8,-2(x6)", x5=0x8877_6655_4433_2211, x6=0x11000)
    assert (h.x[7], h.x[8]) == (0x8877_6655_4433_2211, 0x5544_3322)
    assert bench.get(DATA + 0x3FFD, 3) == 0x33_2211
    assert bench.get(DATA, 5) == 0x88_7766_5544
