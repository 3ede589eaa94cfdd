"""The UART through its registers. Every test runs with checked locks, under both locking policies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.devices.uart16550 import Uart16550
from vmm.errors import SnapshotError
from vmm.fabric.bus import BusFault
from vmm.testing.bench import DeviceBench
from vmm.testing.fakes import FakeLine

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

DR, OE, BI, THRE, TEMT, FIFO_ERROR = 0x01, 0x02, 0x10, 0x20, 0x40, 0x80
NONE, MODEM, EMPTY, RECEIVED, STATUS, TIMEOUT = 1, 0, 2, 4, 6, 12
FIFOS = 0xC0

# 10 bits a character (8N1), 16 clocks a bit at a divisor of 2, as Linux sets it for 115200 baud at 3.6864 MHz
TIMEOUT_NS = 4 * 10 * 16 * 2 * 1_000_000_000 // 3_686_400


class Bench(DeviceBench[Uart16550]):
    def __init__(self, **options) -> None:
        self.line = FakeLine()
        super().__init__(
            Uart16550,
            lambda bench: {"wire": bench.wire, "clock": bench.clock, "line": self.line, "input_hz": 3_686_400},
            size=8,
            **options,
        )
        self.line.connect(self.device)

    def get(self, register: int) -> int:
        return self.read(register, 1)

    def put(self, register: int, *values: int) -> None:
        for value in values:
            self.write(register, value, 1)

    def use_fifo(self, trigger: int = 1) -> None:
        """8N1 at 115200 baud, FIFOs on, as Linux does."""
        self.put(LCR, 0x83)
        self.put(DLL, 2)
        self.put(DLM, 0)
        self.put(LCR, 0x03)
        self.put(FCR, 0x01 | {1: 0, 4: 1, 8: 2, 14: 3}[trigger] << 6)

    def drain(self) -> bytes:
        out = bytearray()
        while self.get(LSR) & DR:
            out.append(self.get(RBR))
        return bytes(out)


@pytest.fixture(params=["device", "bql"])
def bench(request):
    with Bench(policy=request.param) as bench:
        yield bench


# -- reset values and plain registers ----------------------------------------------------------------------------------


def test_the_reset_values_are_the_datasheets(bench):
    assert [bench.get(r) for r in range(8)] == [0, 0, 0x01, 0, 0, THRE | TEMT, 0xB0, 0]
    assert not bench.wire.level


def test_the_scratch_register_keeps_what_it_is_given(bench):
    bench.put(SCR, 0xA5)
    assert bench.get(SCR) == 0xA5


def test_unused_bits_of_interrupt_enable_and_modem_control_read_as_zero(bench):
    bench.put(IER, 0xF0)
    bench.put(MCR, 0xE0)
    assert bench.get(IER) == 0
    assert bench.get(MCR) == 0


def test_the_divisor_latch_shares_the_first_two_addresses(bench):
    bench.put(IER, 0x05)
    bench.put(LCR, 0x83)
    bench.put(DLL, 0x34)
    bench.put(DLM, 0x12)
    assert (bench.get(DLL), bench.get(DLM)) == (0x34, 0x12)
    assert bench.line.sent == b""
    bench.put(LCR, 0x03)
    assert bench.get(IER) == 0x05
    bench.put(LCR, 0x80)
    assert (bench.get(DLL), bench.get(DLM)) == (0x34, 0x12)


def test_wider_accesses_reach_the_one_register_at_their_address(bench):
    bench.write(SCR - 3, 0x11223344, 4)
    assert bench.read(MCR, 4) == 0x04
    bench.write(THR, 0x4142, 2)
    assert bench.line.sent == b"\x42"


def test_there_is_nothing_behind_the_eighth_register():
    with Bench() as bench:
        bench.bus.unmap(0x1000_0000)
        bench.bus.map(0x1000_0000, 0x100, bench.device, "device")
        with pytest.raises(BusFault):
            bench.read(8, 1)
        with pytest.raises(BusFault):
            bench.write(0xFF, 0, 1)


def test_writes_to_the_status_registers_are_ignored_and_counted(bench):
    bench.put(LSR, 0xFF)
    bench.put(MSR, 0xFF)
    assert (bench.get(LSR), bench.get(MSR)) == (THRE | TEMT, 0xB0)
    assert bench.device.refused == 2


# -- transmitting ------------------------------------------------------------------------------------------------------


def test_a_byte_leaves_as_it_is_written_and_the_holding_register_is_empty_again(bench):
    for byte in b"hello":
        bench.put(THR, byte)
        assert bench.get(LSR) == THRE | TEMT
    assert bench.line.sent == b"hello"


def test_enabling_the_transmitter_interrupt_while_it_is_empty_interrupts_at_once(bench):
    bench.put(IER, 0x02)
    assert bench.wire.level
    assert bench.get(IIR) == EMPTY


def test_reading_iir_acknowledges_thr_empty(bench):
    bench.put(IER, 0x02)
    assert bench.get(IIR) == EMPTY
    assert not bench.wire.level
    assert bench.get(IIR) == NONE


def test_writing_thr_makes_the_transmitter_interrupt_again(bench):
    bench.put(IER, 0x02)
    bench.get(IIR)
    bench.put(THR, 0x41)
    assert bench.wire.level
    assert bench.get(IIR) == EMPTY


def test_reading_iir_while_something_else_is_reported_keeps_thr_empty_pending(bench):
    bench.put(IER, 0x03)
    bench.line.type(b"x")
    assert bench.get(IIR) == RECEIVED
    bench.get(RBR)
    assert bench.get(IIR) == EMPTY


def test_disabling_the_transmitter_interrupt_forgets_it(bench):
    bench.put(IER, 0x02)
    bench.put(IER, 0x00)
    assert not bench.wire.level
    assert bench.get(IIR) == NONE


def test_behind_a_congested_line_the_guest_is_told_to_wait_and_nothing_is_lost(bench):
    bench.use_fifo()
    bench.put(IER, 0x02)
    bench.get(IIR)
    bench.line.congested = True
    bench.put(THR, *b"0123456789abcdef")
    assert not bench.get(LSR) & (THRE | TEMT)
    assert not bench.wire.level
    assert bench.line.sent == b""
    bench.line.relieve()
    assert bench.line.sent == b"0123456789abcdef"
    assert bench.get(LSR) & THRE
    assert bench.get(IIR) == EMPTY | FIFOS
    assert bench.line.lost_bytes == 0


def test_what_a_guest_writes_into_a_full_transmitter_is_counted_as_lost(bench):
    bench.line.congested = True
    bench.put(THR, *b"AB")
    assert bench.line.lost_bytes == 1
    bench.line.relieve()
    assert bench.line.sent == b"A"


def test_a_congestion_that_ends_unseen_delays_bytes_and_reorders_none(bench):
    bench.use_fifo()
    bench.line.congested = True
    bench.put(THR, *b"ab")
    bench.line.congested = False
    bench.put(THR, *b"cd")
    bench.line.relieve()
    assert bench.line.sent == b"abcd"


# -- receiving ---------------------------------------------------------------------------------------------------------


def test_a_received_byte_shows_in_line_status_and_interrupts_when_enabled(bench):
    bench.line.type(b"a")
    assert bench.get(LSR) & DR
    assert not bench.wire.level
    bench.put(IER, 0x01)
    assert bench.wire.level
    assert bench.get(IIR) == RECEIVED
    assert bench.get(RBR) == ord("a")
    assert not bench.wire.level
    assert not bench.get(LSR) & DR


def test_reading_an_empty_receiver_is_harmless(bench):
    assert bench.get(RBR) == 0


def test_without_fifo_one_byte_is_taken_at_a_time_and_the_rest_waits_outside(bench):
    bench.line.type(b"abc")
    out = b""
    while bench.get(LSR) & DR:
        out += bytes([bench.get(RBR)])
        bench.line.pump()
    assert out == b"abc"
    assert not bench.get(LSR) & OE


def test_a_full_fifo_loses_no_input(bench):
    bench.use_fifo()
    text = bytes(range(256)) * 3
    bench.line.type(text)
    assert bench.line.waiting == len(text) - 16
    out = b""
    while bench.get(LSR) & DR:
        out += bench.drain()
        bench.line.pump()
    assert out == text


def test_the_line_is_asked_for_more_once_for_each_emptied_fifo_and_only_if_it_has_more():
    asked: list[int] = []
    with Bench() as bench:
        bench.use_fifo()
        bench.line.input_ready = lambda: asked.append(1)
        bench.line.type(b"x" * 16)
        bench.drain()
        assert asked == []
        bench.line.type(b"x" * 20)
        bench.drain()
        assert asked == [1]


@pytest.mark.parametrize("trigger", [1, 4, 8, 14])
def test_with_fifo_the_receiver_interrupts_at_its_trigger_level(bench, trigger):
    bench.use_fifo(trigger)
    bench.put(IER, 0x01)
    bench.line.type(b"x" * (trigger - 1))
    assert not bench.wire.level
    bench.line.type(b"x")
    assert bench.wire.level
    assert bench.get(IIR) == RECEIVED | FIFOS
    bench.get(RBR)
    assert not bench.wire.level


def test_bytes_below_the_trigger_level_interrupt_after_four_character_times(bench):
    bench.use_fifo(8)
    bench.put(IER, 0x01)
    bench.line.type(b"ab")
    bench.advance(TIMEOUT_NS - 1)
    assert not bench.wire.level
    bench.advance(1)
    assert bench.wire.level
    assert bench.get(IIR) == TIMEOUT | FIFOS
    bench.get(RBR)
    assert not bench.wire.level
    bench.advance(TIMEOUT_NS)
    assert bench.get(IIR) == TIMEOUT | FIFOS
    bench.get(RBR)
    bench.advance(1_000_000_000)
    assert not bench.wire.level


def test_each_arrival_puts_the_receive_timeout_off(bench):
    bench.use_fifo(14)
    bench.put(IER, 0x01)
    for _ in range(5):
        bench.line.type(b"x")
        bench.advance(TIMEOUT_NS - 100)
        assert not bench.wire.level
    bench.advance(100)
    assert bench.wire.level


def test_without_fifo_there_is_no_receive_timeout(bench):
    bench.line.type(b"x")
    bench.put(IER, 0x01)
    bench.advance(1_000_000_000)
    assert bench.get(IIR) == RECEIVED


def test_a_divisor_of_zero_does_not_stop_the_receive_timeout(bench):
    bench.use_fifo(14)
    bench.put(LCR, 0x83)
    bench.put(DLL, 0)
    bench.put(LCR, 0x03)
    bench.put(IER, 0x01)
    bench.line.type(b"x")
    bench.advance(TIMEOUT_NS)
    assert bench.wire.level


def test_clearing_the_receiver_fifo_drops_its_bytes_and_lets_more_in(bench):
    bench.use_fifo()
    bench.line.type(b"x" * 16 + b"next")
    bench.put(FCR, 0x03)
    assert not bench.get(LSR) & DR
    bench.line.pump()
    assert bench.drain() == b"next"


def test_switching_the_fifos_on_or_off_empties_them(bench):
    bench.line.type(b"a")
    bench.put(FCR, 0x01)
    assert not bench.get(LSR) & DR
    bench.line.type(b"b")
    bench.put(FCR, 0x00)
    assert not bench.get(LSR) & DR
    assert bench.get(IIR) == NONE


# -- line status -------------------------------------------------------------------------------------------------------


def test_a_break_is_a_null_character_with_a_mark_and_interrupts_as_line_status(bench):
    bench.use_fifo()
    bench.put(IER, 0x04)
    bench.device.line_break()
    assert bench.get(IIR) == STATUS | FIFOS
    assert bench.get(LSR) & (BI | DR | FIFO_ERROR) == BI | DR | FIFO_ERROR
    assert not bench.wire.level
    assert bench.get(LSR) & (BI | DR | FIFO_ERROR) == DR
    assert bench.get(RBR) == 0


def test_a_break_shows_when_its_character_is_next_to_be_read(bench):
    bench.use_fifo()
    bench.line.type(b"ab")
    bench.device.line_break()
    seen = []
    while (lsr := bench.get(LSR)) & DR:
        seen.append((bool(lsr & BI), bench.get(RBR)))
    assert seen == [(False, ord("a")), (False, ord("b")), (True, 0)]


def test_interrupts_are_reported_in_the_datasheets_priority(bench):
    bench.use_fifo()
    bench.put(IER, 0x0F)
    bench.put(MCR, 0x10)
    bench.put(THR, *range(17))
    order = []
    for _ in range(6):
        iir = bench.get(IIR) & 0x0F
        order.append(iir)
        if iir == STATUS:
            bench.get(LSR)
        elif iir == RECEIVED:
            bench.drain()
        elif iir == MODEM:
            bench.get(MSR)
        elif iir == NONE:
            break
    assert order == [STATUS, RECEIVED, EMPTY, MODEM, NONE]


# -- loop-back ---------------------------------------------------------------------------------------------------------


def test_in_loop_back_what_is_sent_is_received_and_the_line_sees_nothing(bench):
    bench.use_fifo()
    bench.put(MCR, 0x10)
    bench.put(THR, *b"loop")
    assert bench.drain() == b"loop"
    assert bench.line.sent == b""


def test_in_loop_back_an_overrun_keeps_the_fifo_and_loses_the_new_byte(bench):
    bench.use_fifo()
    bench.put(MCR, 0x10)
    bench.put(THR, *range(17))
    assert bench.get(LSR) & OE
    assert not bench.get(LSR) & OE
    assert bench.drain() == bytes(range(16))


def test_in_loop_back_without_fifo_an_overrun_replaces_the_byte(bench):
    bench.put(MCR, 0x10)
    bench.put(THR, *b"ab")
    assert bench.get(LSR) & OE
    assert bench.get(RBR) == ord("b")


def test_input_waits_while_the_receiver_is_looped_back(bench):
    bench.use_fifo()
    bench.put(MCR, 0x10)
    bench.line.type(b"later")
    assert not bench.get(LSR) & DR
    bench.put(MCR, 0x00)
    bench.line.pump()
    assert bench.drain() == b"later"


def test_in_loop_back_modem_control_comes_back_as_modem_status(bench):
    bench.put(MCR, 0x1A)
    assert bench.get(MSR) & 0xF0 == 0x90
    for bit, status in ((0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)):
        bench.put(MCR, 0x10 | bit)
        assert bench.get(MSR) & 0xF0 == status
    bench.put(MCR, 0x00)
    assert bench.get(MSR) & 0xF0 == 0xB0


def test_reading_modem_status_acknowledges_its_changes(bench):
    bench.put(IER, 0x08)
    bench.put(MCR, 0x10)
    assert bench.get(IIR) == MODEM
    assert bench.get(MSR) == 0x0B
    assert bench.get(MSR) == 0x00
    assert not bench.wire.level


def test_only_the_end_of_a_ring_counts_as_a_change(bench):
    bench.put(MCR, 0x10)
    bench.get(MSR)
    bench.put(MCR, 0x14)
    assert bench.get(MSR) == 0x40
    bench.put(MCR, 0x10)
    assert bench.get(MSR) == 0x04


# -- reset, save, restore ----------------------------------------------------------------------------------------------


def test_reset_restores_every_register_and_lowers_the_wire(bench):
    bench.use_fifo(8)
    bench.put(IER, 0x0F)
    bench.put(SCR, 1)
    bench.put(MCR, 0x10)
    bench.put(THR, *range(20))
    assert bench.wire.level
    bench.device.reset()
    assert [bench.get(r) for r in range(8)] == [0, 0, 0x01, 0, 0, THRE | TEMT, 0xB0, 0]
    assert not bench.wire.level
    bench.advance(1_000_000_000)
    assert not bench.wire.level


def test_reset_lets_in_what_was_turned_away(bench):
    bench.put(MCR, 0x10)
    bench.line.type(b"x")
    bench.device.reset()
    bench.line.pump()
    assert bench.get(RBR) == ord("x")


def test_a_restored_uart_drives_its_wire_its_timer_and_its_line(bench):
    bench.use_fifo(8)
    bench.put(IER, 0x03)
    bench.get(IIR)
    bench.line.type(b"ab")
    bench.line.congested = True
    bench.put(THR, *b"out")
    saved = bench.device.save()
    with Bench() as other:
        other.device.restore(saved)
        assert other.line.sent == b"out"
        assert other.get(IIR) == EMPTY | FIFOS
        other.advance(bench.clock.now() + TIMEOUT_NS)
        assert other.get(IIR) == TIMEOUT | FIFOS
        assert other.drain() == b"ab"


def test_a_saved_state_shares_nothing_with_the_device(bench):
    bench.use_fifo()
    bench.line.type(b"ab")
    saved = bench.device.save()
    bench.drain()
    assert saved["fields"]["received"] == [ord("a"), ord("b")]


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "rtc_goldfish"},
        {"version": 2},
        {"fields": {}},
        {"fields": None},
        {"ier": 0x100},
        {"ier": "0"},
        {"divisor": -1},
        {"received": [0] * 17},
        {"received": [-1]},
        {"received": ["x"]},
        {"sending": b"x"},
        {"timed_out": True},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    with Bench() as bench:
        bench.put(SCR, 7)
        saved = bench.device.save()
        for name, value in damage.items():
            if name in saved:
                saved[name] = value
            else:
                saved["fields"][name] = value
        bench.put(SCR, 8)
        with pytest.raises(SnapshotError):
            bench.device.restore(saved)
        assert bench.get(SCR) == 8


# -- hostile guests ----------------------------------------------------------------------------------------------------

operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 0xFF)),
        st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("type"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("break"), st.just(0), st.just(0)),
        st.tuples(st.just("congest"), st.booleans(), st.just(0)),
        st.tuples(st.just("advance"), st.integers(0, 10_000_000), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(operations)
def test_whatever_a_guest_does_the_invariants_hold_and_a_copy_behaves_the_same(steps):
    with Bench() as bench, Bench() as copy:
        typed = 0
        for action, first, second in steps:
            if action == "write":
                bench.put(first, second)
            elif action == "read":
                bench.get(first)
            elif action == "type":
                typed += first
                bench.line.type(b"k" * first)
            elif action == "break":
                bench.device.line_break()
            elif action == "congest":
                bench.line.congested = bool(first)
                if not first:
                    bench.line.relieve()
            else:
                bench.advance(first)
            saved = bench.device.save()
            copy.line.congested = bench.line.congested
            copy.clock.pause()
            copy.clock.set(bench.clock.now())
            copy.clock.resume()
            copy.device.restore(saved)
            assert copy.wire.level == bench.wire.level
            assert copy.device.save() == saved
        bench.device.reset()
        for _ in range(typed + 1):
            bench.line.pump()
            bench.drain()
        assert bench.line.waiting == 0


# -- firmware's doors --------------------------------------------------------------------------------------------------


def test_firmware_prints_all_of_it_or_nothing_while_there_is_no_room(bench):
    assert bench.device.transmit(b"hello") == 5
    bench.line.congested = True
    assert bench.device.transmit(b"x") == 0
    bench.put(THR, ord(" "))
    bench.line.congested = False
    assert bench.device.transmit(b"y") == 0  # what the guest wrote before goes out first
    bench.line.relieve()
    assert bench.device.transmit(b"world") == 5
    assert bench.line.sent == b"hello world"
    assert bench.line.lost_bytes == 0


def test_firmware_printing_interrupts_a_guest_that_waits_for_an_empty_transmitter(bench):
    bench.put(IER, 0x02)
    bench.get(IIR)
    assert not bench.wire.level
    bench.device.transmit(b"x")
    assert bench.wire.level
    assert bench.get(IIR) == EMPTY


def test_firmware_reads_what_has_arrived(bench):
    bench.use_fifo()
    bench.line.type(b"abc")
    assert bench.device.fetch(2) == b"ab"
    assert bench.device.fetch(4096) == b"c"
    assert bench.device.fetch(1) == b""
    assert not bench.get(LSR) & DR
