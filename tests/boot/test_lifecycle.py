"""The machine's buttons, pressed at random while guests work; and what may not be pressed."""

from __future__ import annotations

import gc
import random
import threading
from pathlib import Path

import pytest

from tests.assembler import RAM_BASE, assemble
from tests.boot.linux import INIT_S, POWER_OFF, REPLY_S, Shell, booted, report, shell
from tests.hostile.dice import Dice
from tests.hostile.guests import everything
from tests.hostile.scripted import BOARD, Line, program
from tests.machine.files import elf
from tests.machines import Machines, bus, harts, memory
from vmm.bql import Policy
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Config, Drive
from vmm.machine.lifecycle import TABLE, LifecycleError, Outcome, Reason, Request, State
from vmm.machine.machine import Machine

FOR_EVER = 1 << 60
HARTS = 4


def busy(boot: Machines, folder: Path, seed: int, locking: Policy) -> Machine:
    """Four harts that access every device and count in memory, for ever; not started."""
    dice = Dice(seed)
    scripts = []
    for hart in range(HARTS):
        script = [line for _ in range(200) for line in (dice.access(), Line("amo8", BOARD + 0x800, 1))]
        scripts.append([*script, Line("amo4", BOARD + 8 * hart, 1)])
    bios = program(folder, scripts, rounds=FOR_EVER)
    return boot.make(everything(folder, bios, smp=HARTS, locking=locking))


def counters(machine: Machine) -> list[int]:
    dma = memory(machine)
    return [dma.u64(BOARD + 8 * hart) for hart in range(HARTS)]


def runs(machine: Machine) -> None:
    """Every hart gets on."""
    before = counters(machine)
    for _ in range(30_000):
        if all(now > then for then, now in zip(before, counters(machine), strict=True)):
            return
        assert machine.wait(0.002) is None
    raise AssertionError(f"harts are stuck: {before} -> {counters(machine)}")


def stands_still(machine: Machine) -> None:
    def all_of_it() -> object:
        return counters(machine), [thread.vcpu.instructions for thread in harts(machine)]

    before = all_of_it()
    assert machine.wait(0.005) is None
    assert all_of_it() == before


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_any_button_at_any_time_does_what_the_table_says(
    boot: Machines, tmp_path: Path, seed: int, locking: Policy
) -> None:
    rng = random.Random(seed)
    machine = busy(boot, tmp_path, seed, locking)
    expected = State.BUILT
    buttons = {
        Request.START: machine.start,
        Request.PAUSE: machine.pause,
        Request.RESUME: machine.resume,
        Request.RESET: machine.reset,
    }
    for _ in range(60):
        request = rng.choice(list(buttons))
        row = next((row for row in TABLE if (row.state, row.request) == (expected, request)), None)
        if row is None:
            with pytest.raises(LifecycleError, match=f"cannot {request.value} a machine that is {expected.value}"):
                buttons[request]()
        else:
            buttons[request]()
            expected = row.to
        assert machine.state is expected
        if expected is State.PAUSED:
            stands_still(machine)
        elif expected is State.RUNNING and rng.random() < 0.5:
            runs(machine)
    machine.stop()
    assert machine.outcome == Outcome(Reason.ASKED)
    for press in buttons.values():
        with pytest.raises(LifecycleError, match="a machine that is stopped"):
            press()
    machine.stop()


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_buttons_pressed_by_several_threads_at_once(boot: Machines, tmp_path: Path, seed: int, locking: Policy) -> None:
    machine = busy(boot, tmp_path, seed, locking)
    machine.start()
    unexpected: list[BaseException] = []

    def press(number: int) -> None:
        rng = random.Random(seed * 10 + number)
        for _ in range(15):
            try:
                rng.choice([machine.pause, machine.resume, machine.reset])()
            except LifecycleError:
                pass
            except BaseException as error:
                unexpected.append(error)

    threads = [threading.Thread(target=press, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    machine.resume()
    runs(machine)


def test_a_machine_that_is_gone_leaves_no_threads_and_no_files(tmp_path: Path, seed: int) -> None:
    threads, files = set(threading.enumerate()), open_files()
    for moment in ("built", "running", "paused"):
        boot = Machines(moment)
        machine = busy(boot, tmp_path, seed, "device")
        if moment != "built":
            machine.start()
        if moment == "paused":
            machine.pause()
        boot.stop()
        assert set(threading.enumerate()) <= threads
    del boot, machine
    gc.collect()
    assert open_files() <= files


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_vcpu_thread_that_dies_stops_the_machine_with_registers_and_stack(boot: Machines, tmp_path: Path) -> None:
    class Broken:
        def read(self, offset: int, size: int) -> int:
            raise ValueError("a defect")

        def write(self, offset: int, size: int, value: int) -> None: ...

    code = assemble("lui t0, 0x50000; lw t1, 0(t0)")
    path = tmp_path / "program.elf"
    path.write_bytes(elf([(RAM_BASE, code, len(code))]))
    machine = boot.make(Config(bios=path, smp=2))
    bus(machine).map(0x5000_0000, 0x1000, Broken(), "broken")
    machine.start()
    outcome = machine.wait(60)
    assert outcome is not None
    assert outcome.reason is Reason.FAILED
    for words in ("vcpu", "0x0000000080000004", "0000000050000000", "ValueError: a defect"):
        assert words in outcome.report


# -- Linux -------------------------------------------------------------------------------------------------------------

_WORK = (
    "(while :; do dd if=/tmp/data of=/dev/vda bs=16k seek=4 conv=notrunc,fsync oflag=direct;"
    "dd if=/dev/vda of=/dev/null bs=64k iflag=direct; dd if=/dev/hwrng of=/dev/null bs=512 count=8; done) 2>/dev/null &"
    "(i=0; while :; do i=$((i+1)); echo $i >/tmp/next; mv /tmp/next /tmp/count; done) &"
)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("locking", ["device", "bql"])
def test_linux_with_disks_at_work_is_paused_many_times_and_reset(
    boot: Machines, guest: DebianGuest, tmp_path: Path, seed: int, locking: Policy
) -> None:
    rng = random.Random(seed)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    machine = boot(shell(guest, smp=2, locking=locking, drive=(Drive(disk),), check_locks=True))
    run = Shell(machine)
    for _ in range(2):
        run(f"dd if=/dev/urandom of=/tmp/data bs=64k count=4 2>/dev/null; {_WORK} until [ -f /tmp/count ]; do :; done")
        for _ in range(25):
            machine.pause()
            before = [thread.vcpu.instructions for thread in harts(machine)]
            assert machine.wait(rng.uniform(0, 0.01)) is None
            assert [thread.vcpu.instructions for thread in harts(machine)] == before
            machine.resume()
            assert machine.wait(rng.uniform(0, 0.01)) is None
        run("a=$(cat /tmp/count); until [ $(cat /tmp/count) -gt $a ]; do :; done")
        assert run("dmesg | grep -ci error; true") == "0"
        machine.reset()
        run = Shell(machine)
    run.type("poweroff -f")
    assert machine.wait(REPLY_S) == POWER_OFF


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_booting_is_reset_and_paused_at_random_moments(boot: Machines, guest: DebianGuest, seed: int) -> None:
    rng = random.Random(seed)
    machine = boot(report(guest, smp=4))
    for moment in ("Linux version", "smp: Bringing up", "smp: Brought up", "Run /init", "vmm: init reached"):
        machine.serial.expect(moment, INIT_S)
        assert machine.wait(rng.uniform(0, 0.05)) is None
        machine.pause()
        machine.resume()
        machine.reset()
    booted(machine, 4)
