"""Devices that come and go while the machine runs."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.assembler import RAM_BASE, assemble
from tests.machine.bench import Bench, changed, held
from tests.machine.files import elf, image
from tests.machines import Machines, harts, memory
from tests.vcpu.bench import until
from vmm.errors import ConfigError, HostError
from vmm.host.block import RawImage
from vmm.machine.config import VIRTIO_SLOTS, Balloon, Config, Console, Drive, Pluggable, Rng
from vmm.machine.lifecycle import LifecycleError, Outcome, Reason, State
from vmm.machine.machine import Machine
from vmm.machine.slots import TABLE, SlotState, Step, page
from vmm.vcpu.layout import Exit

SLOT = 5
BASE = 0x1000_1000 + 0x1000 * SLOT
DEVICE_ID = BASE + 8
SIZE = 1 << 20


@pytest.fixture
def config(tmp_path: Path) -> Config:
    kernel = tmp_path / "Image"
    kernel.write_bytes(image())
    return Config(kernel=kernel, mem=64 << 20, check_locks=True)


@pytest.fixture(params=["device", "bql"])
def bench(config: Config, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(changed(config, locking=request.param))
    with bench.machine:
        bench.machine.start()
        yield bench


@pytest.fixture
def disk(tmp_path: Path) -> Drive:
    path = tmp_path / "plugged.img"
    path.write_bytes(bytes(SIZE))
    return Drive(path)


# -- what the guest sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "number"), [(Drive, 2), (Console, 3), (Rng, 4), (Balloon, 5)])
def test_a_device_answers_once_it_is_plugged_and_leaves_an_empty_slot(
    bench: Bench, disk: Drive, make: type, number: int, tmp_path: Path
) -> None:
    what: Pluggable = {Drive: disk, Console: Console(f"file:{tmp_path / 'console'}")}.get(make) or make()
    bench.machine.unplug(bench.machine.plug(what, SLOT))  # the workers start with the first file that is closed
    before = held()
    assert bench.harts.load(DEVICE_ID) == 0
    for _ in range(3):
        assert bench.machine.plug(what, SLOT) == SLOT
        assert bench.harts.load(DEVICE_ID) == number
        bench.machine.unplug(SLOT)
        assert bench.harts.load(BASE) == 0x7472_6976
        assert bench.harts.load(DEVICE_ID) == 0
    # The threads that gave back the first one may have kept it for a moment when it was counted.
    until(lambda: held()[0] <= before[0] and held()[1] == before[1])


def test_without_a_slot_the_first_empty_one_is_taken_until_there_is_none(bench: Bench) -> None:
    assert bench.machine.slots() == ("rng", *[""] * 7)
    assert [bench.machine.plug(Rng()) for _ in range(7)] == list(range(1, 8))
    with pytest.raises(LifecycleError, match="all 8 slots are taken"):
        bench.machine.plug(Rng())
    bench.machine.unplug(3)
    assert bench.machine.slots() == ("rng", "rng1", "rng2", "", "rng4", "rng5", "rng6", "rng7")
    assert bench.machine.plug(Balloon()) == 3


def test_a_reset_of_the_machine_resets_what_was_plugged_and_keeps_it(bench: Bench, disk: Drive) -> None:
    bench.machine.plug(disk, SLOT)
    bench.harts.store(BASE + 0x70, 3)
    bench.machine.reset()
    assert bench.harts.load(BASE + 0x70) == 0
    assert bench.harts.load(DEVICE_ID) == 2


def test_a_plugged_console_is_connected_and_what_it_got_is_written_when_it_goes(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "log"
    bench.machine.plug(Console(f"file:{log}"), SLOT)
    for byte in b"hello":
        bench.harts.store(BASE + 0x100 + 8, byte)  # emergency write (virtio 1.2, 5.3.4)
    bench.machine.unplug(SLOT)
    assert log.read_text() == "hello"


# -- what may not be ---------------------------------------------------------------------------------------------------

WAY_TO = {
    SlotState.EMPTY: (),
    SlotState.FILLING: (Step.PLUG,),
    SlotState.OCCUPIED: (Step.PLUG, Step.PUBLISH),
    SlotState.LEAVING: (Step.PLUG, Step.PUBLISH, Step.UNPLUG),
}


@pytest.mark.parametrize(("state", "request_"), list(itertools.product(SlotState, [Step.PLUG, Step.UNPLUG])))
def test_plug_and_unplug_do_what_the_table_says_in_each_state_of_a_slot(
    config: Config, disk: Drive, state: SlotState, request_: Step
) -> None:
    bench = Bench(config)
    with bench.machine as machine:
        machine.start()
        slots = machine._board.slots
        blocked = Blocked(bench, SLOT)
        for step in WAY_TO[state]:
            if step is Step.PLUG:
                plugged = slots.open(Balloon(), SLOT)
            elif step is Step.PUBLISH:
                slots.publish(plugged)
            else:
                blocked.begin()
                with pytest.raises(HostError, match="balloon is unplugged, but still in use after 0 s"):
                    machine.unplug(SLOT, timeout=0)
        names = machine.slots()
        row = next((row for row in TABLE if (row.state, row.step) == (state, request_)), None)
        act: Callable[[], Any] = (
            (lambda: machine.plug(disk, SLOT)) if request_ is Step.PLUG else lambda: machine.unplug(SLOT)
        )
        if row is None:
            before = held()
            with pytest.raises(LifecycleError, match=f"cannot {request_.value} slot {SLOT}: it .*is {state.value}"):
                act()
            assert machine.slots() == names
            assert held() == before
        else:
            act()
        assert machine.state is State.RUNNING
        blocked.end()


def test_the_table_has_one_row_for_a_state_and_step_and_its_page_has_them_all() -> None:
    assert len({(row.state, row.step) for row in TABLE}) == len(TABLE)
    assert {row.to for row in TABLE} == set(SlotState)
    assert all(f"| {row.state.value} | {row.step.value} | {row.to.value} |" in page() for row in TABLE)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (Drive(Path("/nonexistent")), "plug: /nonexistent"),
        (Drive(Path("x"), format="qcow2"), "plug: format=qcow2"),
        (Drive(Path("x"), id="a" * 21), "plug: id=a* is longer than 20 bytes"),
        (Drive(Path("x"), id="taken"), "plug: id=taken is used twice"),
        (Console("tape"), "plug: 'tape' is no character device"),
        (Console("stdio"), "plug: .*stdio"),
        (Console("file:/nonexistent/log"), "plug: /nonexistent/log"),
        ("disk", "plug: 'disk' is nothing that can be plugged"),
    ],
)
def test_what_cannot_be_plugged_is_refused_in_one_line_and_leaves_nothing(
    bench: Bench, disk: Drive, what: Any, words: str
) -> None:
    bench.machine.plug(changed_drive(disk, id="taken"), 1)
    before = held()
    with pytest.raises((ConfigError, HostError), match=words) as caught:
        bench.machine.plug(what, SLOT)
    assert "\n" not in str(caught.value)
    del caught
    assert held() == before
    assert bench.machine.slots()[SLOT] == ""
    assert bench.machine.state is State.RUNNING


def changed_drive(drive: Drive, **changes: object) -> Drive:
    return Drive(**{**vars(drive), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("slot", [-1, VIRTIO_SLOTS, 1000])
def test_a_slot_that_does_not_exist_is_named(bench: Bench, slot: int) -> None:
    with pytest.raises(ConfigError, match=f"slot {slot} does not exist: give 0 to 7"):
        bench.machine.plug(Rng(), slot)
    with pytest.raises(ConfigError, match=f"slot {slot} does not exist"):
        bench.machine.unplug(slot)


def test_a_disk_that_is_plugged_already_is_refused_and_may_be_plugged_again_after_it_left(
    bench: Bench, disk: Drive
) -> None:
    bench.machine.plug(disk, 4)
    with pytest.raises(ConfigError, match=r"plug: .*plugged\.img"):
        bench.machine.plug(disk, 5)
    bench.machine.unplug(4)
    assert bench.machine.plug(disk, 5) == 5


def test_a_host_without_descriptors_refuses_the_device_and_keeps_the_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> int:
        raise OSError(24, "Too many open files")

    before = held()
    with monkeypatch.context() as patch:
        patch.setattr("vmm.fabric.doorbell.os.eventfd", no_more)
        with pytest.raises(HostError, match=r"plug: .*Too many open files"):
            bench.machine.plug(Rng(), SLOT)
    assert held() == before
    assert bench.machine.plug(Rng(), SLOT) == SLOT


def test_a_stopped_machine_takes_and_gives_nothing(config: Config, disk: Drive) -> None:
    with Bench(config).machine as machine:
        pass
    before = held()
    for act in (lambda: machine.plug(disk, SLOT), lambda: machine.unplug(0)):
        with pytest.raises(LifecycleError, match="a machine that is stopped"):
            act()
    assert held() == before


@pytest.mark.parametrize("state", ["built", "running", "paused"])
def test_devices_come_and_go_in_every_state_that_is_not_the_end(boot: Machines, tmp_path: Path, state: str) -> None:
    """On real harts, which hold nothing up while they wait at the gate."""
    machine = boot.make(Config(bios=looping(tmp_path), smp=2, check_locks=True))
    if state != "built":
        machine.start()
    if state == "paused":
        machine.pause()
    for _ in range(3):
        machine.unplug(machine.plug(Rng(), SLOT))
    assert machine.state.value == state


# -- accesses and work under way ---------------------------------------------------------------------------------------


class Blocked:
    """An access to the configuration of a plugged device, by a hart, which is held up inside."""

    def __init__(self, bench: Bench, slot: int) -> None:
        self._bench = bench
        self._slot = slot
        self._inside, self._go_on = threading.Event(), threading.Event()
        self.answers: list[int] = []
        self._thread = threading.Thread(target=self._access, name="vcpu0")

    def begin(self) -> None:
        plugged: Any = self._bench.machine._board.slots._slots[self._slot].holds
        device, read = plugged.device, plugged.device.read_config

        def held_up(offset: int, size: int) -> int:
            self._inside.set()
            self._go_on.wait(20)
            return read(offset, size)  # type: ignore[no-any-return]

        device.read_config = held_up
        self._thread.start()
        assert self._inside.wait(20)

    def _access(self) -> None:
        bus = self._bench.machine._board.bus
        self.answers.append(bus.read(0x1000_1000 + 0x1000 * self._slot + 0x100, 4))

    def end(self) -> None:
        self._go_on.set()
        if self._thread.ident is not None:
            self._thread.join()


def test_an_access_keeps_the_map_it_began_with_and_nobody_waits_for_it(bench: Bench, disk: Drive) -> None:
    machine = bench.machine
    machine.plug(disk, SLOT)
    doorbells = machine._board.virtio[1].doorbells
    access = Blocked(bench, SLOT)
    access.begin()
    with pytest.raises(HostError, match="still in use after 0 s: it waits for harts and accesses to let go"):
        machine.unplug(SLOT, timeout=0)
    assert bench.harts.load(DEVICE_ID) == 0, "another hart finds the slot empty already"
    machine.pause()
    machine.resume()
    doorbells[0].ring()  # as that access might: it is nobody else's descriptor yet
    with pytest.raises(LifecycleError, match=f"cannot plug slot {SLOT}: it holds disk0 and is being emptied"):
        machine.plug(Rng(), SLOT)
    access.end()
    until(lambda: machine.slots()[SLOT] == "")
    assert access.answers == [SIZE // 512], "the capacity of the old disk"
    machine.plug(disk, SLOT)


def test_a_request_that_the_disk_works_on_holds_its_files_but_not_the_slot(
    bench: Bench, disk: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer reaches neither the ring nor the interrupt line."""
    begun, go_on = threading.Event(), threading.Event()
    read = RawImage.read

    def slow(self: RawImage, *arguments: Any) -> None:
        begun.set()
        assert go_on.wait(20)
        read(self, *arguments)

    machine = bench.machine
    machine.plug(disk, SLOT)
    monkeypatch.setattr(RawImage, "read_now", lambda *_: False)
    monkeypatch.setattr(RawImage, "read", slow)
    ask(bench)
    assert begun.wait(20)
    with pytest.raises(HostError, match="still in use after 0 s"):
        machine.unplug(SLOT, timeout=0)
    assert bench.harts.load(DEVICE_ID) == 0
    go_on.set()
    until(lambda: machine.slots()[SLOT] == "")
    assert memory(machine).u16(RINGS + 0x802) == 0
    assert not bench.harts.lines[1 + SLOT].level
    machine.unplug(machine.plug(disk, SLOT))


