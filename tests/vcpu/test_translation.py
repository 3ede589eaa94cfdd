"""Sv39 and Sv48, A and D bits, SUM, MXR and MPRV, superpages, and what TLBs may remember (priv. spec 4.3 to 4.5)."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, DATA, HANDLER, TABLES, Bench
from tests.vcpu.tables import A, D, G, PageTables, R, U, V, W, X
from vmm.vcpu.layout import PAGE_CLEAN, PAGE_CODE, PAGE_DIRTY, Cause, Exit

VA = 0x4000_0000
RWX = V | R | W | X | A | D
ADUE, PBMTE = 1 << 61, 1 << 62
SUM, MXR, MPRV = 1 << 18, 1 << 19, 1 << 17
ALL = (1 << 64) - 1
M, S, USER = 3, 1, 0


class Paged:
    """A bench in S-mode, its code mapped where it is."""

    def __init__(self, bench: Bench, levels: int) -> None:
        self.bench = bench
        self.tables = PageTables(bench.ram, TABLES, levels)
        self.tables.map(BASE, BASE, RWX, level=1)
        self.hart = h = bench.hart
        h.set_csr("pmpaddr0", ALL >> 10)
        h.set_csr("pmpcfg0", 0x1F)
        h.set_csr("satp", self.tables.satp)
        h.privilege = S

    def status(self, bits: int) -> None:
        self.hart.set_csr("mstatus", bits)

    def load(self, va: int) -> int:
        return self.bench.steps("ld x5,0(x6)", x6=va).x[5]

    def store(self, va: int, value: int) -> None:
        self.bench.steps("sd x5,0(x6)", x5=value, x6=va)

    def fault(self, text: str, va: int, pc: int = BASE) -> tuple[int, int]:
        cause, _, value = self.bench.trap(text, at=pc, x6=va)
        return cause, value


@pytest.fixture(params=[3, 4], ids=["sv39", "sv48"])
def paged(request: pytest.FixtureRequest, bench: Bench) -> Paged:
    return Paged(bench, request.param)


@pytest.fixture
def sv39(bench: Bench) -> Paged:
    return Paged(bench, 3)


def test_pages_are_where_the_tables_say(paged: Paged) -> None:
    for n, va in enumerate((VA, VA + 0x1000, 0x20_0000_0000, -0x1000 & ALL)):
        paged.tables.map(va, DATA + 0x1000 * n, RWX)
        paged.store(va + 8 * n, n + 1)
        assert paged.bench.get(DATA + 0x1000 * n + 8 * n) == n + 1
        assert paged.load(va + 8 * n) == n + 1


@pytest.mark.parametrize(("level", "size"), [(1, 2 << 20), (2, 1 << 30)])
def test_superpages_cover_all_of_their_addresses(level: int, size: int, paged: Paged) -> None:
    paged.tables.map(size * 3, BASE & -size, RWX, level=level)
    at = DATA & size - 1 if level == 2 else 0x1238
    paged.bench.set((BASE & -size) + at, 77)
    assert paged.load(size * 3 + at) == 77


def test_a_superpage_that_is_not_aligned_is_a_page_fault(paged: Paged) -> None:
    paged.tables.map(2 << 20, BASE + 0x1000, RWX, level=1)
    assert paged.fault("ld x5,0(x6)", 2 << 20) == (Cause.LOAD_PAGE, 2 << 20)


@pytest.mark.parametrize(
    ("levels", "va"), [(3, 1 << 38), (3, ALL >> 1), (3, 1 << 63), (4, 1 << 47), (4, ALL << 48 & ALL)]
)
def test_addresses_that_are_not_sign_extended_are_page_faults(levels: int, va: int, bench: Bench) -> None:
    paged = Paged(bench, levels)
    assert paged.fault("ld x5,0(x6)", va) == (Cause.LOAD_PAGE, va)
    assert paged.fault("sd x5,0(x6)", va) == (Cause.STORE_PAGE, va)


@pytest.mark.parametrize(
    "bits",
    [
        0,
        R | W | X,
        V | W,
        V | W | X,
        V | R | 1 << 54,
        V | R | 1 << 60,
        V | R | 1 << 63,
        V | R | 1 << 61,
        V | R | 3 << 61,
    ],
)
def test_entries_that_are_invalid_or_reserved_are_page_faults(bits: int, paged: Paged) -> None:
    paged.tables.map(VA, DATA, bits | (A | D if bits else 0))
    assert paged.fault("ld x5,8(x6)", VA) == (Cause.LOAD_PAGE, VA + 8)


def test_memory_types_are_accepted_when_enabled(sv39: Paged) -> None:
    sv39.hart.set_csr("menvcfg", sv39.hart.csr("menvcfg") | PBMTE)
    for n, kind in enumerate((1, 2)):
        sv39.tables.map(VA + 0x1000 * n, DATA, RWX | kind << 61)
        sv39.load(VA + 0x1000 * n)
    sv39.tables.map(VA + 0x3000, DATA, RWX | 3 << 61)
    assert sv39.fault("ld x5,0(x6)", VA + 0x3000) == (Cause.LOAD_PAGE, VA + 0x3000)


@pytest.mark.parametrize("extra", [A, D, U, 1 << 61, 1 << 10 << 44])
def test_a_pointer_with_bits_of_a_leaf_is_a_page_fault(extra: int, sv39: Paged) -> None:
    leaf = sv39.tables.map(VA, DATA, RWX)
    pointer = sv39.tables.root + 8 * (VA >> 30)
    assert sv39.tables.entry(pointer) >> 10 << 12 != leaf
    sv39.hart.set_csr("menvcfg", sv39.hart.csr("menvcfg") | PBMTE)
    sv39.tables.set_entry(pointer, sv39.tables.entry(pointer) | extra)
    assert sv39.fault("ld x5,0(x6)", VA)[0] == Cause.LOAD_PAGE


def test_a_table_outside_of_memory_is_an_access_fault(sv39: Paged) -> None:
    sv39.tables.set_entry(sv39.tables.root + 8 * (VA >> 30), 0x1000_0000 >> 2 | V)
    assert sv39.fault("ld x5,0(x6)", VA) == (Cause.LOAD_ACCESS, VA)
    assert sv39.fault("sd x5,0(x6)", VA) == (Cause.STORE_ACCESS, VA)


@pytest.mark.parametrize(
    ("bits", "load", "store", "fetch"),
    [(R, True, False, False), (R | W, True, True, False), (X, False, False, True), (R | X, True, False, True)],
)
def test_permissions(bits: int, load: bool, store: bool, fetch: bool, paged: Paged) -> None:
    paged.tables.map(VA, DATA, V | A | D | bits)
    paged.bench.code("c.nop", at=DATA)
    h = paged.hart
    h.set_csr("mtvec", HANDLER)
    for text, allowed in (("ld x5,0(x6)", load), ("sd x5,0(x6)", store), ("amoor.d x5,x0,(x6)", store)):
        if allowed:
            paged.bench.steps(text, x6=VA)
        else:
            assert paged.fault(text, VA) == (Cause.LOAD_PAGE if text[0] == "l" else Cause.STORE_PAGE, VA)
    h.pc = VA
    h.run(1)
    assert (h.pc == VA + 2) is fetch
    if not fetch:
        assert (h.csr("mcause"), h.csr("mtval"), h.csr("mepc")) == (Cause.FETCH_PAGE, VA, VA)


def test_the_supervisor_reaches_user_pages_under_sum_alone(paged: Paged) -> None:
    paged.tables.map(VA, DATA, RWX | U)
    assert paged.fault("ld x5,0(x6)", VA) == (Cause.LOAD_PAGE, VA)
    paged.status(SUM)
    paged.store(VA, 5)
    assert paged.load(VA) == 5
    paged.status(0)
    assert paged.fault("sd x5,0(x6)", VA) == (Cause.STORE_PAGE, VA)


def test_the_supervisor_never_executes_user_pages(paged: Paged) -> None:
    paged.tables.map(VA, DATA, RWX | U)
    paged.status(SUM)
    paged.hart.set_csr("mtvec", HANDLER)
    paged.hart.pc = VA
    paged.hart.run(1)
    assert (paged.hart.csr("mcause"), paged.hart.csr("mtval")) == (Cause.FETCH_PAGE, VA)


def test_user_mode_reaches_user_pages_alone(paged: Paged) -> None:
    paged.tables.map(BASE + (2 << 20), BASE + (2 << 20), RWX | U, level=1)
    paged.tables.map(VA, DATA, RWX | U)
    paged.tables.map(VA + 0x1000, DATA, RWX)
    paged.hart.privilege = USER
    at = BASE + (2 << 20)
    assert paged.bench.steps("ld x5,0(x6)", at=at, x6=VA).pc == at + 4
    assert paged.fault("ld x5,0(x6)", VA + 0x1000, pc=at) == (Cause.LOAD_PAGE, VA + 0x1000)


def test_mxr_reads_what_may_be_executed(paged: Paged) -> None:
    paged.tables.map(VA, DATA, V | X | A | D)
    paged.bench.set(DATA, 9)
    assert paged.fault("ld x5,0(x6)", VA) == (Cause.LOAD_PAGE, VA)
    paged.status(MXR)
    assert paged.load(VA) == 9
    paged.status(0)
    assert paged.fault("ld x5,0(x6)", VA) == (Cause.LOAD_PAGE, VA)


def test_mprv_borrows_the_mode_for_loads_and_stores(paged: Paged) -> None:
    h = paged.hart
    paged.tables.map(VA, DATA, RWX)
    paged.bench.set(DATA, 6)
    h.privilege = M
    h.set_csr("mstatus", MPRV | S << 11)
    assert paged.load(VA) == 6
    h.set_csr("mstatus", MPRV | USER << 11)
    assert paged.fault("ld x5,0(x6)", VA) == (Cause.LOAD_PAGE, VA)
    h.set_csr("mstatus", MPRV | M << 11)
    assert paged.load(DATA) == 6
    h.set_csr("mstatus", S << 11)
    assert paged.load(DATA) == 6


# -- accessed and dirty (Svadu 1.0; priv. spec 4.3.1) -----------------------------------------------------------------


def test_the_walk_sets_accessed_and_dirty(paged: Paged) -> None:
    at = paged.tables.map(VA, DATA, V | R | W | X)
    paged.load(VA)
    assert paged.tables.entry(at) & (A | D) == A
    paged.store(VA, 1)
    assert paged.tables.entry(at) & (A | D) == A | D


def test_a_fetch_sets_accessed(paged: Paged) -> None:
    at = paged.tables.map(VA, DATA, V | X)
    paged.bench.code("c.nop", at=DATA)
    paged.hart.pc = VA
    paged.hart.run(1)
    assert paged.tables.entry(at) & (A | D) == A


def test_a_store_that_faults_sets_nothing(paged: Paged) -> None:
    at = paged.tables.map(VA, DATA, V | R)
    assert paged.fault("sd x5,0(x6)", VA) == (Cause.STORE_PAGE, VA)
    assert paged.tables.entry(at) & (A | D) == 0


def test_a_failing_sc_may_set_dirty_but_an_lr_does_not(paged: Paged) -> None:
    at = paged.tables.map(VA, DATA, V | R | W)
    paged.bench.steps("lr.d x5,(x6)", x6=VA)
    assert paged.tables.entry(at) & (A | D) == A


def test_without_the_updates_the_bits_are_asked_for_by_faults(paged: Paged) -> None:
    paged.hart.set_csr("menvcfg", paged.hart.csr("menvcfg") & ~ADUE)
    at = paged.tables.map(VA, DATA, V | R | W | X)
    assert paged.fault("ld x5,0(x6)", VA) == (Cause.LOAD_PAGE, VA)
    paged.tables.set_entry(at, paged.tables.entry(at) | A)
    paged.load(VA)
    assert paged.fault("sd x5,0(x6)", VA) == (Cause.STORE_PAGE, VA)
    paged.tables.set_entry(at, paged.tables.entry(at) | D)
    paged.store(VA, 3)
    assert paged.bench.get(DATA) == 3


def test_the_pages_of_tables_are_marked_when_the_walk_writes_them(sv39: Paged) -> None:
    at = sv39.tables.map(VA, DATA, V | R | W)
    page = at - BASE >> 12
    sv39.bench.ram.page_flags[page] |= PAGE_CLEAN
    sv39.bench.backend.natives.revoke_writes(sv39.hart.address, sv39.bench.ram.host + (page << 12))
    sv39.load(VA)
    assert sv39.bench.ram.page_flags[page] & (PAGE_CLEAN | PAGE_DIRTY) == PAGE_DIRTY


# -- what the TLBs remember -------------------------------------------------------------------------------------------


def test_a_change_is_seen_after_sfence_vma_of_its_page(paged: Paged) -> None:
    paged.bench.set(DATA, 1)
    paged.bench.set(DATA + 0x1000, 2)
    paged.tables.map(VA, DATA, RWX)
    assert paged.load(VA) == 1
    paged.tables.map(VA, DATA + 0x1000, RWX)
    assert paged.bench.steps("sfence.vma x6,x0; ld x5,0(x6)", x6=VA).x[5] == 2


@pytest.mark.parametrize("fence", ["sfence.vma x0,x0", "sfence.vma x7,x0", "sfence.vma x7,x8", "sfence.vma x0,x8"])
def test_one_address_of_a_superpage_stands_for_all_of_it(fence: str, paged: Paged) -> None:
    size = 2 << 20
    paged.bench.set(DATA + 0x5000, 1)
    paged.bench.set(DATA + size + 0x5000, 2)
    paged.tables.map(3 * size, DATA, RWX, level=1)
    assert paged.load(3 * size + 0x5000) == 1
    paged.tables.map(3 * size, DATA + size, RWX, level=1)
    assert paged.bench.steps(f"{fence}; ld x5,0(x6)", x6=3 * size + 0x5000, x7=3 * size, x8=0).x[5] == 2


def test_fetches_are_fenced_too(paged: Paged) -> None:
    paged.bench.code("addi x5,x0,1", at=DATA)
    paged.bench.code("addi x5,x0,2", at=DATA + 0x1000)
    h = paged.hart
    for n in (1, 2):
        paged.tables.map(VA, DATA + 0x1000 * (n - 1), RWX)
        paged.bench.steps("sfence.vma x6,x0", x6=VA)
        h.pc = VA
        h.run(1)
        assert h.x[5] == n


def test_a_new_satp_means_new_tables_at_once(sv39: Paged) -> None:
    other = PageTables(sv39.bench.ram, TABLES + (1 << 20))
    other.map(BASE, BASE, RWX, level=1)
    other.map(VA, DATA + 0x1000, RWX)
    sv39.tables.map(VA, DATA, RWX)
    sv39.bench.set(DATA, 1)
    sv39.bench.set(DATA + 0x1000, 2)
    assert sv39.load(VA) == 1
    assert sv39.bench.steps("csrrw x0,satp,x7; ld x5,0(x6)", x6=VA, x7=other.satp).x[5] == 2


def test_a_mode_that_does_not_exist_leaves_satp_alone(sv39: Paged) -> None:
    before = sv39.hart.csr("satp")
    for mode in (1, 7, 10, 11, 15):
        sv39.bench.steps("csrrw x0,satp,x7", x7=mode << 60 | 5)
        assert sv39.hart.csr("satp") == before


def test_each_mode_has_translations_of_its_own(paged: Paged) -> None:
    """The same address read from M, S and U-mode, without fences in between."""
    h = paged.hart
    paged.tables.map(BASE + (4 << 20), BASE + (8 << 20), RWX, level=1)
    paged.bench.set(BASE + (4 << 20), 1)
    paged.bench.set(BASE + (8 << 20), 2)
    for _ in range(2):
        h.privilege = M
        assert paged.load(DATA) == 1
        h.privilege = S
        assert paged.load(DATA) == 2


def test_global_pages_are_pages(paged: Paged) -> None:
    paged.tables.map(VA, DATA, RWX | G)
    paged.store(VA, 4)
    assert paged.bench.get(DATA) == 4


def test_a_page_that_runs_and_is_written_through_another_address(sv39: Paged) -> None:
    """The code page is known by its place in memory, not by the address that it runs at."""
    sv39.tables.map(VA, DATA, RWX)
    sv39.tables.map(VA + 0x1000, DATA, V | R | W | A | D)
    h = sv39.hart
    for n in (1, 2):
        text = int.from_bytes(b"\x93\x02" + bytes([0, n << 4]), "little")  # addi x5,x0,n << 8
        sv39.bench.steps("sw x7,0(x6); fence.i", x6=VA + 0x1000, x7=text)
        h.pc = VA
        h.run(1)
        assert h.x[5] == n << 8
        assert sv39.bench.ram.page_flags[DATA - BASE >> 12] & PAGE_CODE


def test_what_runs_next_is_fetched_through_the_new_tables(sv39: Paged) -> None:
    """Kernels turn paging on and expect the fault (Linux, relocate_enable_mmu)."""
    empty = PageTables(sv39.bench.ram, TABLES + (1 << 20))
    h = sv39.hart
    h.set_csr("mtvec", HANDLER)
    sv39.bench.code("csrrw x0,satp,x7; c.nop")
    h.pc, h.x[7] = BASE, empty.satp
    assert h.run(2) == Exit.BUDGET
    assert (h.csr("mcause"), h.csr("mepc"), h.csr("mtval")) == (Cause.FETCH_PAGE, BASE + 4, BASE + 4)
