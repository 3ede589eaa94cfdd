from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine.bench import Bench, changed, held
from tests.machine.fake_harts import FakeHarts
from tests.machine.files import cpio, image
from vmm.errors import ConfigError, HostError
from vmm.fabric.bus import BusFault
from vmm.machine import virt
from vmm.machine.config import Config, Drive
from vmm.machine.harts import Surroundings
from vmm.machine.lifecycle import Outcome, Reason, Request, State
from vmm.machine.machine import Machine
from vmm.machine.sbi import Park, Return

FINISHER, UART, RTC = 0x10_0000, 0x1000_0000, 0x10_1000
SRST, DBCN, HSM = 0x5352_5354, 0x4442_434E, 0x48_534D


@pytest.fixture
def config(tmp_path: Path) -> Config:
    kernel, disk = tmp_path / "Image", tmp_path / "disk.img"
    kernel.write_bytes(image())
    disk.write_bytes(bytes(1 << 20))
    return Config(kernel=kernel, mem=64 << 20, drive=(Drive(disk),), check_locks=True)


@pytest.fixture(params=["device", "bql"])
def bench(config: Config, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(changed(config, locking=request.param))
    with bench.machine:
        bench.machine.start()
        yield bench


def test_every_device_answers_where_the_board_of_qemu_has_it(bench: Bench) -> None:
    assert bench.harts.load(0x1000_1000) == bench.harts.load(0x1000_8000) == 0x7472_6976  # "virt"
    assert bench.harts.load(0x1000_1008) == 2  # a disk
    assert bench.harts.load(0x1000_2008) == 4  # entropy
    assert bench.harts.load(0x1000_3008) == 0  # empty
    assert bench.harts.load(UART + 5, 1) & 0x60 == 0x60
    assert bench.harts.load(RTC) > 0
    assert bench.harts.load(FINISHER) == 0
    with pytest.raises(BusFault):
        bench.machine._board.bus.read(0x5000_0000, 4)


def test_drives_come_first_and_then_what_was_asked_for(tmp_path: Path, config: Config) -> None:
    bench = Bench(changed(config, console="null", balloon=True))
    with bench.machine:
        assert [bench.harts.load(0x1000_1008 + 0x1000 * slot) for slot in range(5)] == [2, 3, 4, 5, 0]


def test_the_kernel_is_in_memory_and_hart_0_is_told_where(bench: Bench) -> None:
    entry = bench.harts.entries[0]
    assert (entry.pc, entry.machine_mode) == (0x8020_0000, False)
    ram = bench.machine._board.ram
    assert bytes(ram.view[0x20_0000 : 0x20_0000 + 64]) == image()[:64]
    assert bytes(ram.view[entry.a1 - ram.base :][:4]) == b"\xd0\x0d\xfe\xed"


def test_firmware_finds_the_boot_rom_on_the_bus(tmp_path: Path, config: Config) -> None:
    firmware = tmp_path / "fw.bin"
    firmware.write_bytes(b"\x73\x00\x50\x10" * 4)
    bench = Bench(changed(config, bios=firmware))
    with bench.machine:
        entry = bench.harts.entries[0]
        assert entry.machine_mode
        assert bench.harts.load(0x1000) == 0x297
        assert bench.harts.load(entry.a2, 8) == 0x4942_534F
        assert bench.harts.load(entry.a2 + 16, 8) == 0x8020_0000


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (0x5555, Outcome(Reason.POWER_OFF)),
        (0x2A_3333, Outcome(Reason.GUEST_EXIT, 42)),
        (0x3333, Outcome(Reason.POWER_OFF)),
    ],
)
def test_the_finisher_ends_the_run(bench: Bench, value: int, outcome: Outcome) -> None:
    bench.harts.store(FINISHER, value)
    assert bench.machine.wait(10) == outcome


