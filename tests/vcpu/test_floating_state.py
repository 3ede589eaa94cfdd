"""The floating-point state around the computations: fcsr, FS, the host's own control word, and what Python emulates."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys

import pytest

from tests.vcpu.asm import assemble
from tests.vcpu.bench import BASE, Bench
from vmm.vcpu.emulate import emulate
from vmm.vcpu.layout import Exit

FS_DIRTY, FS_CLEAN = 3 << 13, 2 << 13
NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16
RTZ, RDN, RUP, RMM = 1, 2, 3, 4
ILLEGAL = 2


def d(value: float) -> int:
    (bits,) = struct.unpack("<Q", struct.pack("<d", value))
    return int(bits)


@pytest.fixture
def fp(bench: Bench) -> Bench:
    bench.hart.set_csr("mstatus", FS_CLEAN)
    return bench


def test_flags_accrue_until_they_are_cleared(fp: Bench) -> None:
    h = fp.steps("fdiv.d f1,f2,f3", f2=d(1), f3=d(3))
    assert h.csr("fflags") == NX
    fp.steps("fdiv.d f1,f2,f3", f2=d(1), f3=d(0))
    assert h.csr("fflags") == NX | DZ
    assert fp.steps("csrrci x5,fflags,1").x[5] == NX | DZ
    assert h.csr("fflags") == DZ
    fp.steps("csrrw x0,fcsr,x0")
    assert h.csr("fcsr") == 0


def test_looking_at_fcsr_from_outside_changes_nothing(fp: Bench) -> None:
    h = fp.steps("csrrwi x0,frm,3; fdiv.d f1,f2,f3", f2=d(1), f3=d(3))
    up = h.f[1]
    for _ in range(3):
        assert sum(n / 7 for n in range(100)) > 0  # the host's own inexact results
        assert h.csr("fcsr") == RUP << 5 | NX
    h.set_csr("fflags", 0)
    assert h.csr("fcsr") == RUP << 5
    assert fp.steps("fdiv.d f1,f2,f3").f[1] == up == d(1 / 3) + 1


def test_writing_fcsr_from_outside_leaves_the_host_its_rounding(fp: Bench) -> None:
    third = 1 / 3
    fp.hart.set_csr("frm", RUP)
    assert 1 / float(fp.hart.words["frm"]) == third
    assert fp.steps("fdiv.d f1,f2,f3", f2=d(1), f3=d(3)).f[1] == d(third) + 1
    assert 1 / float(fp.hart.words["frm"]) == third


def test_the_guests_rounding_and_flags_do_not_reach_the_host(fp: Bench) -> None:
    libm = ctypes.CDLL("libm.so.6")
    libm.feclearexcept(0x3F)
    fp.steps("csrrwi x0,frm,1; fdiv.d f1,f2,f3", f2=d(1), f3=d(0))
    assert libm.fegetround() == 0
    assert libm.fetestexcept(0x04) == 0, "the guest divided by zero, not the host"


@pytest.mark.parametrize(("rm", "last"), [("rne", 0x5), ("rtz", 0x5), ("rdn", 0x5), ("rup", 0x6), ("rmm", 0x5)])
def test_a_static_rounding_mode_wins_over_frm(rm: str, last: int, fp: Bench) -> None:
    fp.code(f"fdiv.d f1,f2,f3,{rm}; c.nop")
    h = fp.hart
    h.set_csr("frm", RUP if rm != "rup" else RTZ)
    h.f[2], h.f[3] = d(1), d(3)
    assert fp.until_exit(budget=1) == Exit.BUDGET
    if h.pc != BASE + 4:
        fp.until_exit(budget=1)
    assert h.f[1] & 0xF == last
    assert h.csr("frm") == (RUP if rm != "rup" else RTZ)


def test_one_static_mode_does_not_linger(fp: Bench) -> None:
    h = fp.steps("fdiv.d f1,f2,f3,rup; fdiv.d f4,f2,f3", f2=d(1), f3=d(3))
    assert (h.f[1], h.f[4]) == (d(1 / 3) + 1, d(1 / 3))


@pytest.mark.parametrize("frm", [5, 6, 7])
def test_a_reserved_dynamic_mode_is_illegal_for_what_rounds(frm: int, fp: Bench) -> None:
    fp.hart.set_csr("frm", frm)
    word = int.from_bytes(assemble("fadd.d f1,f2,f3"), "little")
    assert fp.trap("fadd.d f1,f2,f3") == (ILLEGAL, 0, word)
    fp.steps("fsgnj.d f1,f2,f3; fmadd.d f1,f2,f3,f4,rne; feq.d x5,f1,f2; fld f1,0(x6)", x6=BASE)


def test_everything_floating_is_illegal_while_it_is_off(bench: Bench) -> None:
    for text in ("fadd.d f1,f2,f3", "fld f1,0(x6)", "c.fsd f8,0(x8)", "fmv.x.d x5,f1", "fcvt.s.d f1,f2,rmm"):
        word = int.from_bytes(assemble(text), "little")
        assert bench.trap(text, x6=BASE, x8=BASE) == (ILLEGAL, 0, word)
    for csr in ("fflags", "frm", "fcsr"):
        assert bench.trap(f"csrrs x5,{csr},x0")[0] == ILLEGAL
    assert bench.hart.csr("mstatus") & FS_DIRTY == 0


@pytest.mark.parametrize(
    "text",
    ["fadd.d f1,f2,f3", "fld f1,0(x6)", "fmv.d.x f1,x5", "csrrwi x0,frm,1", "fcvt.s.d f1,f2,rmm", "flt.d x5,f1,f2"],
)
def test_what_may_change_the_state_makes_it_dirty(text: str, fp: Bench) -> None:
    fp.code(text)
    fp.hart.x[6] = BASE
    assert fp.hart.csr("mstatus") & FS_DIRTY == FS_CLEAN
    fp.until_exit(budget=1)
    assert fp.hart.csr("mstatus") & (1 << 63 | FS_DIRTY) == 1 << 63 | FS_DIRTY


# -- ties away from zero: by Python -----------------------------------------------------------------------------------


def test_ties_away_is_left_to_python_and_done_there(fp: Bench) -> None:
    fp.code("fcvt.w.d x5,f1,rmm; fcvt.w.d x6,f1,rne; fadd.s f2,f3,f4,rmm; c.nop")
    h = fp.hart
    h.f[1] = d(2.5)
    h.f[3], h.f[4] = 0xFFFF_FFFF_0000_0001, 0xFFFF_FFFF_3F80_0000  # a subnormal and 1.0
    for pc, flags in ((BASE, NX), (BASE + 8, NX)):
        while h.run(BASE + 12 - h.pc) != Exit.EMULATE:
            raise AssertionError
        assert h.pc == pc
        emulate(h)
        assert h.csr("fflags") == flags
        h.set_csr("fflags", 0)
    assert (h.x[5], h.x[6], h.f[2]) == (3, 2, 0xFFFF_FFFF_3F80_0000)


def test_a_dynamic_ties_away_is_emulated_too(fp: Bench) -> None:
    fp.hart.set_csr("frm", RMM)
    fp.code("fcvt.l.d x0,f1; fsqrt.d f1,f1; fadd.d f2,f1,f1; fsgnj.d f3,f2,f2; c.nop")
    fp.hart.f[1] = d(6.25)
    exits = []
    while fp.hart.pc != BASE + 16:
        exits.append(fp.hart.run(1))
        if exits[-1] == Exit.EMULATE:
            emulate(fp.hart)
    assert exits == [Exit.EMULATE] * 3 + [Exit.BUDGET]
    assert (fp.hart.x[0], fp.hart.f[3], fp.hart.csr("fflags")) == (0, d(5.0), NX)


def test_an_instruction_across_two_pages_is_emulated(fp: Bench) -> None:
    at = BASE + 4094
    fp.code("fcvt.w.d x5,f1,rmm", at=at)
    fp.hart.pc, fp.hart.f[1] = at, d(-0.5)
    assert fp.hart.run(1) == Exit.EMULATE
    emulate(fp.hart)
    assert (fp.hart.x[5], fp.hart.pc) == ((1 << 64) - 1, at + 4)


def test_the_tables_are_not_imported_before_a_guest_asks_for_them() -> None:
    """They take a seventh of a second."""
    code = "import sys, vmm.vcpu.thread; sys.exit('vmm.isa.table' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
