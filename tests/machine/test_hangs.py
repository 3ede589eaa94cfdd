"""What a watchdog says of whole machines: of one that hangs, who and where; of one that rests, nothing."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.programs import FOREVER, PASS, SPIN, T0, T1, finish, li, program, say
from tests.machine.bench import Bench
from tests.machine.files import image
from tests.machines import bus, device, harts
from vmm.errors import DeadlineError
from vmm.locks import Device, Locking, Rank, entry
from vmm.machine import slots, virt
from vmm.machine.config import Config, Drive
from vmm.machine.hangs import MachineView
from vmm.machine.lifecycle import Reason, Request, State, Ticket
from vmm.machine.machine import Machine
from vmm.testing.fakes import FakeIoThread
from vmm.waitfor import Sighting, cycles
from vmm.watchdog import LOOKS, Watchdog

THRESHOLD = 10
PLANTED = 0x2000_0000
LOAD = [T1 << 7 | T0 << 15 | 2 << 12 | 0x03]
"""lw t1, 0(t0)"""


class Planted(Device):
    """A device whose register answers when a test's function does."""

    lock_rank = Rank.DEVICE

    def __init__(self, name: str, locking: Locking, answer: Callable[[], object]) -> None:
        super().__init__(name, locking)
        self._answer = answer

    @entry
    def read(self, offset: int, size: int) -> int:
        self._answer()
        return 0

    @entry
    def write(self, offset: int, size: int, value: int) -> None:
        """Ignored."""


class Watch:
    """A watchdog of a machine on a clock of the test's."""

    def __init__(self, machine: Machine) -> None:
        self.view = MachineView(machine.locking, machine._lifecycle, machine._board)
        self._now = 0
        self._written: list[str] = []
        self._watchdog = Watchdog(self.view, THRESHOLD, self._written.append, now=lambda: self._now)

    def sighting(self) -> Sighting:
        return Sighting(self.view.parts)

    def until(self, happened: Callable[[Sighting], object]) -> None:
        while not happened(self.sighting()):
            pass

    def look(self, times: int = LOOKS + 1) -> list[str]:
        before = len(self._written)
        for _ in range(times):
            self._watchdog.look()
            self._now += THRESHOLD * 1_000_000_000 // LOOKS
        return self._written[before:]


@pytest.fixture
def until() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def plant(machine: Machine, answer: Callable[[], object]) -> None:
    made = machine.locking.make(Planted, "planted", answer)
    bus(machine).map(PLANTED, 0x1000, made, "planted")


# -- machines that hang ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("policy", ["device", "bql"])
def test_a_vcpu_that_does_not_come_back_from_an_exit_is_named_with_pc_device_door_and_line(
    policy: str, checked: bool, tmp_path: Path, until: threading.Event
) -> None:
    bios = program(tmp_path, li(T0, PLANTED), LOAD, finish(PASS))
    with Machine(Config(bios=bios, mem=64 << 20, locking=policy, check_locks=checked)) as machine:  # type: ignore[arg-type]
        inside = threading.Event()
        plant(machine, lambda: (inside.set(), until.wait()))
        watch = Watch(machine)
        machine.start()
        inside.wait()
        (report,) = watch.look()
        lines = report.splitlines()
        assert f"  vcpu0 is in an exit: read of 4 bytes at {PLANTED:#x} (planted), at every look for 10.0 s" in lines
        assert (
            f"  hart 0: M-mode, pc 0x0000000080000008; vcpu0 is in an exit: read of 4 bytes at {PLANTED:#x} (planted)"
            in lines
        )
        lock = "bql (class bql)" if policy == "bql" else "planted (class Planted)"
        # The I/O thread takes a turn when the machine starts, and under the big lock it may be too late for that.
        held = rf"^  the lock of {re.escape(lock)}(: |\n    )held by vcpu0, at every look for 10\.0 s"
        assert re.search(held, report, re.MULTILINE)
        assert any(line.startswith("      in Planted.read, at tests/machine/test_hangs.py:") for line in lines)
        assert "  PLIC sources: level high none; claimed none" in lines
        assert "  io: asleep or between callbacks" in lines
        until.set()
        assert machine.wait() is not None
        assert "vmm: hang over: no longer so: vcpu0 is in an exit: read of 4 bytes" in watch.look(1)[0]


def test_a_vcpu_that_waits_for_the_lifecycle_that_waits_for_it_is_a_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bios = program(tmp_path, li(T0, PLANTED), LOAD, FOREVER)
    with Machine(Config(bios=bios, mem=64 << 20)) as machine:
        lifecycle = machine._lifecycle
        tickets: list[Ticket] = []

        def pause() -> None:
            """A mistake: it may not wait for a transition on a VCPU's own thread."""
            tickets.append(lifecycle.post(Request.PAUSE))
            lifecycle._await(tickets[0])

        plant(machine, pause)
        watch = Watch(machine)
        machine.start()
        watch.until(lambda sighting: cycles(sighting.holds, sighting.waits))
        (report,) = watch.look()
        _, _, graph = report.partition("-- who waits for whom\n")
        first = graph.splitlines()[0]
        assert "  CYCLE: " in first
        assert "vcpu0 waits for a transition of the lifecycle, which needs lifecycle" in first
        assert "lifecycle waits for harts at the gate, which needs vcpu0" in first
        assert "lifecycle is pausing, at every look for 10.0 s" in report
        with lifecycle._changed:
            tickets[0].done = True
            lifecycle._changed.notify_all()


