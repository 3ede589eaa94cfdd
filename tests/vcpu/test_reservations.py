"""LR and SC (unpriv. spec, "A"): what keeps a reservation, what ends it, and what faults."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, DATA, HANDLER, Bench, until
from vmm.vcpu.layout import Cause


def test_a_store_succeeds_once(bench: Bench) -> None:
    bench.set(DATA, 5)
    h = bench.steps("lr.d x5,(x6); sc.d x7,x8,(x6); sc.d x9,x10,(x6)", x6=DATA, x8=6, x10=7)
    assert (h.x[5], h.x[7], h.x[9], bench.get(DATA)) == (5, 0, 1, 6)


@pytest.mark.parametrize("size", ["w", "d"])
def test_words_are_extended(size: str, bench: Bench) -> None:
    bench.set(DATA, 0x8000_0000)
    h = bench.steps(f"lr.{size} x5,(x6); sc.{size} x7,x5,(x6)", x6=DATA)
    assert h.x[5] == (0xFFFF_FFFF_8000_0000 if size == "w" else 0x8000_0000)
    assert (h.x[7], bench.get(DATA)) == (0, 0x8000_0000)


def test_another_address_fails_and_ends_it(bench: Bench) -> None:
    h = bench.steps("lr.d x5,(x6); sc.d x7,x8,(x9); sc.d x10,x8,(x6)", x6=DATA, x8=1, x9=DATA + 8)
    assert (h.x[7], h.x[10]) == (1, 1)
    assert (bench.get(DATA), bench.get(DATA + 8)) == (0, 0)


def test_a_later_reservation_takes_its_place(bench: Bench) -> None:
    h = bench.steps("lr.d x5,(x6); lr.d x5,(x9); sc.d x7,x8,(x6)", x6=DATA, x8=1, x9=DATA + 8)
    assert h.x[7] == 1


def test_a_trap_ends_it(bench: Bench) -> None:
    bench.hart.set_csr("mtvec", HANDLER)
    bench.code("csrrs x11,mepc,x0; addi x11,x11,4; csrrw x0,mepc,x11; mret", at=HANDLER)
    h = bench.steps("lr.d x5,(x6); ecall; sc.d x7,x8,(x6)", x6=DATA, x8=1)
    assert (h.x[7], bench.get(DATA)) == (1, 0)


def test_running_in_pieces_does_not_end_it(bench: Bench) -> None:
    """Each step of the bench is a run of its own."""
    h = bench.steps("lr.w x5,(x6); c.nop; c.nop; sc.w x7,x8,(x6)", x6=DATA, x8=1)
    assert (h.x[7], bench.get(DATA)) == (0, 1)


def test_a_store_of_another_hart_ends_it(pair: Bench) -> None:
    pair.steps("lr.d x5,(x6)", hart=0, at=BASE, x6=DATA)
    pair.store(DATA, 9, 8, hart=1)
    h = pair.steps("sc.d x7,x8,(x6)", hart=0, at=BASE + 0x1000, x6=DATA, x8=1)
    assert (h.x[7], pair.get(DATA)) == (1, 9)


@pytest.mark.parametrize(
    "add", ["lr.d x5,(x6); addi x5,x5,1; sc.d x7,x5,(x6); bne x7,x0,again", "addi x7,x0,1; amoadd.d x5,x7,(x6)"]
)
def test_two_harts_count_without_losing_one(add: str, pair: Bench) -> None:
    rounds = 20_000
    for n, hart in enumerate(pair.harts):
        at = BASE + 0x1000 * n
        pair.code(f"again: {add}; addi x8,x8,-1; bne x8,x0,again; sd x9,0(x10); top: jal x0,top", at=at)
        hart.pc, hart.x[6], hart.x[8], hart.x[9], hart.x[10] = at, DATA, rounds, 1, DATA + 64 * (n + 1)
    with pair.running(0), pair.running(1):
        until(lambda: pair.get(DATA + 64) == pair.get(DATA + 128) == 1)
    assert pair.get(DATA) == 2 * rounds


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("lr.w x5,(x6)", Cause.LOAD_MISALIGNED),
        ("lr.d x5,(x6)", Cause.LOAD_MISALIGNED),
        ("sc.d x5,x7,(x6)", Cause.STORE_MISALIGNED),
        ("amoadd.w x5,x7,(x6)", Cause.STORE_MISALIGNED),
        ("amomaxu.d x5,x7,(x6)", Cause.STORE_MISALIGNED),
    ],
)
def test_atomics_are_aligned(text: str, cause: Cause, bench: Bench) -> None:
    assert bench.trap(text, x6=DATA + 2) == (cause, 0, DATA + 2)
