"""Physical memory protection (priv. spec 3.7)."""

from __future__ import annotations

import pytest

from tests.vcpu.bench import BASE, DATA, HANDLER, Bench
from vmm.vcpu.layout import Cause

R, W, X, L = 1, 2, 4, 0x80
TOR, NA4, NAPOT = 1 << 3, 2 << 3, 3 << 3
ALL = (1 << 54) - 1


def napot(base: int, size: int) -> int:
    return base >> 2 | (size >> 3) - 1


@pytest.fixture
def user(bench: Bench) -> Bench:
    """S-mode; entry 15 allows what no other entry is about."""
    bench.hart.set_csr("pmpaddr15", ALL)
    bench.hart.set_csr("pmpcfg2", (NAPOT | R | W | X) << 56)
    bench.hart.privilege = 1
    return bench


def protect(bench: Bench, entry: int, address: int, config: int) -> None:
    h = bench.hart
    h.set_csr(f"pmpaddr{entry}", address)
    register, shift = f"pmpcfg{entry // 8 * 2}", entry % 8 * 8
    h.set_csr(register, h.csr(register) & ~(0xFF << shift) | config << shift)


def test_without_entries_machine_mode_may_do_all_and_others_nothing(bench: Bench) -> None:
    bench.steps("ld x5,0(x6); sd x5,0(x6)", x6=DATA)
    bench.hart.privilege = 1
    bench.hart.set_csr("mtvec", HANDLER)
    bench.hart.pc = BASE
    bench.hart.run(1)
    assert (bench.hart.csr("mcause"), bench.hart.csr("mtval")) == (Cause.FETCH_ACCESS, BASE)


@pytest.mark.parametrize(
    ("config", "load", "store"), [(0, False, False), (R, True, False), (R | W, True, True), (X, False, False)]
)
def test_an_entry_says_what_is_allowed(config: int, load: bool, store: bool, user: Bench) -> None:
    protect(user, 0, napot(DATA, 4096), NAPOT | config)
    for text, allowed, cause in (("ld x5,8(x6)", load, Cause.LOAD_ACCESS), ("sd x5,8(x6)", store, Cause.STORE_ACCESS)):
        if allowed:
            user.steps(text, x6=DATA)
        else:
            assert user.trap(text, x6=DATA) == (cause, 0, DATA + 8)
    user.steps("ld x5,0(x6); sd x5,0(x6)", x6=DATA + 4096)


def test_fetches_are_checked(user: Bench) -> None:
    protect(user, 0, napot(DATA, 4096), NAPOT | R | W)
    h = user.hart
    h.set_csr("mtvec", HANDLER)
    h.pc = DATA
    h.run(1)
    assert (h.csr("mcause"), h.csr("mtval"), h.csr("mepc")) == (Cause.FETCH_ACCESS, DATA, DATA)


def test_the_lowest_entry_that_matches_decides(user: Bench) -> None:
    protect(user, 1, napot(DATA, 8192), NAPOT | R)
    protect(user, 0, napot(DATA, 4096), NAPOT | R | W)
    user.steps("sd x5,0(x6)", x6=DATA)
    assert user.trap("sd x5,0(x6)", x6=DATA + 4096)[0] == Cause.STORE_ACCESS


def test_ranges_finer_than_a_page(user: Bench) -> None:
    protect(user, 0, DATA + 64 >> 2, 0)
    protect(user, 1, DATA + 72 >> 2, TOR | R)
    protect(user, 2, DATA + 128 >> 2, NA4)
    for _ in range(2):
        user.steps("sd x5,56(x6); ld x5,64(x6); sd x5,72(x6); sw x5,124(x6); lw x5,132(x6)", x6=DATA)
        assert user.trap("sb x5,64(x6)", x6=DATA) == (Cause.STORE_ACCESS, 0, DATA + 64)
        assert user.trap("lbu x5,131(x6)", x6=DATA) == (Cause.LOAD_ACCESS, 0, DATA + 131)


def test_an_access_that_is_partly_covered_fails(user: Bench) -> None:
    protect(user, 0, DATA + 64 >> 2, NA4 | R | W | X)
    user.steps("lw x5,64(x6)", x6=DATA)
    assert user.trap("ld x5,64(x6)", x6=DATA)[0] == Cause.LOAD_ACCESS


def test_a_locked_entry_binds_machine_mode(bench: Bench) -> None:
    protect(bench, 0, napot(DATA, 4096), NAPOT | R)
    bench.steps("sd x5,0(x6)", x6=DATA)
    protect(bench, 0, napot(DATA, 4096), NAPOT | R | L)
    bench.steps("ld x5,0(x6)", x6=DATA)
    assert bench.trap("sd x5,0(x6)", x6=DATA)[0] == Cause.STORE_ACCESS


def test_a_locked_entry_cannot_be_changed(bench: Bench) -> None:
    h = bench.hart
    protect(bench, 0, DATA >> 2, 0)
    protect(bench, 1, DATA + 4096 >> 2, TOR | R | L)
    bench.steps("csrrw x0,pmpaddr1,x0; csrrw x0,pmpcfg0,x0; csrrw x0,pmpaddr0,x0")
    assert h.csr("pmpaddr1") == DATA + 4096 >> 2
    assert h.csr("pmpaddr0") == DATA >> 2, "the base of a locked TOR entry is locked too"
    assert h.csr("pmpcfg0") == (TOR | R | L) << 8


def test_a_change_is_obeyed_at_once(user: Bench) -> None:
    for config in (R | W, R, R | W, 0):
        protect(user, 0, napot(DATA, 4096), NAPOT | config)
        if config & W:
            user.steps("sd x5,0(x6)", x6=DATA)
        else:
            assert user.trap("sd x5,0(x6)", x6=DATA)[0] == Cause.STORE_ACCESS


def test_write_without_read_is_reserved(bench: Bench) -> None:
    bench.steps("csrrw x0,pmpcfg0,x5", x5=NAPOT | W)
    assert bench.hart.csr("pmpcfg0") & (R | W) != W


def test_borrowed_privilege_is_checked(bench: Bench) -> None:
    protect(bench, 0, napot(DATA, 4096), NAPOT | R)
    bench.hart.set_csr("mstatus", 1 << 17 | 1 << 11)  # MPRV, MPP = S
    bench.steps("ld x5,0(x6)", x6=DATA)
    assert bench.trap("sd x5,0(x6)", x6=DATA)[0] == Cause.STORE_ACCESS
    assert bench.trap("ld x5,0(x6)", x6=DATA + 4096)[0] == Cause.LOAD_ACCESS


def test_sixteen_entries_are_there(bench: Bench) -> None:
    for n in range(16):
        bench.steps(f"csrrw x0,pmpaddr{n},x5; csrrs x6,pmpaddr{n},x0", x5=(1 << 64) - 1)
        assert bench.hart.x[6] == ALL