def test_a_reset_with_a_worker_that_is_stuck_gives_up_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: threading.Event
) -> None:
    for module in (virt, slots):
        monkeypatch.setattr(module, "DEADLINE_S", 0.05)
    kernel, disk = tmp_path / "Image", tmp_path / "disk.img"
    kernel.write_bytes(image())
    disk.write_bytes(bytes(1 << 20))
    bench = Bench(Config(kernel=kernel, mem=64 << 20, drive=(Drive(disk),)))
    machine = bench.machine
    machine.start()
    inside = threading.Event()
    flight = device(machine, "disk0").in_flight

    def read_that_never_ends() -> None:
        inside.set()
        until.wait()
        flight.end()

    flight.begin()
    machine._board.workers.submit(read_that_never_ends, done=lambda _: None, home=FakeIoThread())
    inside.wait()
    with pytest.raises(DeadlineError, match=r"disk0 did not come to rest within 0\.05 s: <InFlight disk0: 1>"):
        machine.reset()
    until.set()
    machine.stop()
    outcome = machine.outcome
    assert outcome is not None
    assert outcome.reason is Reason.FAILED
    title, *report = outcome.report.splitlines()
    assert title.startswith("vmm: state of all threads: disk0 did not come to rest")
    assert "  disk0: copies in flight: 1" in report
    assert any(re.fullmatch(r"  worker\d in \S+read_that_never_ends for \d+\.\d s", line) for line in report)
    assert any("read_that_never_ends" in line for line in report[report.index("-- stacks") :])


def test_harts_that_do_not_reach_the_gate_are_named_with_what_they_do(tmp_path: Path, until: threading.Event) -> None:
    bios = program(tmp_path, li(T0, PLANTED), LOAD, FOREVER)
    with Machine(Config(bios=bios, mem=64 << 20)) as machine:
        inside = threading.Event()
        plant(machine, lambda: (inside.set(), until.wait()))
        machine.start()
        inside.wait()
        gate = machine._board.harts._gate  # type: ignore[attr-defined]
        with pytest.raises(DeadlineError, match=r"within 0 s: vcpu0 in an exit: read of 4 bytes at 0x20000000 \(plant"):
            gate.close(0)
        gate.open()
        until.set()


# -- machines that do not ----------------------------------------------------------------------------------------------


def at_rest(sighting: Sighting) -> bool:
    return not sighting.stays


@pytest.mark.parametrize(("code", "doing"), [(FOREVER, "in WFI"), (SPIN, "in the guest")], ids=["idle", "computing"])
def test_a_guest_that_sleeps_or_computes_for_long_is_no_hang_nor_is_who_waits_for_it(
    code: list[int], doing: str, tmp_path: Path
) -> None:
    bios = program(tmp_path, say("x"), code)
    with Machine(Config(bios=bios, mem=64 << 20, smp=2, console="null", balloon=True)) as machine:
        watch = Watch(machine)
        machine.start()
        user = threading.Thread(target=machine.wait)
        user.start()
        watch.until(lambda sighting: at_rest(sighting) and all(hart.doing() == doing for hart in harts(machine)))
        watch.until(lambda sighting: user.ident in [wait.thread for wait in sighting.waits])
        assert watch.look(10 * LOOKS) == []
        machine.stop()
        user.join()


def test_a_machine_that_was_built_paused_or_stopped_is_no_hang(tmp_path: Path) -> None:
    bios = program(tmp_path, say("x"), FOREVER)
    with Machine(Config(bios=bios, mem=64 << 20, smp=2)) as machine:
        watch = Watch(machine)
        watch.until(at_rest)
        assert watch.look(10 * LOOKS) == []
        machine.start()
        machine.pause()
        watch.until(lambda sighting: at_rest(sighting) and len(sighting.waits) == 2)  # both harts, at the gate
        assert watch.look(10 * LOOKS) == []
        report = machine.hang_report("paused")
        assert "waits that no thread is to end now: " in report
        assert "vcpu0 is at the gate" in report
    assert machine.state is State.STOPPED
    assert watch.look(10 * LOOKS) == []


def test_a_machine_has_a_watchdog_only_if_it_was_asked_for_and_ends_it(tmp_path: Path) -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    config = Config(bios=program(tmp_path, FOREVER), mem=64 << 20)
    with Machine(config) as machine:
        assert "watchdog" not in names()
        assert "looks every" not in machine.hang_report("asked")
    with Machine(Config(**{**vars(config), "watchdog": 60.0})) as machine:
        machine.start()
        assert "watchdog" in names()
        assert "looks every 15.0 s" in machine.hang_report("asked")
    assert "watchdog" not in names()