@pytest.mark.parametrize(("reason", "outcome"), [(0, Outcome(Reason.POWER_OFF)), (1, Outcome(Reason.GUEST_EXIT, 1))])
def test_an_sbi_shutdown_ends_the_run(bench: Bench, reason: int, outcome: Outcome) -> None:
    assert bench.ecall(SRST, 0, 0, reason) == Park()
    assert bench.machine.wait(10) == outcome


@pytest.mark.parametrize("way", ["finisher", "sbi", "api"])
def test_a_reset_loads_memory_again_and_starts_the_harts_over(bench: Bench, way: str) -> None:
    board = bench.machine._board
    board.ram.view[0x20_0000:0x20_0040] = bytes(64)
    bench.harts.store(UART + 7, 0x55, 1)
    bench.ecall(HSM, 1)
    if way == "finisher":
        bench.harts.store(FINISHER, 0x7777)
    elif way == "sbi":
        bench.ecall(SRST, 0, 1, 0)
    else:
        bench.machine.reset()
    bench.machine.resume()
    assert bytes(board.ram.view[0x20_0000:0x20_0040]) == image()[:64]
    assert bench.harts.load(UART + 7, 1) == 0
    assert bench.ecall(HSM, 2, 0) == Return(0, 0)
    assert bench.harts.log == ["reset", "start", "pause", "reset", "resume"]


def test_with_no_reboot_a_reset_ends_the_run(config: Config) -> None:
    bench = Bench(changed(config, no_reboot=True))
    with bench.machine:
        bench.machine.start()
        bench.harts.store(FINISHER, 0x7777)
        assert bench.machine.wait(10) == Outcome(Reason.GUEST_RESET)


def test_time_stands_still_while_the_machine_is_paused(bench: Bench) -> None:
    clock = bench.machine._board.clock
    bench.machine.pause()
    before = clock.now()
    assert clock.paused
    assert bench.machine.state is State.PAUSED
    bench.machine.resume()
    assert clock.now() >= before
    assert not clock.paused


def test_what_the_guest_prints_can_be_expected_and_what_is_typed_arrives(bench: Bench) -> None:
    for byte in b"login: ":
        bench.harts.store(UART, byte, 1)
    assert bench.machine.serial.expect("log(.*): ", 10)[1] == b"in"
    bench.machine.serial.send("x")
    while not bench.harts.load(UART + 5, 1) & 1:
        pass
    assert bench.harts.load(UART, 1) == ord("x")
    assert bench.machine.serial.text == "login: "


def test_the_debug_console_speaks_and_listens_through_the_uart(bench: Bench) -> None:
    bench.machine._board.ram.view[:5] = b"hello"
    assert bench.ecall(DBCN, 0, 5, 0x8000_0000, 0) == Return(0, 5)
    assert bench.machine.serial.expect("hello", 10)
    bench.machine.serial.send(b"k")
    while bench.ecall(DBCN, 1, 8, 0x8000_0010, 0) != Return(0, 1):
        pass
    assert bytes(bench.machine._board.ram.view[16:18]) == b"k\0"


def test_a_hart_that_cannot_go_on_stops_the_machine_with_its_report(bench: Bench) -> None:
    bench.harts.around.ended(Outcome(Reason.FAILED, report="vcpu0: pc 0x80000000"))
    assert bench.machine.wait(10) == Outcome(Reason.FAILED, report="vcpu0: pc 0x80000000")


def test_an_error_on_the_io_thread_stops_the_machine_with_its_stack(bench: Bench) -> None:
    def fail() -> None:
        raise IndexError("a defect")

    bench.machine._board.io.call_soon(fail)
    outcome = bench.machine.wait(10)
    assert outcome is not None
    assert outcome.reason is Reason.FAILED
    assert "IndexError: a defect" in outcome.report


def test_a_hart_that_does_not_stop_is_named_and_keeps_its_memory(config: Config) -> None:
    bench = Bench(config)
    bench.harts.stuck = True
    bench.machine.start()
    with pytest.raises(HostError, match="vcpu0: did not end"):
        bench.machine.stop()
    assert bench.machine.state is State.STOPPED
    assert len(bench.machine._board.ram.view) == config.mem
    for slot in bench.machine._board.slots._slots:
        if slot.holds and slot.holds.part:
            slot.holds.part.close()
    bench.machine._board.ram.close()


