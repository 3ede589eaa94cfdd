"""Pre-decoded code and the stores that change it: by the hart itself, by another, by a device."""

from __future__ import annotations

import pytest

from tests.vcpu.asm import assemble
from tests.vcpu.bench import BASE, DATA, Bench, until
from vmm.vcpu import layout, software
from vmm.vcpu.layout import PAGE_CODE, Exit


def word(text: str) -> int:
    return int.from_bytes(assemble(text), "little")


def flags(bench: Bench, address: int) -> int:
    return bench.ram.page_flags[address - BASE >> 12]


def test_a_page_that_runs_is_marked_as_code(bench: Bench) -> None:
    assert flags(bench, BASE) == 0
    bench.steps("c.nop")
    assert flags(bench, BASE) & PAGE_CODE
    assert not flags(bench, DATA) & PAGE_CODE


def test_an_instruction_that_was_written_runs_after_fence_i(bench: Bench) -> None:
    h = bench.steps(
        """
        addi x7,x0,0
        target: addi x5,x0,1
        bne x7,x0,out
        addi x7,x0,1
        sw x8,4(x6)
        fence.i
        jal x0,target
        out: c.nop
        """,
        x6=BASE,
        x8=word("addi x5,x0,2"),
    )
    assert h.x[5] == 2


@pytest.mark.parametrize(
    ("store", "at"), [("sb x8,1(x6)", 5), ("sh x8,2(x6)", 6), ("sw x8,0(x6)", 4), ("sd x8,-4(x6)", 0)]
)
def test_stores_of_any_size_change_code(store: str, at: int, bench: Bench) -> None:
    size = {"b": 1, "h": 2, "w": 4, "d": 8}[store[1]]
    old, new = assemble("c.nop; c.nop; addi x5,x0,1"), assemble("c.nop; c.nop; addi x9,x31,-1")
    patched = bytearray(old)
    patched[at : at + size] = new[at : at + size]
    value = int.from_bytes(new[at : at + size], "little")
    bench.steps(f"c.nop; c.nop; addi x5,x0,1; bne x7,x0,8; {store}; fence.i", x6=BASE + 4, x7=0, x8=value)
    expected = bench.get(BASE, 8)
    assert expected == int.from_bytes(patched, "little")
    bench.hart.pc, bench.hart.x[31] = BASE, 100
    bench.hart.x[5] = bench.hart.x[9] = 0
    assert bench.hart.run(3) == Exit.BUDGET
    rd = patched[5] << 8 | patched[4]
    assert bench.hart.x[rd >> 7 & 31] != 0


@pytest.mark.parametrize(
    "write",
    ["amoswap.w x0,x8,(x6)", "lr.w x9,(x6); sc.w x9,x8,(x6)", "cbo.zero (x6)", "fsw f8,0(x6)"],
)
def test_every_kind_of_write_changes_code(write: str, bench: Bench) -> None:
    bench.hart.set_csr("mstatus", 3 << 13)
    target = BASE + 64
    bench.steps("addi x5,x0,1", at=target)
    bench.steps(f"{write}; fence.i", x6=target, x8=word("addi x5,x0,2"), f8=word("addi x5,x0,2"))
    bench.hart.pc = target
    if "zero" in write:
        bench.hart.set_csr("mtvec", BASE + 0x800)
        bench.hart.run(1)
        assert bench.hart.csr("mcause") == 2
    else:
        bench.hart.run(1)
        assert bench.hart.x[5] == 2


def test_a_store_across_two_pages_changes_both(bench: Bench) -> None:
    edge = BASE + 0x2000
    bench.steps("c.nop; c.nop", at=edge - 4)
    bench.steps("c.li x5,1; c.nop", at=edge)
    bench.steps("sw x8,-2(x6); fence.i", x6=edge, x8=int.from_bytes(assemble("c.li x7,3; c.li x5,2"), "little"))
    bench.hart.pc = edge - 4
    bench.hart.run(3)
    assert (bench.hart.x[7], bench.hart.x[5]) == (3, 2)


def test_an_instruction_across_two_pages_is_changed_by_its_second_half(bench: Bench) -> None:
    edge = BASE + 0x2000
    bench.steps("addi x5,x0,1", at=edge - 2)
    new = word("addi x5,x0,1365")
    bench.steps("sh x8,0(x6); fence.i", x6=edge, x8=new >> 16)
    bench.hart.pc = edge - 2
    bench.hart.run(1)
    assert bench.hart.x[5] == 1365


