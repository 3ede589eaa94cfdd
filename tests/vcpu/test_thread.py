"""VCPU threads: exits find their way to the bus and back, the gate holds, a death is reported."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.vcpu.bench import BASE, DATA, DEVICE, HANDLER, PATIENCE, Bench, until
from vmm.fabric.bus import Bus, BusFault
from vmm.vcpu import layout, software
from vmm.vcpu.layout import Cause, Exit
from vmm.vcpu.thread import Gate, VcpuThread


class Register:
    """A device of one register that remembers who asked. It refuses what is not 4 bytes."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.reads = 0
        self.threads: set[str] = set()

    def read(self, offset: int, size: int) -> int:
        self.threads.add(threading.current_thread().name)
        self.reads += 1
        if size != 4:
            raise BusFault(f"{size} bytes")
        return self.value + offset

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            raise BusFault(f"{size} bytes")
        self.value = value


class Board:
    """Harts with their threads, a bus and a gate. They start behind the closed gate."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.bus = Bus()
        self.gate = Gate()
        self.calls: list[tuple[int, int]] = []
        self.deaths: list[str] = []
        self.threads = [
            VcpuThread(
                vcpu,
                bench.backend,
                self.bus,
                self.gate,
                sbi=self._call,
                outside_guest=None,
                on_death=lambda thread, report: self.deaths.append(report),
            )
            for vcpu in bench.harts
        ]
        self.gate.close()
        for thread in self.threads:
            thread.start()

    def _call(self, vcpu: VcpuThread) -> None:
        self.calls.append((vcpu.index, vcpu.vcpu.x[17]))
        vcpu.vcpu.x[10] = 0

    def stop(self) -> None:
        self.gate.end()
        assert all(thread.join(PATIENCE) for thread in self.threads)


@pytest.fixture
def board(bench: Bench) -> Iterator[Board]:
    found = Board(bench)
    yield found
    found.stop()


def test_a_device_is_read_and_written_on_the_harts_own_thread(board: Board) -> None:
    device = Register(40)
    board.bus.map(DEVICE, 0x1000, device, name="device")
    board.bench.code("lw x5,4(x6); addi x5,x5,1; sw x5,0(x6); top: jal x0,top")
    board.bench.hart.x[6] = DEVICE
    board.gate.open()
    until(lambda: device.value == 45)
    assert device.threads == {"vcpu0"}


@pytest.mark.parametrize(("text", "cause"), [("lb x5,0(x6)", Cause.LOAD_ACCESS), ("sd x5,0(x6)", Cause.STORE_ACCESS)])
@pytest.mark.parametrize("mapped", [True, False], ids=["refused", "nothing there"])
def test_what_the_bus_refuses_is_an_access_fault(text: str, cause: Cause, mapped: bool, board: Board) -> None:
    if mapped:
        board.bus.map(DEVICE, 0x1000, Register(), name="device")
    h = board.bench.hart
    board.bench.code(f"{text}; top: jal x0,top")
    board.bench.code("csrrs x8,mcause,x0; csrrs x9,mtval,x0; sd x8,0(x7); top: jal x0,top", at=HANDLER)
    h.set_csr("mtvec", HANDLER)
    h.x[6], h.x[7] = DEVICE, DATA
    board.gate.open()
    until(lambda: board.bench.get(DATA) == cause)
    with board.gate.closed():
        assert h.x[9] == DEVICE


def test_an_access_past_the_end_of_a_window_is_refused(board: Board) -> None:
    board.bus.map(DEVICE, 6, Register(), name="device")
    board.bench.code("lw x5,4(x6)")
    board.bench.code("addi x8,x0,1; sd x8,0(x7); top: jal x0,top", at=HANDLER)
    h = board.bench.hart
    h.set_csr("mtvec", HANDLER)
    h.x[6], h.x[7] = DEVICE, DATA
    board.gate.open()
    until(lambda: board.bench.get(DATA) == 1)


def test_a_window_that_moves_is_found_where_it_is(board: Board) -> None:
    """A busy hart follows the map, though it remembers windows by page."""
    first, second = Register(1), Register(2)
    board.bus.map(DEVICE, 0x1000, first, name="first")
    board.bench.code("top: lw x5,0(x6); sd x5,0(x7); jal x0,top")
    board.bench.code("mret", at=HANDLER)  # a read that finds nothing is made again
    h = board.bench.hart
    h.set_csr("mtvec", HANDLER)
    h.x[6], h.x[7] = DEVICE, DATA
    board.gate.open()
    until(lambda: board.bench.get(DATA) == 1)
    for device in (second, first) * 5:
        board.bus.unmap(DEVICE)
        board.bus.map(DEVICE, 0x1000, device, name="again")
        until(lambda device=device: board.bench.get(DATA) == device.value)  # type: ignore[misc]


def test_calls_that_python_answers_go_to_the_machine() -> None:
    with Bench(sbi=True) as bench:
        board = Board(bench)
        bench.code("addi x17,x0,16; ecall; sd x10,0(x7); top: jal x0,top")
        bench.hart.x[7], bench.hart.x[10] = DATA, 99
        bench.set(DATA, 1)
        board.gate.open()
        until(lambda: bench.get(DATA) == 0)
        assert board.calls == [(0, 16)]
        board.stop()


def test_ties_away_is_done_and_the_hart_goes_on(board: Board) -> None:
    h = board.bench.hart
    h.set_csr("mstatus", 3 << 13)
    board.bench.code("fcvt.w.d x5,f1,rmm; sd x5,0(x7); top: jal x0,top")
    h.f[1], h.x[7] = 0x4004_0000_0000_0000, DATA  # 2.5
    board.gate.open()
    until(lambda: board.bench.get(DATA) == 3)
    with board.gate.closed():
        assert board.threads[0].exits[Exit.EMULATE] == 1


def test_a_full_arena_is_emptied_with_all_harts_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "ARENA", 6 * layout.RECORDS_SIZE + 64)
    with Bench(2) as bench:
        pages = 12
        for n in range(pages):
            bench.code(f"addi x5,x5,1; sd x5,0(x7); jal x0,{0x1000 * ((n + 1) % pages - n) - 8}", at=BASE + 0x1000 * n)
        for n, hart in enumerate(bench.harts):
            hart.pc, hart.x[7] = BASE + 0x1000 * 6 * n, DATA + 64 * n
        board = Board(bench)
        board.gate.open()
        until(lambda: min(bench.get(DATA), bench.get(DATA + 64)) > 300)
        board.stop()
        assert sum(thread.exits[Exit.CODE_FULL] for thread in board.threads) > 0
        assert not board.deaths


def test_nobody_is_in_guest_code_while_the_gate_is_closed(pair: Bench) -> None:
    board = Board(pair)
    pair.code("top: ld x5,0(x7); addi x5,x5,1; sd x5,0(x7); jal x0,top")
    for n, hart in enumerate(pair.harts):
        hart.x[7] = DATA + 64 * n
    board.gate.open()
    for _ in range(50):
        with board.gate.closed():
            seen = [pair.get(DATA + 64 * n) for n in range(2)]
            pair.set(DATA, seen[0] + 1000)
            assert not any(hart.words["in_guest"] for hart in pair.harts)
            assert pair.get(DATA + 64) == seen[1]
        until(lambda seen=seen: pair.get(DATA + 64) > seen[1])  # type: ignore[misc]
    assert pair.get(DATA) > 0
    board.stop()


def test_a_thread_that_dies_says_where_its_hart_was(board: Board) -> None:
    class Broken(Register):
        def read(self, offset: int, size: int) -> int:
            raise ZeroDivisionError("a bug in a device")

    board.bus.map(DEVICE, 0x1000, Broken(), name="broken")
    board.bench.code("lw x5,0(x6)")
    board.bench.hart.x[6] = DEVICE
    board.gate.open()
    until(lambda: bool(board.deaths))
    (report,) = board.deaths
    assert f"vcpu0: pc {BASE:#018x}" in report
    assert f"x6  {DEVICE:016x}" in report
    assert "a bug in a device" in report


def test_a_parked_hart_runs_when_it_is_started(pair: Bench) -> None:
    board = Board(pair)
    pair.code("addi x5,x0,7; sd x5,0(x7); top: jal x0,top", at=BASE + 0x1000)
    pair.code("top: jal x0,top")
    board.threads[1].parked = True
    board.gate.open()

    def prepare() -> None:
        pair.harts[1].pc, pair.harts[1].x[7] = BASE + 0x1000, DATA

    assert pair.get(DATA) == 0
    board.gate.unpark(board.threads[1], prepare)
    until(lambda: pair.get(DATA) == 7)
    board.stop()


def test_a_gate_names_who_is_inside_and_who_waits():
    gate = Gate()
    assert repr(gate) == "<Gate open: no VCPU inside>"
    with gate.closed(), gate.opening.waiting():
        me = threading.current_thread().name
        assert repr(gate) == f"<Gate closed 1 times: no VCPU inside, {me} waiting>"
        assert gate.statistics().waiters == (me,)
