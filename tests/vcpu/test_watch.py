"""Watching pages for writes: the dirty log's flags, `revoke_writes`, and every way in which a guest writes.

A page whose CLEAN flag is set is watched: the first write to it makes it DIRTY instead, and later ones are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vcpu.bench import BASE, DATA, TABLES, Bench, until
from tests.vcpu.tables import A, D, PageTables, R, V, W, X
from vmm.vcpu.layout import PAGE_CLEAN, PAGE_CODE, PAGE_DIRTY

PAGE = 4096


class Watch:
    """The log's side of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def arm(self, address: int) -> int:
        """Watch a page from now on: how many tags of other harts had to be taken away."""
        page = address - BASE >> 12
        self.bench.ram.page_flags[page] = self.bench.ram.page_flags[page] & ~PAGE_DIRTY | PAGE_CLEAN
        return int(
            self.bench.backend.natives.revoke_writes(self.bench.hart.address, self.bench.ram.host + (page << 12))
        )

    def flags(self, address: int) -> int:
        return self.bench.ram.page_flags[address - BASE >> 12] & (PAGE_CLEAN | PAGE_DIRTY)


@pytest.fixture
def watch() -> Iterator[Watch]:
    with Bench(2) as bench:
        yield Watch(bench)


WRITES = {
    "byte": "sb x5,0(x6)",
    "word": "sw x5,0(x6)",
    "doubleword": "sd x5,0(x6)",
    "compressed": "c.sd x8,0(x9)",
    "float": "fsd f5,0(x6)",
    "amo": "amoadd.w x7,x5,(x6)",
    "amo that changes nothing": "amoor.d x7,x0,(x6)",
    "sc": "lr.d x7,(x6); sc.d x7,x5,(x6)",
    "cache block": "cbo.zero (x6)",
    "misaligned": "sd x5,3(x6)",
}


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_every_kind_of_write_is_seen_once(kind: str, warm: bool, watch: Watch) -> None:
    bench = watch.bench
    bench.hart.set_csr("mstatus", 3 << 13)

    def write() -> None:
        bench.steps(WRITES[kind], x5=5, x6=DATA, x8=8, x9=DATA)

    if warm:
        bench.steps("sd x0,0(x6)", x6=DATA)  # the translation is in the TLB, write tag and all
        write()
    watch.arm(DATA)
    assert watch.flags(DATA) == PAGE_CLEAN
    write()
    assert watch.flags(DATA) == PAGE_DIRTY
    watch.arm(DATA)
    write()
    assert watch.flags(DATA) == PAGE_DIRTY, "a second round is logged as the first was"


@pytest.mark.parametrize("text", ["ld x5,0(x6)", "lr.w x5,(x6)", "sd x5,-8(x6)", "cbo.clean (x6)", "fld f1,8(x6)"])
def test_what_does_not_write_the_page_is_not_logged(text: str, watch: Watch) -> None:
    watch.bench.hart.set_csr("mstatus", 3 << 13)
    watch.arm(DATA)
    watch.bench.steps(text, x6=DATA)
    assert watch.flags(DATA) == PAGE_CLEAN


def test_a_store_that_faults_is_not_logged(watch: Watch) -> None:
    tables = PageTables(watch.bench.ram, TABLES)
    tables.map(BASE, BASE, V | R | W | X | A | D, level=1)
    tables.map(DATA, DATA, V | R | A | D)
    h = watch.bench.hart
    h.set_csr("pmpaddr0", (1 << 54) - 1)
    h.set_csr("pmpcfg0", 0x1F)
    h.set_csr("satp", tables.satp)
    h.privilege = 1
    watch.arm(DATA)
    assert watch.bench.trap("sd x5,0(x6)", x6=DATA)[0] == 15
    assert watch.flags(DATA) == PAGE_CLEAN


def test_a_store_across_two_pages_marks_both(watch: Watch) -> None:
    watch.arm(DATA)
    watch.arm(DATA + PAGE)
    watch.bench.steps("sd x5,-4(x6)", x6=DATA + PAGE)
    assert (watch.flags(DATA), watch.flags(DATA + PAGE)) == (PAGE_DIRTY, PAGE_DIRTY)


def test_other_pages_are_left_alone(watch: Watch) -> None:
    watch.bench.steps("sd x0,0(x6); sd x0,0(x7)", x6=DATA, x7=DATA + PAGE)
    watch.arm(DATA)
    watch.bench.steps("sd x0,0(x6)", x6=DATA + PAGE)
    assert watch.flags(DATA) == PAGE_CLEAN


def test_revoking_says_how_many_tags_of_other_harts_there_were(watch: Watch) -> None:
    watch.bench.store(DATA, 1, hart=0)
    assert watch.arm(DATA) == 0, "the hart that asks knows of its own"
    for _ in range(2):  # the first is logged, the second finds nobody watching
        watch.bench.store(DATA, 1, hart=1)
    assert watch.arm(DATA) == 1
    assert watch.arm(DATA) == 0
    watch.bench.store(DATA, 1, hart=1)
    assert watch.flags(DATA) == PAGE_DIRTY


def test_a_page_in_the_tlb_under_two_addresses_is_revoked_under_both(watch: Watch) -> None:
    bench = watch.bench
    tables = PageTables(bench.ram, TABLES)
    bits = V | R | W | X | A | D
    tables.map(BASE, BASE, bits, level=1)
    for va in (0x1000, 0x2000):
        tables.map(va, DATA, bits)
    h = bench.harts[1]
    h.set_csr("pmpaddr0", (1 << 54) - 1)
    h.set_csr("pmpcfg0", 0x1F)
    h.set_csr("satp", tables.satp)
    h.privilege = 1
    for va in (0x1000, 0x2000):
        bench.steps("sd x0,0(x6)", hart=1, x6=va)
    assert watch.arm(DATA) == 2
    for va in (0x1000, 0x2000):
        watch.arm(DATA)
        bench.steps("sd x0,0(x6)", hart=1, x6=va)
        assert watch.flags(DATA) == PAGE_DIRTY


def test_a_busy_hart_is_seen_again_and_again(watch: Watch) -> None:
    """Armed while the other hart stores all the time: each time, its next store is logged."""
    bench = watch.bench
    bench.code("top: addi x5,x5,1; sd x5,0(x6); sd x5,0(x7); jal x0,top", at=BASE + 0x1000)
    h = bench.harts[1]
    h.pc, h.x[6], h.x[7] = BASE + 0x1000, DATA, DATA + PAGE
    with bench.running(1):
        for _ in range(60):
            watch.arm(DATA)
            until(lambda: watch.flags(DATA) == PAGE_DIRTY)


def test_code_pages_can_be_watched_too(watch: Watch) -> None:
    watch.bench.steps("c.nop", at=DATA)
    watch.arm(DATA)
    watch.bench.store(DATA + 2048, 1)
    assert watch.flags(DATA) == PAGE_DIRTY
    assert watch.bench.ram.page_flags[DATA - BASE >> 12] & PAGE_CODE
    watch.bench.store(DATA, 1)
    assert not watch.bench.ram.page_flags[DATA - BASE >> 12] & PAGE_CODE


def test_a_write_of_a_device_clears_the_flag(watch: Watch) -> None:
    watch.arm(DATA)
    watch.bench.put(DATA + 8, b"dma")
    assert not watch.flags(DATA) & PAGE_CLEAN
