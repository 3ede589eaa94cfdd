"""Doorbells: stores that add 1 to an eventfd, without leaving guest code."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.vcpu.bench import BASE, DEVICE, Bench, until
from vmm.fabric.bus import BusDoorbell
from vmm.vcpu.layout import MAX_DOORBELLS, Exit

NOTIFY = DEVICE + 0x50


@pytest.fixture
def fd() -> Iterator[int]:
    found = os.eventfd(0, os.EFD_NONBLOCK)
    yield found
    os.close(found)


def rings(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_a_store_rings_and_the_guest_goes_on(bench: Bench, fd: int) -> None:
    bench.hart.set_doorbells([BusDoorbell(NOTIFY, 4, None, fd)])
    bench.steps("sw x5,0(x6); sw x0,0(x6); c.nop", x5=7, x6=NOTIFY)
    assert rings(fd) == 2


def test_a_value_selects_the_doorbell(bench: Bench, fd: int) -> None:
    other = os.eventfd(0, os.EFD_NONBLOCK)
    bench.hart.set_doorbells([BusDoorbell(NOTIFY, 4, 0, fd), BusDoorbell(NOTIFY, 4, 1, other)])
    bench.steps("sw x5,0(x6); sw x5,0(x6)", x5=1, x6=NOTIFY)
    assert (rings(fd), rings(other)) == (0, 2)
    bench.steps("sw x5,0(x6)", x5=0xABCD_0000_0000, x6=NOTIFY)
    assert (rings(fd), rings(other)) == (1, 0), "what is not stored does not count"
    os.close(other)


def test_another_value_is_an_exit(bench: Bench, fd: int) -> None:
    bench.hart.set_doorbells([BusDoorbell(NOTIFY, 4, 3, fd)])
    bench.code("sw x5,0(x6)")
    bench.hart.x[5], bench.hart.x[6] = 4, NOTIFY
    assert bench.hart.run(100) == Exit.MMIO_WRITE
    assert rings(fd) == 0


@pytest.mark.parametrize("text", ["sh x5,0(x6)", "sd x5,-8(x6)", "sb x5,0(x6)", "sw x5,4(x6)", "lw x5,0(x6)"])
def test_any_other_access_is_an_exit(text: str, bench: Bench, fd: int) -> None:
    bench.hart.set_doorbells([BusDoorbell(NOTIFY, 4, None, fd), BusDoorbell(NOTIFY - 8, 4, None, fd)])
    bench.code(text)
    bench.hart.x[6] = NOTIFY
    assert bench.hart.run(100) in (Exit.MMIO_WRITE, Exit.MMIO_READ)
    assert rings(fd) == 0


def test_doorbells_are_replaced_as_a_whole(bench: Bench, fd: int) -> None:
    bench.hart.set_doorbells([BusDoorbell(NOTIFY, 4, None, fd)])
    bench.hart.set_doorbells([])
    bench.code("sw x5,0(x6)")
    bench.hart.x[6] = NOTIFY
    assert bench.hart.run(100) == Exit.MMIO_WRITE


def test_one_too_many_is_an_exit(bench: Bench, fd: int) -> None:
    bench.hart.set_doorbells(BusDoorbell(DEVICE + 8 * n, 4, None, fd) for n in range(MAX_DOORBELLS + 1))
    bench.steps("sw x5,0(x6)", x6=DEVICE + 8 * (MAX_DOORBELLS - 1))
    assert rings(fd) == 1
    bench.code("sw x5,0(x6)")
    bench.hart.pc, bench.hart.x[6] = BASE, DEVICE + 8 * MAX_DOORBELLS
    assert bench.hart.run(100) == Exit.MMIO_WRITE


def test_a_ring_is_seen_while_the_hart_runs_on(bench: Bench, fd: int) -> None:
    bench.hart.set_doorbells([BusDoorbell(NOTIFY, 4, None, fd)])
    bench.code("top: sw x5,0(x6); jal x0,top")
    bench.hart.x[6] = NOTIFY
    total = 0

    def enough() -> bool:
        nonlocal total
        total += rings(fd)
        return total > 100

    with bench.running() as exits:
        until(enough)
    assert exits == [Exit.KICK]
