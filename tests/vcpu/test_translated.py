"""Translated code: it does what the records say, instruction by instruction, and gives way when it must."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.vcpu.asm import assemble
from tests.vcpu.bench import BASE, DATA, HANDLER, Bench
from vmm.codegen import image
from vmm.errors import HostError
from vmm.vcpu import software
from vmm.vcpu.layout import Cause, Exit

PROGRAM = """
    top: ld x5,0(x6)
    add x7,x7,x5
    xor x8,x7,x8
    slli x9,x8,3
    srli x10,x8,5
    sub x8,x9,x10
    sd x8,8(x6)
    beq x5,x0,even
    c.addi x11,1
    jal x1,twice
    even: csrrs x12,mscratch,x0
    addi x13,x13,-1
    amoadd.w x14,x13,(x15)
    bne x13,x0,top
    jal x0,out
    twice: add x16,x16,x16
    c.addi x16,1
    jalr x0,0(x1)
    out: jal x0,out
"""
START = {6: DATA, 7: 3, 8: 5, 13: 9, 15: DATA + 0x100, 16: 1}


@pytest.fixture
def jit() -> Iterator[Bench]:
    with Bench(jit=True) as bench:
        yield bench


def begin(bench: Bench) -> None:
    h = bench.hart
    for number in range(1, 32):
        h.x[number] = START.get(number, 0)
    for at in (0, 8, 0x100):
        bench.set(DATA + at, 7 * at + 1)
    h.pc = BASE


def warm(bench: Bench, text: str = PROGRAM, budget: int = 300) -> None:
    """Decode the program by running it, then translate it."""
    bench.code(text)
    begin(bench)
    bench.hart.run(budget)
    bench.backend.translate()
    assert bench.backend.jit_statistics().instructions > 0


def state(bench: Bench) -> tuple[object, ...]:
    h = bench.hart
    return h.pc, list(h.x[:32]), [bench.get(DATA + at) for at in (0, 8, 0x100)]


def test_after_any_number_of_instructions_all_is_as_when_interpreted(jit: Bench) -> None:
    warm(jit)
    with Bench() as plain:
        plain.code(PROGRAM)
        for budget in range(1, 140):
            for bench in (jit, plain):
                begin(bench)
                before = bench.hart.instructions
                assert bench.hart.run(budget) == Exit.BUDGET
                assert bench.hart.instructions - before == budget
            assert state(jit) == state(plain), f"after {budget} instructions"


def test_a_trap_in_the_middle_of_a_block_is_precise(jit: Bench) -> None:
    text = "addi x5,x5,1; addi x5,x5,1; ld x7,0(x6); addi x5,x5,1; c.nop; end: jal x0,end"
    warm(jit, text)
    h = jit.hart
    h.set_csr("mtvec", HANDLER)
    h.x[5], h.x[6], h.pc = 0, 0x5000_0000, BASE
    before, traps = h.instructions, h.words["trap_count"]
    assert h.run() == Exit.MMIO_READ
    assert (h.pc, h.x[5], h.instructions - before) == (BASE + 8, 2, 2)
    h.mmio_state[0] = 2  # refused
    assert h.run(1) == Exit.BUDGET
    assert (h.pc, h.x[5], h.words["trap_count"] - traps) == (HANDLER, 2, 1)
    assert (h.csr("mepc"), h.csr("mcause")) == (BASE + 8, Cause.LOAD_ACCESS)


def test_a_loop_that_never_ends_hears_a_kick(jit: Bench) -> None:
    warm(jit, "top: addi x5,x5,1; jal x0,top")
    reasons: list[int] = []
    thread = threading.Thread(target=lambda: reasons.append(jit.hart.run()))
    thread.start()
    jit.hart.kick()
    thread.join()
    assert reasons == [Exit.KICK]


def test_a_timer_interrupts_a_translated_loop(jit: Bench) -> None:
    warm(jit, "top: addi x5,x5,1; jal x0,top")
    h = jit.hart
    jit.code("csrrs x7,mcause,x0; stop: jal x0,stop", at=HANDLER)
    h.set_csr("mtvec", HANDLER)
    h.set_csr("mie", 1 << 7)
    h.set_csr("mstatus", 1 << 3)
    h.words["mtimecmp"] = 0
    h.pc = BASE
    h.run(1000)
    assert h.x[7] == 1 << 63 | 7


def test_code_that_is_rewritten_runs_anew_after_fence_i(jit: Bench) -> None:
    text = "top: addi x5,x0,1; addi x7,x7,-1; bne x7,x0,top; fence.i; jal x0,top"
    warm(jit, text)
    h = jit.hart
    h.x[7], h.pc = 100, BASE
    h.run(300)
    assert h.x[5] == 1
    jit.put(BASE, assemble("addi x5,x0,2"))
    h.x[7], h.pc = 100, BASE
    h.run(300)
    assert h.x[5] == 2
    jit.backend.translate()
    h.x[5], h.x[7], h.pc = 0, 100, BASE
    h.run(300)
    assert h.x[5] == 2


def test_a_warm_page_is_translated_by_itself(jit: Bench) -> None:
    jit.code("top: addi x5,x5,1; jal x0,top")
    jit.hart.run(2_000_000)
    assert jit.backend.jit_statistics().pages == 1
    assert jit.hart.x[5] == 1_000_000


def test_code_memory_that_is_full_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "CODE", 4096)
    with Bench(jit=True) as bench:
        bench.code("top: addi x5,x5,1;" + "addi x7,x7,1;" * 800 + "bne x5,x6,top; out: jal x0,out")
        h = bench.hart
        h.x[6] = 2000
        reasons = set()
        while h.x[5] < 2000:
            reasons.add(reason := h.run(100_000))
            if reason == Exit.CODE_FULL:
                bench.backend.forget_code()
        assert Exit.CODE_FULL in reasons
        assert bench.backend.jit_statistics().emptied > 0
        h.run(900)
        assert h.x[7] == 2000 * 800


def test_a_host_without_memory_for_code_interprets_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(self: image.CodeMemory, size: int) -> None:
        raise HostError("this host forbids executable mappings")

    monkeypatch.setattr(image.CodeMemory, "__init__", forbid)
    with Bench(jit=True) as bench:
        bench.code("top: addi x5,x5,1; jal x0,top")
        assert bench.hart.run(1_000_000) == Exit.BUDGET
        assert bench.hart.x[5] == 500_000
        assert "forbids executable mappings" in str(bench.backend.jit_statistics())
