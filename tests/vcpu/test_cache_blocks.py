"""Zicbom and Zicboz (CMO 1.0.1): what they do to memory, who may execute them, what faults they take.

QEMU before 8.0 lacks them, so these are vectors from the specification: chapters 2.5 and 2.6 for traps and privilege,
2.7 for the envcfg registers, 3 for the instructions. Blocks are of 64 bytes.
"""

from __future__ import annotations

import pytest

from tests.vcpu.asm import assemble
from tests.vcpu.bench import BASE, DATA, TABLES, Bench
from tests.vcpu.tables import A, D, PageTables, R, U, V, W, X
from vmm.vcpu.layout import Cause

CBIE, CBCFE, CBZE = 0b11 << 4, 1 << 6, 1 << 7
MANAGE = ("cbo.inval", "cbo.clean", "cbo.flush")
ENABLE = {"cbo.inval": CBIE, "cbo.clean": CBCFE, "cbo.flush": CBCFE, "cbo.zero": CBZE}
M, S, USER = 3, 1, 0
PATTERN = bytes(range(1, 193))


@pytest.mark.parametrize("offset", [0, 1, 31, 63])
def test_zero_clears_the_block_that_holds_the_address(offset: int, bench: Bench) -> None:
    bench.put(DATA, PATTERN)
    bench.steps("cbo.zero (x6)", x6=DATA + 64 + offset)
    view = bytes(bench.ram.view[DATA - BASE : DATA - BASE + 192])
    assert view == PATTERN[:64] + bytes(64) + PATTERN[128:]


@pytest.mark.parametrize("name", MANAGE)
def test_the_others_change_no_memory(name: str, bench: Bench) -> None:
    bench.put(DATA, PATTERN)
    bench.steps(f"{name} (x6); {name} (x7)", x6=DATA, x7=DATA + 65)
    assert bytes(bench.ram.view[DATA - BASE : DATA - BASE + 192]) == PATTERN


def enter(bench: Bench, mode: int, menvcfg: int, senvcfg: int) -> None:
    h = bench.hart
    h.set_csr("pmpaddr0", (1 << 54) - 1)
    h.set_csr("pmpcfg0", 0x1F)
    h.set_csr("menvcfg", h.csr("menvcfg") & ~0xF0 | menvcfg)
    h.set_csr("senvcfg", senvcfg)
    h.privilege = mode


@pytest.mark.parametrize("name", ENABLE)
def test_machine_mode_needs_no_leave(name: str, bench: Bench) -> None:
    enter(bench, M, 0, 0)
    bench.steps(f"{name} (x6)", x6=DATA)


@pytest.mark.parametrize("name", ENABLE)
@pytest.mark.parametrize(
    ("mode", "by_m", "by_s", "legal"),
    [(S, 1, 0, True), (S, 0, 1, False), (USER, 1, 1, True), (USER, 1, 0, False), (USER, 0, 1, False)],
)
def test_each_mode_below_needs_the_leave_of_those_above(
    name: str, mode: int, by_m: int, by_s: int, legal: bool, bench: Bench
) -> None:
    enter(bench, mode, ENABLE[name] * by_m, ENABLE[name] * by_s)
    if legal:
        bench.steps(f"{name} (x6)", x6=DATA)
    else:
        word = int.from_bytes(assemble(f"{name} (x6)"), "little")
        assert bench.trap(f"{name} (x6)", x6=DATA) == (Cause.ILLEGAL, 0, word)


@pytest.mark.parametrize("name", ENABLE)
def test_one_leave_is_not_that_of_another(name: str, bench: Bench) -> None:
    others = (CBIE | CBCFE | CBZE) & ~ENABLE[name]
    enter(bench, S, others, others)
    assert bench.trap(f"{name} (x6)", x6=DATA)[0] == Cause.ILLEGAL


@pytest.mark.parametrize("name", ENABLE)
@pytest.mark.parametrize(
    ("bits", "manages", "zeroes"),
    [
        (0, False, False),
        (V | R, True, False),
        (V | R | W, True, True),
        (V | X, False, False),
        (V | R | W | U, False, False),
    ],
)
def test_permissions_are_a_loads_or_a_stores_and_faults_a_stores(
    name: str, bits: int, manages: bool, zeroes: bool, bench: Bench
) -> None:
    tables = PageTables(bench.ram, TABLES)
    tables.map(BASE, BASE, V | R | W | X | A | D, level=1)
    tables.map(DATA, DATA, bits | A | D if bits else 0)
    enter(bench, S, CBIE | CBCFE | CBZE, 0)
    bench.hart.set_csr("satp", tables.satp)
    if zeroes if name == "cbo.zero" else manages:
        bench.steps(f"{name} (x6)", x6=DATA + 70)
    else:
        assert bench.trap(f"{name} (x6)", x6=DATA + 70) == (Cause.STORE_PAGE, 0, DATA + 70)


@pytest.mark.parametrize("name", ENABLE)
def test_protected_memory_is_an_access_fault_of_a_store(name: str, bench: Bench) -> None:
    enter(bench, S, CBIE | CBCFE | CBZE, 0)
    h = bench.hart
    h.set_csr("pmpaddr0", DATA >> 2)
    h.set_csr("pmpcfg0", 0x0F)  # what lies below, and nothing else
    assert bench.trap(f"{name} (x6)", x6=DATA + 5) == (Cause.STORE_ACCESS, 0, DATA + 5)


def test_zero_sets_dirty(bench: Bench) -> None:
    tables = PageTables(bench.ram, TABLES)
    tables.map(BASE, BASE, V | R | W | X | A | D, level=1)
    at = tables.map(DATA, DATA, V | R | W)
    enter(bench, S, CBIE | CBCFE | CBZE, 0)
    bench.hart.set_csr("satp", tables.satp)
    bench.steps("cbo.clean (x6)", x6=DATA)
    assert tables.entry(at) & (A | D) == A
    bench.steps("cbo.zero (x6)", x6=DATA)
    assert tables.entry(at) & (A | D) == A | D
