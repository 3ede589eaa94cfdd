"""The PLIC through its registers (RISC-V PLIC spec 1.0), with wires that carry levels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vcpu.bench import BASE, HANDLER, PLIC, Bench
from vmm.vcpu.layout import MEI, PLIC_SOURCES, SEI, Exit

PENDING, ENABLE, CONTEXT = PLIC + 0x1000, PLIC + 0x2000, PLIC + 0x20_0000
M0, S0, M1, S1 = range(4)


class Plic:
    """The controller as a guest's driver sees it; hart 0 makes the accesses."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._wires = {n: bench.backend.wire(n) for n in range(1, PLIC_SOURCES)}

    def priority(self, source: int, value: int) -> None:
        self.bench.store(PLIC + 4 * source, value)

    def enable(self, context: int, *sources: int) -> None:
        for word in range(3):
            bits = sum(1 << s % 32 for s in sources if s // 32 == word)
            self.bench.store(ENABLE + 0x80 * context + 4 * word, bits)

    def threshold(self, context: int, value: int) -> None:
        self.bench.store(CONTEXT + 0x1000 * context, value)

    def claim(self, context: int) -> int:
        return self.bench.load(CONTEXT + 0x1000 * context + 4)

    def complete(self, context: int, source: int) -> None:
        self.bench.store(CONTEXT + 0x1000 * context + 4, source)

    def pending(self) -> set[int]:
        words = [self.bench.load(PENDING + 4 * n) for n in range(3)]
        return {s for s in range(PLIC_SOURCES) if words[s // 32] >> s % 32 & 1}

    def wire(self, source: int, level: bool) -> None:
        self._wires[source].set(level)

    def raised(self, hart: int = 0) -> set[str]:
        """What the controller asks of a hart, by its mip."""
        mip = self.bench.harts[hart].csr("mip")
        return {name for name, bit in (("M", MEI), ("S", SEI)) if mip >> bit & 1}


@pytest.fixture
def plic() -> Iterator[Plic]:
    with Bench(2) as bench:
        yield Plic(bench)


def test_a_wire_that_is_high_asks_the_contexts_that_enabled_it(plic: Plic) -> None:
    plic.priority(10, 1)
    plic.enable(S0, 10)
    plic.enable(M1, 10)
    plic.wire(10, True)
    assert (plic.raised(0), plic.raised(1)) == ({"S"}, {"M"})
    plic.wire(10, False)
    assert (plic.raised(0), plic.raised(1)) == (set(), set())


def test_claiming_takes_the_request_back_until_it_is_completed(plic: Plic) -> None:
    plic.priority(10, 1)
    plic.enable(S0, 10)
    plic.enable(S1, 10)
    plic.wire(10, True)
    assert plic.claim(S0) == 10
    assert (plic.raised(0), plic.raised(1)) == (set(), set())
    assert plic.claim(S1) == 0
    plic.complete(S0, 10)
    assert plic.raised(0) == {"S"}, "its level is still high"
    plic.wire(10, False)
    assert plic.raised(0) == set()


def test_an_edge_during_the_service_is_not_lost(plic: Plic) -> None:
    plic.priority(10, 1)
    plic.enable(S0, 10)
    plic.wire(10, True)
    assert plic.claim(S0) == 10
    plic.wire(10, False)
    plic.wire(10, True)
    plic.complete(S0, 10)
    assert plic.claim(S0) == 10


def test_the_highest_priority_is_claimed_first_and_then_the_lowest_number(plic: Plic) -> None:
    for source, priority in ((5, 2), (9, 7), (40, 7), (70, 3)):
        plic.priority(source, priority)
        plic.wire(source, True)
    plic.enable(M0, 5, 9, 40, 70)
    assert [plic.claim(M0) for _ in range(5)] == [9, 40, 70, 5, 0]


@pytest.mark.parametrize("threshold", range(8))
def test_the_threshold_hides_its_own_priority_and_below(threshold: int, plic: Plic) -> None:
    for n in range(8):
        plic.priority(10 + n, n)
        plic.wire(10 + n, True)
    plic.enable(M0, *range(10, 18))
    plic.threshold(M0, threshold)
    claimed = []
    while source := plic.claim(M0):
        claimed.append(source)
    assert claimed == [10 + n for n in range(7, threshold, -1)]
    assert plic.raised() == set()
    plic.threshold(M0, 0)
    assert plic.raised() == ({"M"} if threshold else set())


def test_priority_zero_never_interrupts(plic: Plic) -> None:
    plic.enable(M0, 10)
    plic.wire(10, True)
    assert plic.raised() == set()
    assert plic.pending() == {10}
    assert plic.claim(M0) == 0


def test_pending_bits_show_levels_that_are_not_claimed(plic: Plic) -> None:
    for source in (1, 31, 32, 64, 95):
        plic.wire(source, True)
    assert plic.pending() == {1, 31, 32, 64, 95}
    plic.priority(32, 1)
    plic.enable(S0, 32)
    assert plic.claim(S0) == 32
    assert plic.pending() == {1, 31, 64, 95}


def test_pending_bits_cannot_be_written(plic: Plic) -> None:
    plic.bench.store(PENDING, 0xFFFF_FFFF)
    assert plic.pending() == set()


@pytest.mark.parametrize("source", [10, 11, 0, 96, 0xFFFF_FFFF])
def test_completing_what_the_context_did_not_enable_is_ignored(source: int, plic: Plic) -> None:
    plic.priority(10, 1)
    plic.enable(M0, 10)
    plic.wire(10, True)
    assert plic.claim(M0) == 10
    plic.complete(S0, source)
    assert plic.raised() == set()
    plic.complete(M0, source if source != 10 else 11)
    assert plic.raised() == set()
    plic.complete(M0, 10)
    assert plic.raised() == {"M"}


def test_source_zero_does_not_exist(plic: Plic) -> None:
    plic.bench.store(PLIC, 7)
    plic.bench.store(ENABLE, 0xFFFF_FFFF)
    assert plic.bench.load(PLIC) == 0
    assert plic.bench.load(ENABLE) == 0xFFFF_FFFE


def test_fields_hold_three_bits(plic: Plic) -> None:
    plic.priority(5, 0xFF)
    plic.threshold(S1, 0x1F)
    assert plic.bench.load(PLIC + 20) == 7
    assert plic.bench.load(CONTEXT + 0x1000 * S1) == 7


@pytest.mark.parametrize(
    "address", [PLIC + 4 * 96, PENDING + 12, ENABLE + 12, ENABLE + 0x80 * 4, CONTEXT + 8, CONTEXT + 0x4000]
)
def test_what_is_not_there_reads_as_zero_and_ignores_writes(address: int, plic: Plic) -> None:
    plic.bench.store(address, 0xFFFF_FFFF)
    assert plic.bench.load(address) == 0


@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_are_words(size: int, plic: Plic) -> None:
    """Other sizes are left to the bus, where nothing answers."""
    plic.bench.code({1: "lbu x5,0(x6)", 2: "lhu x5,0(x6)", 8: "ld x5,0(x6)"}[size])
    h = plic.bench.hart
    h.pc, h.x[6] = BASE, PLIC + 8
    assert h.run(10) == Exit.MMIO_READ


def test_setting_a_wire_to_its_level_does_nothing(plic: Plic) -> None:
    wire = plic.bench.backend.wire(10)
    plic.priority(10, 1)
    plic.enable(M0, 10)
    wire.set(True)
    wire.set(True)
    assert plic.claim(M0) == 10
    wire.set(True)
    plic.complete(M0, 10)
    assert plic.raised() == {"M"}


def test_a_reset_forgets_the_claims_and_keeps_the_levels(plic: Plic) -> None:
    plic.priority(10, 1)
    plic.enable(M0, 10)
    plic.wire(10, True)
    assert plic.claim(M0) == 10
    plic.bench.backend.reset()
    assert plic.raised() == set()
    assert plic.pending() == {10}
    plic.priority(10, 1)
    plic.enable(M0, 10)
    assert plic.raised() == {"M"}


def test_an_interrupt_is_taken_claimed_and_served(plic: Plic) -> None:
    bench = plic.bench
    plic.priority(10, 1)
    plic.enable(M0, 10)
    h = bench.hart
    h.set_csr("mtvec", HANDLER)
    h.set_csr("mie", 1 << MEI)
    h.set_csr("mstatus", 8)
    bench.code("jal x0,0")
    bench.code("lw x5,4(x6); sw x5,4(x6); mret", at=HANDLER)
    h.pc, h.x[6] = BASE, CONTEXT
    h.run(10)
    plic.wire(10, True)
    h.run(1)
    assert (h.csr("mcause"), h.x[5]) == (1 << 63 | MEI, 10)
    plic.wire(10, False)
    h.run(5)
    assert h.pc == BASE