def test_the_second_of_a_fused_pair_can_be_changed(bench: Bench) -> None:
    for value in (1, 2):
        target = BASE + 64 - 4  # its first is in one block of 64 bytes, its second in the next
        if value == 1:
            bench.code("slli x5,x6,16; srli x5,x5,16", at=target)
        else:
            bench.steps("sw x8,0(x7); fence.i", x7=target + 4, x8=word("srli x5,x5,20"))
        bench.hart.pc, bench.hart.x[6] = target, 0x1234_5678_9ABC
        bench.hart.run(2)
        assert bench.hart.x[5] == 0x1234_5678_9ABC >> (0 if value == 1 else 4)


def test_the_middle_of_a_fused_pair_can_be_jumped_to(bench: Bench) -> None:
    bench.steps("slli x5,x6,16; srli x5,x5,16", x6=0xFFFF_0000_0000_00FF)
    bench.hart.pc, bench.hart.x[5] = BASE + 4, 0x10000
    bench.hart.run(1)
    assert (bench.hart.x[5], bench.hart.pc) == (1, BASE + 8)


def test_the_middle_of_an_instruction_can_be_jumped_to(bench: Bench) -> None:
    """The upper half of this lui is c.li x10,3."""
    bench.code(f".word {0x37 | 5 << 7 | 0x450D << 16:#x}; c.nop")
    h = bench.hart
    h.run(1)
    assert (h.x[5], h.x[10]) == (0x450D_0000, 0)
    h.pc = BASE + 2
    h.run(1)
    assert (h.x[5], h.x[10], h.pc) == (0x450D_0000, 3, BASE + 4)


def test_data_beside_code_may_change_without_a_price(bench: Bench) -> None:
    """64 bytes away, a store does not throw the page's code away."""
    bench.steps("addi x5,x0,1; addi x5,x0,2")
    made = bench.backend.shared["arena_next"]
    bench.steps("sd x0,0(x6)", at=DATA, x6=BASE + 0x800)
    used = bench.backend.shared["arena_next"]
    bench.hart.pc = BASE
    bench.hart.run(2)
    assert bench.backend.shared["arena_next"] == used > made


def test_a_device_that_writes_code_needs_no_fence_here(bench: Bench) -> None:
    bench.steps("addi x5,x0,1")
    bench.put(BASE, assemble("addi x5,x0,2"))
    assert not flags(bench, BASE) & PAGE_CODE
    bench.hart.pc = BASE
    bench.hart.run(1)
    assert bench.hart.x[5] == 2


def test_a_device_that_writes_many_pages_of_code_retires_them_all(bench: Bench) -> None:
    for n in range(4):
        bench.steps("addi x5,x0,1", at=BASE + 0x1000 * n + 0x800)
    new = bytearray(0x4000)
    for n in range(4):
        new[0x1000 * n + 0x800 : 0x1000 * n + 0x804] = assemble("addi x5,x0,2")
    bench.put(BASE, bytes(new))
    for n in range(4):
        bench.hart.pc = BASE + 0x1000 * n + 0x800
        bench.hart.run(1)
        assert bench.hart.x[5] == 2


def test_a_device_that_writes_into_a_loop_ends_it(bench: Bench) -> None:
    bench.code("top: sd x0,0(x6); addi x5,x5,1; jal x0,top; done: jal x0,done")
    bench.hart.x[6] = DATA
    bench.set(DATA, 1)
    with bench.running():
        until(lambda: bench.get(DATA) == 0)
        bench.put(BASE + 8, assemble("jal x0,4"))
        until(lambda: bench.hart.words["poll"] == 0)
    until(lambda: bench.hart.run(100) == Exit.BUDGET)
    assert bench.hart.pc == BASE + 12


# -- two harts --------------------------------------------------------------------------------------------------------


