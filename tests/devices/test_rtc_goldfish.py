from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.errors import SnapshotError
from vmm.fabric.bus import BusFault
from vmm.testing.bench import DeviceBench

TIME_LOW, TIME_HIGH, ALARM_LOW, ALARM_HIGH = 0x00, 0x04, 0x08, 0x0C
IRQ_ENABLED, CLEAR_ALARM, ALARM_STATUS, CLEAR_INTERRUPT = 0x10, 0x14, 0x18, 0x1C

START = 1_700_000_000_123_456_789
SECOND = 1_000_000_000


class Bench(DeviceBench[GoldfishRtc]):
    def __init__(self, **options) -> None:
        super().__init__(
            GoldfishRtc, lambda bench: {"wire": bench.wire, "clock": bench.clock}, start_ns=START, **options
        )

    def time(self) -> int:
        low = self.read(TIME_LOW)
        return self.read(TIME_HIGH) << 32 | low

    def set_alarm(self, at: int) -> None:
        self.write(ALARM_HIGH, at >> 32)
        self.write(ALARM_LOW, at & 0xFFFF_FFFF)


@pytest.fixture(params=["device", "bql"])
def bench(request):
    with Bench(policy=request.param) as bench:
        yield bench


def test_the_time_is_nanoseconds_since_the_epoch(bench):
    assert bench.time() == START
    bench.advance(5 * SECOND)
    assert bench.time() == START + 5 * SECOND


def test_reading_the_low_half_keeps_the_high_half_that_belongs_to_it(bench):
    low = bench.read(TIME_LOW)
    bench.advance(100 * SECOND)
    assert bench.read(TIME_HIGH) << 32 | low == START


def test_the_guest_can_set_the_time(bench):
    wanted = 946_684_800 * SECOND
    bench.write(TIME_HIGH, wanted >> 32)
    bench.write(TIME_LOW, wanted & 0xFFFF_FFFF)
    assert bench.time() == wanted
    bench.advance(7)
    assert bench.time() == wanted + 7


def test_an_alarm_fires_at_its_time_and_not_before(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.set_alarm(START + 3 * SECOND)
    assert bench.read(ALARM_STATUS) == 1
    bench.advance(3 * SECOND - 1)
    assert not bench.wire.level
    bench.advance(1)
    assert bench.wire.level
    assert bench.read(ALARM_STATUS) == 0


def test_an_alarm_in_the_past_fires_at_once(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.set_alarm(START - 1)
    assert bench.wire.level


def test_the_interrupt_stays_until_it_is_cleared(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.set_alarm(START)
    bench.advance(SECOND)
    assert bench.wire.level
    bench.write(CLEAR_INTERRUPT, 1)
    assert not bench.wire.level
    bench.advance(SECOND)
    assert not bench.wire.level


def test_a_disabled_interrupt_is_pending_and_comes_out_when_enabled(bench):
    bench.set_alarm(START)
    assert not bench.wire.level
    bench.write(IRQ_ENABLED, 1)
    assert bench.wire.level
    bench.write(IRQ_ENABLED, 0)
    assert not bench.wire.level


def test_a_cleared_alarm_does_not_fire(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.set_alarm(START + SECOND)
    bench.write(CLEAR_ALARM, 1)
    assert bench.read(ALARM_STATUS) == 0
    bench.advance(2 * SECOND)
    assert not bench.wire.level


def test_a_half_written_alarm_that_has_gone_by_does_not_fire(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.set_alarm(START + 100 * SECOND)
    bench.write(ALARM_HIGH, 0)
    bench.advance(SECOND)
    assert not bench.wire.level
    bench.write(ALARM_HIGH, (START + 100 * SECOND) >> 32)
    bench.advance(99 * SECOND)
    assert bench.wire.level


def test_setting_the_time_past_the_alarm_fires_it(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.set_alarm(START + 1000 * SECOND)
    bench.write(TIME_HIGH, (START >> 32) + 1000)
    assert bench.wire.level


def test_the_alarm_registers_read_back(bench):
    bench.set_alarm(0x1122_3344_5566_7788)
    assert (bench.read(ALARM_HIGH), bench.read(ALARM_LOW)) == (0x1122_3344, 0x5566_7788)
    assert bench.read(IRQ_ENABLED) == 0


@pytest.mark.parametrize("size", [1, 2, 8])
def test_only_32_bit_accesses_are_answered(bench, size):
    with pytest.raises(BusFault):
        bench.read(TIME_LOW, size)
    with pytest.raises(BusFault):
        bench.write(TIME_LOW, 0, size)


def test_holes_read_as_zero_and_are_counted(bench):
    assert bench.read(CLEAR_ALARM) == 0
    assert bench.read(0x02) == 0
    assert bench.device.refused == 2


def test_reset_forgets_the_alarm_and_what_the_guest_set(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.write(TIME_HIGH, 0)
    bench.set_alarm(bench.time() + SECOND)
    bench.device.reset()
    bench.advance(10 * SECOND)
    assert not bench.wire.level
    assert bench.time() == START + 10 * SECOND


def test_a_restored_clock_keeps_its_time_and_its_alarm(bench):
    bench.write(IRQ_ENABLED, 1)
    bench.write(TIME_HIGH, 0)
    at = bench.time() + SECOND
    bench.set_alarm(at)
    with Bench() as other:
        other.device.restore(bench.device.save())
        other.advance(SECOND)
        assert other.wire.level
        assert other.time() == at


@pytest.mark.parametrize("damage", [{"alarm": 1 << 64}, {"adjustment": -1}, {"irq_pending": 1}, {"time_high": 1 << 32}])
def test_a_damaged_state_is_refused(bench, damage):
    saved = bench.device.save()
    saved["fields"].update(damage)
    with pytest.raises(SnapshotError):
        bench.device.restore(saved)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.sampled_from([0, 1, 0xFFFF_FFFF, START >> 32]), st.integers(0, 10**12)),
        max_size=40,
    )
)
def test_whatever_a_guest_writes_the_state_stays_sound(steps):
    with Bench() as bench:
        for register, value, ns in steps:
            bench.write(4 * register, value)
            bench.read(4 * register)
            bench.advance(ns)
            bench.device.restore(bench.device.save())
