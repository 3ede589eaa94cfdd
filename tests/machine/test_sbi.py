from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.machine.files import RAM_BASE, PlainRam
from vmm.errors import SnapshotError
from vmm.locks import Locking
from vmm.machine.sbi import Console, Error, HartStates, Park, Power, Return, Sbi, Suspend

ALL = (1 << 64) - 1
U64 = st.integers(0, ALL) | st.sampled_from([0, 1, 2, 3, 4, 63, 64, ALL, 1 << 63, RAM_BASE, RAM_BASE + 4096])

BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN = 0x10, 0x54494D45, 0x735049, 0x52464E43, 0x48534D, 0x53525354, 0x4442434E
PMU, SUSP, CPPC, NACL, STA = 0x504D55, 0x53555350, 0x43505043, 0x4E41434C, 0x535441


class Harts:
    """Notes what the calls do to harts."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def start_hart(self, hart: int, pc: int, opaque: int) -> None:
        self.log.append(("start", hart, pc, opaque))


class Typewriter(Console):
    def __init__(self, room: int = 1 << 20, keys: bytes = b"") -> None:
        self.room, self.keys, self.paper = room, keys, b""

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        self.paper += taken
        self.room -= len(taken)
        return len(taken)

    def read(self, limit: int) -> bytes:
        data, self.keys = self.keys[:limit], self.keys[limit:]
        return data


class Firmware:
    """The SBI of a board with `harts` harts and 64 KiB of memory."""

    def __init__(self, harts: int = 4, console: Typewriter | None = None) -> None:
        self.harts, self.ram, self.console = Harts(), PlainRam(0x1_0000), console or Typewriter()
        self.power: list[tuple[Power, int]] = []
        locking = Locking(checked=True)
        self.states = locking.make(HartStates, "harts", harts=harts, control=self.harts)
        self.sbi = Sbi(
            harts=harts,
            states=self.states,
            memory=self.ram,
            console=self.console,
            power=lambda what, code: self.power.append((what, code)),
        )

    def call(self, extension: int, function: int, *args: int, hart: int = 0) -> object:
        return self.sbi.call(hart, [*args, *[0] * (6 - len(args)), function, extension])

    def value(self, extension: int, function: int, *args: int, hart: int = 0) -> int:
        answer = self.call(extension, function, *args, hart=hart)
        assert isinstance(answer, Return)
        assert answer.error == Error.SUCCESS
        assert answer.value is not None
        return answer.value

    def error(self, extension: int, function: int, *args: int, hart: int = 0) -> int:
        answer = self.call(extension, function, *args, hart=hart)
        assert isinstance(answer, Return)
        return answer.error


@pytest.fixture
def firmware() -> Firmware:
    return Firmware()


def test_it_says_that_it_is_version_2_0(firmware: Firmware) -> None:
    assert firmware.value(BASE, 0) == 2 << 24


@pytest.mark.parametrize("extension", [BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN, 1, 2, 8])
def test_probing_finds_what_is_served(firmware: Firmware, extension: int) -> None:
    assert firmware.value(BASE, 3, extension) == 1


@pytest.mark.parametrize("extension", [PMU, SUSP, CPPC, NACL, STA, 0, 3, 4, 5, 6, 7, 0x09000000, ALL])
def test_what_is_not_served_is_not_found_and_answers_not_supported(firmware: Firmware, extension: int) -> None:
    assert firmware.value(BASE, 3, extension) == 0
    assert firmware.error(extension, 0) == Error.NOT_SUPPORTED


@pytest.mark.parametrize("extension", [BASE, HSM, SRST, DBCN])
def test_unknown_functions_answer_not_supported(firmware: Firmware, extension: int) -> None:
    assert firmware.error(extension, 77) == Error.NOT_SUPPORTED


def test_a_legacy_call_leaves_a1_alone(firmware: Firmware) -> None:
    answer = firmware.call(1, 0, ord("x"))
    assert answer == Return(0, None)
    assert firmware.console.paper == b"x"


def test_legacy_getchar_returns_a_byte_or_minus_1() -> None:
    firmware = Firmware(console=Typewriter(keys=b"k"))
    assert firmware.call(2, 0) == Return(ord("k"), None)
    assert firmware.call(2, 0) == Return(-1, None)


def test_only_hart_0_runs_after_reset(firmware: Firmware) -> None:
    assert [firmware.value(HSM, 2, hart) for hart in range(4)] == [0, 1, 1, 1]


def test_a_hart_can_be_started_once(firmware: Firmware) -> None:
    assert firmware.error(HSM, 0, 1, RAM_BASE + 0x100, 0x55) == Error.SUCCESS
    assert firmware.harts.log == [("start", 1, RAM_BASE + 0x100, 0x55)]
    assert firmware.error(HSM, 0, 1, RAM_BASE, 0) == Error.ALREADY_AVAILABLE
    assert firmware.value(HSM, 2, 1) == 0


def test_a_hart_that_stops_itself_can_be_started_again(firmware: Firmware) -> None:
    firmware.error(HSM, 0, 1, RAM_BASE, 0)
    assert firmware.call(HSM, 1, hart=1) == Park()
    assert firmware.value(HSM, 2, 1) == 1
    assert firmware.error(HSM, 0, 1, RAM_BASE, 0) == Error.SUCCESS


def test_starting_a_hart_that_does_not_exist_or_outside_of_ram_is_refused(firmware: Firmware) -> None:
    assert firmware.error(HSM, 0, 4, RAM_BASE, 0) == Error.INVALID_PARAM
    assert firmware.error(HSM, 2, 4) == Error.INVALID_PARAM
    for address in (0, RAM_BASE - 2, RAM_BASE + 1, RAM_BASE + 0x1_0000, ALL - 1):
        assert firmware.error(HSM, 0, 1, address, 0) == Error.INVALID_ADDRESS
    assert firmware.harts.log == []


def test_suspending_keeps_state_or_starts_over_where_the_call_says(firmware: Firmware) -> None:
    assert firmware.call(HSM, 3, 0) == Suspend(None)
    assert firmware.value(HSM, 2, 0) == 4
    firmware.sbi.resumed(0)
    assert firmware.value(HSM, 2, 0) == 0
    assert firmware.call(HSM, 3, 0x8000_0000, RAM_BASE, 9) == Suspend((RAM_BASE, 9))
    assert firmware.error(HSM, 3, 0x8000_0000, 0, 9) == Error.INVALID_ADDRESS
    assert firmware.error(HSM, 3, 1) == Error.INVALID_PARAM
    assert firmware.error(HSM, 3, 0x1000_0000) == Error.NOT_SUPPORTED
    assert firmware.error(HSM, 3, 0x9000_0000, RAM_BASE) == Error.NOT_SUPPORTED


def test_a_reset_stops_all_harts_but_0(firmware: Firmware) -> None:
    firmware.error(HSM, 0, 3, RAM_BASE, 0)
    firmware.call(HSM, 1)
    firmware.states.reset()
    assert [firmware.value(HSM, 2, hart) for hart in range(4)] == [0, 1, 1, 1]


def test_hart_states_survive_save_and_restore(firmware: Firmware) -> None:
    firmware.error(HSM, 0, 2, RAM_BASE, 0)
    saved = firmware.states.save()
    other = Firmware()
    other.states.restore(saved)
    assert [other.value(HSM, 2, hart) for hart in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("status", [[0], [0, 1, 1, 7], [0, 1, 1, 1, 1], "0111"])
def test_hart_states_of_another_board_are_refused(firmware: Firmware, status: object) -> None:
    saved = {**firmware.states.save(), "fields": {"status": status}}
    with pytest.raises(SnapshotError):
        firmware.states.restore(saved)


@pytest.mark.parametrize(
    ("kind", "reason", "asked"),
    [(0, 0, (Power.OFF, 0)), (0, 1, (Power.OFF, 1)), (1, 0, (Power.RESET, 0)), (2, 0, (Power.RESET, 0))],
)
def test_a_system_reset_does_not_return_and_asks_the_machine(
    firmware: Firmware, kind: int, reason: int, asked: tuple[Power, int]
) -> None:
    assert firmware.call(SRST, 0, kind, reason) == Park()
    assert firmware.power == [asked]


@pytest.mark.parametrize(("kind", "reason"), [(3, 0), (0xEFFF_FFFF, 0), (0xF000_0000, 0), (0, 2), (0, 0xE000_0000)])
def test_a_system_reset_of_an_unknown_kind_returns_an_error(firmware: Firmware, kind: int, reason: int) -> None:
    assert firmware.error(SRST, 0, kind, reason) in (Error.INVALID_PARAM, Error.NOT_SUPPORTED)
    assert firmware.power == []


def test_legacy_shutdown_powers_off(firmware: Firmware) -> None:
    assert firmware.call(8, 0) == Park()
    assert firmware.power == [(Power.OFF, 0)]


def test_the_debug_console_writes_from_guest_memory(firmware: Firmware) -> None:
    firmware.ram.view[0x10:0x15] = b"hello"
    assert firmware.value(DBCN, 0, 5, RAM_BASE + 0x10, 0) == 5
    assert firmware.console.paper == b"hello"


def test_the_debug_console_tells_how_much_was_taken() -> None:
    firmware = Firmware(console=Typewriter(room=3))
    assert firmware.value(DBCN, 0, 5, RAM_BASE, 0) == 3
    assert firmware.error(DBCN, 2, ord("x")) == Error.FAILED


def test_the_debug_console_reads_into_guest_memory_and_reports_the_write() -> None:
    firmware = Firmware(console=Typewriter(keys=b"keys"))
    assert firmware.value(DBCN, 1, 100, RAM_BASE + 8, 0) == 4
    assert firmware.ram.bytes_at(RAM_BASE + 8, 5) == b"keys\0"
    assert firmware.ram.told == [(RAM_BASE + 8, 4)]
    assert firmware.value(DBCN, 1, 100, RAM_BASE + 8, 0) == 0


@pytest.mark.parametrize(
    ("length", "low", "high"),
    [
        (1, 0, 0),
        (1, RAM_BASE - 1, 0),
        (1, RAM_BASE + 0x1_0000, 0),
        (0x1_0001, RAM_BASE, 0),
        (1, RAM_BASE, 1),
        (ALL, 0, 0),
    ],
)
def test_the_debug_console_refuses_addresses_outside_of_ram(
    firmware: Firmware, length: int, low: int, high: int
) -> None:
    assert firmware.error(DBCN, 0, length, low, high) == Error.INVALID_PARAM
    assert firmware.error(DBCN, 1, length, low, high) == Error.INVALID_PARAM


@given(
    registers=st.lists(U64, min_size=6, max_size=6),
    function=st.integers(0, 8) | U64,
    extension=st.sampled_from([BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN, PMU, *range(9)]) | U64,
    harts=st.sampled_from([1, 2, 32]),
)
def test_no_registers_make_a_call_fail_or_name_harts_that_do_not_exist(
    registers: list[int], function: int, extension: int, harts: int
) -> None:
    firmware = Firmware(harts=harts, console=Typewriter(room=3, keys=b"abc"))
    answer = firmware.sbi.call(0, [*registers, function, extension])
    assert isinstance(answer, (Return, Park, Suspend))
    for _, hart, *_ in firmware.harts.log:
        assert isinstance(hart, int)
        assert 0 <= hart < harts