def test_code_from_another_hart_runs_after_both_have_fenced(pair: Bench) -> None:
    """Hart 0 writes a function anew, 300 times, tells so, and hart 1 fetches and calls it: it must find each."""
    rounds, function = 300, BASE + 0x3000
    x = {"flag": DATA, "answer": DATA + 64, "function": function}
    pair.set(function, word("addi x5,x0,0") | 0x8067 << 32)  # jalr x0,0(x1)
    writer = """
        next: addi x10,x10,1
        slli x11,x10,20
        add x11,x11,x8
        sw x11,0(x9)
        fence rw,rw
        sw x10,0(x6)
        wait: lw x12,0(x7)
        bne x12,x10,wait
        bne x10,x13,next
        done: jal x0,done
    """
    reader = """
        next: addi x10,x10,1
        wait: lw x12,0(x6)
        bne x12,x10,wait
        fence.i
        jalr x1,0(x9)
        bne x5,x10,bad
        sw x10,0(x7)
        bne x10,x13,next
        done: jal x0,done
        bad: addi x14,x0,1
        jal x0,bad
    """
    pair.code(writer)
    pair.code(reader, at=BASE + 0x1000)
    for hart, at in zip(pair.harts, (BASE, BASE + 0x1000), strict=True):
        hart.pc = at
        hart.x[6], hart.x[7], hart.x[9] = x["flag"], x["answer"], x["function"]
        hart.x[8], hart.x[13] = word("addi x5,x0,0"), rounds
    with pair.running(0), pair.running(1):
        until(lambda: pair.get(x["answer"], 4) == rounds or pair.harts[1].x[14] != 0)
    assert pair.harts[1].x[14] == 0, f"called {pair.harts[1].x[5]} in round {pair.harts[1].x[10]}"


# -- room for code ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_arena(monkeypatch: pytest.MonkeyPatch) -> int:
    """Room for three pages of code."""
    pages = 3
    monkeypatch.setattr(software, "ARENA", pages * layout.RECORDS_SIZE + 64)
    return pages


def chain(bench: Bench, pages: int) -> None:
    """Code that goes through so many pages, one instruction and a jump in each, and round again."""
    for n in range(pages):
        there = BASE + 0x1000 * ((n + 1) % pages)
        here = BASE + 0x1000 * n
        bench.code(f"addi x5,x5,1; jal x0,{there - here - 4}", at=here)


def test_a_full_arena_is_an_exit_that_loses_nothing(small_arena: int) -> None:
    with Bench() as bench:
        chain(bench, 5)
        assert bench.hart.run(1000) == Exit.CODE_FULL
        assert (bench.hart.pc, bench.hart.x[5], bench.hart.instructions) == (BASE + 0x3000, 3, 6)
        assert bench.hart.run(1000) == Exit.CODE_FULL, "as long as nothing is thrown away"
        bench.backend.forget_code()
        assert not any(f & PAGE_CODE for f in bytes(bench.ram.page_flags))
        assert bench.hart.run(4) == Exit.BUDGET
        assert (bench.hart.pc, bench.hart.x[5], bench.hart.instructions) == (BASE, 5, 10)


def test_code_that_never_fits_goes_on_all_the_same(small_arena: int) -> None:
    with Bench() as bench:
        chain(bench, 20)
        full = 0
        while bench.hart.instructions < 400:
            if bench.hart.run(400 - bench.hart.instructions) == Exit.CODE_FULL:
                full += 1
                bench.backend.forget_code()
        assert bench.hart.x[5] == 200
        assert full >= 200 // small_arena - 2


def test_code_that_was_written_is_not_thrown_away_twice(small_arena: int) -> None:
    """Forgetting all code while another hart's page is retired leaves nobody in freed records."""
    with Bench(2) as bench:
        chain(bench, 3)
        bench.harts[1].pc = BASE
        for _ in range(50):
            for hart in bench.harts:
                if hart.run(10) == Exit.CODE_FULL:
                    bench.backend.forget_code()
            bench.put(BASE + 0x1000, assemble("addi x5,x5,1"))
        assert bench.harts[0].x[5] > 0


def test_half_of_a_straddling_instruction_may_have_become_a_whole_one_unseen(bench: Bench) -> None:
    """A store of another hart, past its tag compare when the page became code, shows in the bytes but not yet in the
    records: this one says that the instruction straddles, and its first half is now one of 16 bits."""
    at = BASE + 0x1000 - 2
    bench.put(at, assemble("addi x5,x0,1; c.nop; c.nop"))
    h = bench.hart
    h.pc = at
    assert h.run(2) == Exit.BUDGET
    assert (h.x[5], h.pc) == (1, at + 6)
    bench.ram.view[at - BASE : at - BASE + 4] = assemble("c.addi x5,1; c.addi x5,1")  # not told
    h.pc = at
    assert h.run(1) == Exit.BUDGET
    assert (h.x[5], h.pc) == (2, at + 2)
