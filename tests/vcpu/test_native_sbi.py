"""The SBI calls that generated code answers itself: timer, IPI, remote fences (SBI 2.0, chapters 6 to 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vmm.fabric.clock import Clock
from vmm.fabric.ram import Ram
from vmm.isa.table import INSTRUCTIONS
from vmm.testing.fakes import FakeIoThread
from vmm.vcpu.layout import SSI, Exit
from vmm.vcpu.software import SoftwareBackend

ALL = (1 << 64) - 1
TIME, IPI, RFENCE = 0x54494D45, 0x735049, 0x52464E43
SUCCESS, NOT_SUPPORTED, INVALID_PARAM = 0, -2, -3
HARTS = 4


@pytest.fixture
def backend() -> Iterator[SoftwareBackend]:
    with Ram(0x8000_0000, 32 << 20) as ram:
        struct.pack_into("<I", ram.view, 0, INSTRUCTIONS["ecall"].encode())
        struct.pack_into("<I", ram.view, 4, INSTRUCTIONS["jal"].encode(rd=0, imm=0))
        clock = Clock(FakeIoThread())
        yield SoftwareBackend(ram, clock, HARTS, plic_base=0xC00_0000, clint_base=0x200_0000, sbi=True)


def call(backend: SoftwareBackend, extension: int, function: int, *args: int) -> int:
    """The error that the call of hart 0 answers, signed. It must be answered without leaving to Python."""
    hart = backend.vcpus[0]
    for register, value in enumerate((*args, *[0] * (6 - len(args)), function, extension), start=10):
        hart.x[register] = value
    hart.pc = 0x8000_0000
    assert hart.run(3) == Exit.BUDGET
    error: int = hart.x[10]
    return error - (1 << 64) if error >> 63 else error


def pending(backend: SoftwareBackend) -> int:
    """The harts whose supervisor software interrupt is pending, as a mask."""
    return sum(1 << hart.index for hart in backend.vcpus if hart.words["mip_hw"] >> SSI & 1)


@pytest.mark.parametrize(
    ("mask", "base", "harts"),
    [(0b1, 0, 0b1), (0b11, 2, 0b1100), (0, ALL, 0b1111), (ALL, ALL, 0b1111), (0b1111, 0, 0b1111), (0, 99, 0)],
)
def test_a_hart_mask_names_harts_from_its_base(backend: SoftwareBackend, mask: int, base: int, harts: int) -> None:
    assert call(backend, IPI, 0, mask, base) == SUCCESS
    assert pending(backend) == harts


@pytest.mark.parametrize(("mask", "base"), [(0b10000, 0), (0b10, 3), (1, 4), (1, ALL - 1), (ALL, 0), (ALL, 1 << 63)])
def test_a_hart_mask_with_a_hart_that_does_not_exist_is_refused(backend: SoftwareBackend, mask: int, base: int) -> None:
    assert call(backend, IPI, 0, mask, base) == INVALID_PARAM
    assert call(backend, RFENCE, 1, mask, base) == INVALID_PARAM
    assert pending(backend) == 0


@pytest.mark.parametrize(
    ("extension", "function"), [(TIME, 1), (TIME, ALL), (IPI, 1), (RFENCE, 3), (RFENCE, 6), (RFENCE, ALL)]
)
def test_unknown_functions_and_those_of_the_hypervisor_extension_are_not_supported(
    backend: SoftwareBackend, extension: int, function: int
) -> None:
    assert call(backend, extension, function, 1) == NOT_SUPPORTED


def test_the_timer_is_set_for_the_calling_hart(backend: SoftwareBackend) -> None:
    assert call(backend, TIME, 0, 12345) == SUCCESS
    assert [hart.csr("stimecmp") for hart in backend.vcpus] == [12345, ALL, ALL, ALL]


@pytest.mark.parametrize("function", [0, 1, 2])
def test_a_remote_fence_reaches_each_hart_named_before_it_next_runs_guest_code(
    backend: SoftwareBackend, function: int
) -> None:
    assert call(backend, RFENCE, function, 0b0110, 0, 0x1000, 0x2000) == SUCCESS
    asked = [hart.words["fence_req"] != hart.words["fence_ack"] for hart in backend.vcpus]
    assert asked == [False, True, True, False]
    backend.vcpus[1].pc = 0x8000_0004
    backend.vcpus[1].run(1)
    assert backend.vcpus[1].words["fence_req"] == backend.vcpus[1].words["fence_ack"]
