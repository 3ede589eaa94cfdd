from __future__ import annotations

import pytest

from vmm.devices.finisher import Finisher
from vmm.fabric.bus import BusFault
from vmm.testing.bench import DeviceBench


class Bench(DeviceBench[Finisher]):
    def __init__(self, **options) -> None:
        self.asked: list[object] = []
        super().__init__(Finisher, lambda _: {"power_off": self._power_off, "restart": self._restart}, **options)

    def _power_off(self, status: int) -> None:
        assert not self.device._lock.held()
        self.asked.append(status)

    def _restart(self) -> None:
        assert not self.device._lock.held()
        self.asked.append("restart")


@pytest.fixture(params=["device", "bql"])
def bench(request):
    with Bench(policy=request.param) as bench:
        yield bench


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (0x5555, [0]),
        (0x12345555, [0]),
        (0x3333, [0]),
        (0x0007_3333, [7]),
        (0xFFFF_3333, [0xFFFF]),
        (0x7777, ["restart"]),
        (0x0000, []),
        (0xDEAD_BEEF, []),
    ],
)
def test_what_is_written_is_passed_on_with_the_lock_free_before_the_access_returns(bench, value, asked):
    bench.write(0, value)
    assert bench.asked == asked


def test_a_16_bit_store_powers_off_too(bench):
    bench.write(0, 0x5555, 2)
    assert bench.asked == [0]


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 8), (4, 4), (0xFFC, 4)])
def test_other_accesses_fault(bench, offset, size):
    with pytest.raises(BusFault):
        bench.write(offset, 0x5555, size)
    with pytest.raises(BusFault):
        bench.read(offset, size)
    assert bench.asked == []


def test_it_reads_as_zero_and_remembers_nothing(bench):
    bench.write(0, 0x5555)
    assert bench.read(0) == 0
    saved = bench.device.save()
    bench.device.restore(saved)
    bench.device.reset()
    assert bench.asked == [0]