def test_stopping_gives_back_threads_and_files(config: Config) -> None:
    before = held()
    bench = Bench(config)
    with bench.machine:
        bench.machine.start()
        bench.machine.post(Request.STOP)
    bench.machine.stop()
    del bench
    assert held() == before


def test_a_machine_that_never_started_can_be_stopped(config: Config) -> None:
    with Machine(config) as machine:
        assert machine.state is State.BUILT
    assert machine.outcome == Outcome(Reason.ASKED)


def test_a_machine_that_cannot_be_built_gives_back_threads_and_files(config: Config) -> None:
    def refuse(around: Surroundings) -> FakeHarts:
        raise HostError("no")

    before = held()
    with pytest.raises(HostError):
        Machine(config, make_harts=refuse)
    assert held() == before


def test_a_console_file_keeps_what_it_had_when_the_machine_cannot_be_built(tmp_path: Path, config: Config) -> None:
    log = tmp_path / "log"
    log.write_text("precious")
    with pytest.raises(ConfigError, match="--drive"):
        Bench(changed(config, serial=f"file:{log}", drive=(Drive(tmp_path / "missing"),)))
    assert log.read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"smp": 0}, "--smp: 0 harts cannot be: give 1 to 32"),
        ({"smp": 33}, "--smp: 33 harts"),
        ({"smp": -1}, "--smp: -1 harts"),
        ({"mem": 1 << 20}, "--mem: 1048576 bytes are too little: give at least 32M"),
        ({"mem": (64 << 20) + 5}, "--mem"),
        ({"mem": 1 << 50}, "--mem"),
        ({"drive": (Drive(Path("x")),) * 8}, "--drive: 9 virtio devices"),
        ({"drive": (Drive(Path("x"), id="a"), Drive(Path("y"), id="a"))}, "--drive: id=a is used twice"),
        ({"drive": (Drive(Path("x"), id="a" * 21),)}, "longer than 20 bytes"),
        ({"drive": (Drive(Path("x"), format="qcow2"),)}, "format=qcow2 is not known"),
        ({"drive": (Drive(Path("/nonexistent")),)}, "--drive /nonexistent"),
        ({"serial": "stdio", "console": "stdio"}, "--console: the terminal"),
        ({"serial": "tape"}, "--serial 'tape' is no character device"),
        ({"serial": "file:/nonexistent/log"}, "--serial /nonexistent/log"),
        ({"console": "pipe:/nonexistent/log"}, "--console /nonexistent/log"),
        ({"trace_exits": "/nonexistent/trace"}, "--trace-exits /nonexistent/trace"),
        ({"kernel": None}, "nothing to boot"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_made(
    config: Config, changes: dict[str, object], words: str
) -> None:
    before = held()
    with pytest.raises((ConfigError, HostError)) as caught:
        Bench(changed(config, **changes))
    message = str(caught.value)
    del caught
    assert words in message
    assert "\n" not in message
    assert held() == before


def test_a_disk_that_another_machine_writes_to_is_refused(config: Config) -> None:
    with Bench(config).machine, pytest.raises(ConfigError, match="--drive"):
        Bench(config)


def test_too_little_memory_for_kernel_and_initrd_names_the_size_that_is_enough(tmp_path: Path, config: Config) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(cpio(("init", bytes(40 << 20))))
    with pytest.raises(ConfigError, match=r"--mem: 32M is too little for --initrd .*: give at least 45M"):
        Bench(changed(config, initrd=initrd, mem=32 << 20))
    with Bench(changed(config, initrd=initrd, mem=45 << 20)).machine as machine:
        assert machine.state is State.BUILT


def test_the_harts_extensions_name_svadu_only_when_they_have_it() -> None:
    assert "svadu" not in virt.extensions(svadu=False)
    assert virt.extensions(svadu=True)[-2:] == ("svadu", "svpbmt")