def test_a_machine_stops_while_a_device_is_leaving(config: Config, disk: Drive) -> None:
    before = held()
    bench = Bench(config)
    machine = bench.machine
    machine.start()
    machine.plug(disk, SLOT)
    access = Blocked(bench, SLOT)
    access.begin()
    with pytest.raises(HostError):
        machine.unplug(SLOT, timeout=0)
    release = threading.Thread(target=access.end)
    release.start()
    machine.stop()
    release.join()
    assert machine.outcome == Outcome(Reason.ASKED)
    del bench, machine, access, release
    assert held() == before


def test_a_plug_that_was_given_up_leaves_no_device_behind(config: Config, disk: Drive) -> None:
    """The request reaches the lifecycle after whoever made it has gone."""
    with Bench(config).machine as machine:
        machine.start()
        slots = machine._board.slots
        plugged = slots.open(disk, SLOT)
        slots.abandon(plugged)
        slots.abandon(plugged)
        with pytest.raises(LifecycleError, match="disk0 was abandoned"):
            slots.publish(plugged)
        machine.unplug(machine.plug(disk, SLOT))


def test_many_threads_plug_and_unplug_while_others_press_the_buttons(bench: Bench, tmp_path: Path) -> None:
    machine = bench.machine
    unexpected: list[BaseException] = []

    def loop(act: Callable[[], object]) -> None:
        for _ in range(12):
            try:
                act()
            except LifecycleError:
                pass
            except BaseException as error:
                unexpected.append(error)

    def come_and_go(slot: int) -> Callable[[], object]:
        drive = Drive(tmp_path / f"{slot}.img")
        drive.file.write_bytes(bytes(SIZE))
        return lambda: machine.unplug(machine.plug(drive, slot))

    acts = [come_and_go(6), come_and_go(7), lambda: machine.unplug(7), machine.pause, machine.resume, machine.reset]
    threads = [threading.Thread(target=loop, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    machine.resume()
    assert not unexpected
    until(lambda: machine.slots() == ("rng", *[""] * 7))


RINGS = 0x8000_0000 + (32 << 20)


def ask(bench: Bench) -> None:
    """Have the plugged disk read a sector, as a driver would."""
    dma = memory(bench.machine)
    header, data, status = RINGS + 0xA00, RINGS + 0xC00, RINGS + 0xB00
    dma.write(RINGS, bytes(0x1000))
    dma.write(header, struct.pack("<IIQ", 0, 0, 0))
    chain = [(header, 16, 1, 1), (data, 512, 3, 2), (status, 1, 2, 0)]
    dma.write(RINGS, b"".join(struct.pack("<QIHH", *one) for one in chain))
    dma.put_u16(RINGS + 0x402, 1)
    for offset, value in [
        *((0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, 8)),
        *((0x80, RINGS), (0x90, RINGS + 0x400), (0xA0, RINGS + 0x800), (0x44, 1), (0x70, 15), (0x50, 0)),
    ]:
        bench.harts.store(BASE + offset, value)


# -- harts that run ----------------------------------------------------------------------------------------------------

SEEN = RAM_BASE + 0x1000


def looping(folder: Path) -> Path:
    """Hart 0 keeps the slot's device ID in memory and notifies its queue 0; the others sleep."""
    code = assemble(
        """
                bnez a0, sleep
                li   t0, BASE; li t1, SEEN
        again:  lw   t2, 8(t0); sw t2, 0(t1)
                sw   zero, 0x50(t0)
                ld   t3, 8(t1); addi t3, t3, 1; sd t3, 8(t1)
                j    again
        sleep:  wfi
                j    sleep
        """,
        BASE=BASE,
        SEEN=SEEN,
    )
    path = folder / "looping.elf"
    path.write_bytes(elf([(RAM_BASE, code, 0x2000)]))
    return path


@pytest.fixture(params=["device", "bql"])
def running(boot: Machines, tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    """Hart 1 sleeps for ever: it lets go of old maps all the same."""
    return boot(Config(bios=looping(tmp_path), smp=2, locking=request.param, check_locks=True))


def sees(machine: Machine, number: int) -> None:
    dma = memory(machine)
    until(lambda: dma.u32(SEEN) == number)


def test_a_guest_that_does_not_stop_sees_devices_come_and_go(running: Machine, disk: Drive) -> None:
    for what, number in [(disk, 2), (Rng(), 4), (Balloon(), 5)] * 3:
        running.plug(what, SLOT)
        sees(running, number)
        running.unplug(SLOT)
        sees(running, 0)
    assert running.state is State.RUNNING


def test_the_doorbell_of_a_plugged_device_is_rung_without_an_exit_until_it_is_unplugged(running: Machine) -> None:
    (hart, _) = harts(running)
    dma = memory(running)

    def writes_in_a_while() -> int:
        before, rounds = hart.exits[Exit.MMIO_WRITE], dma.u64(SEEN + 8)
        until(lambda: dma.u64(SEEN + 8) > rounds + 50)
        return int(hart.exits[Exit.MMIO_WRITE] - before)

    running.plug(Rng(), SLOT)
    sees(running, 4)
    assert writes_in_a_while() == 0
    running.unplug(SLOT)
    sees(running, 0)
    assert writes_in_a_while() >= 50


def test_the_harts_need_not_reach_the_gate_for_a_plug(running: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stops: the gate is never closed."""
    monkeypatch.setattr("vmm.vcpu.thread.Gate.close", lambda *_: pytest.fail("the harts were stopped"))
    running.unplug(running.plug(Rng(), SLOT))
    monkeypatch.undo()


def test_an_error_of_ours_while_a_device_is_made_stops_the_machine_with_its_stack(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.machine.slots.VirtioMmio.attach", lambda *_: [][0])
    with pytest.raises(IndexError):
        bench.machine.plug(Rng(), SLOT)
    outcome = bench.machine.wait(20)
    assert outcome is not None
    assert outcome.reason is Reason.FAILED
    assert "IndexError" in outcome.report
