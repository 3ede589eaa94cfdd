"""Programs for the life of a whole machine: pause, reset, stop, plug and unplug, while its harts use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmm.fabric.bus import BusFault
from vmm.machine.config import Balloon, Rng
from vmm.machine.lifecycle import LifecycleError, Reason, State
from vmm.machine.virt import FINISHER, RAM_BASE, RTC, UART, VIRTIO
from vmm.testing.schedule import Scheduler
from vmm.testing.schedule.machine import ScheduledMachine
from vmm.testing.schedule.surroundings import ScheduledBus
from vmm.testing.schedule.vcpus import Call, Guest, Load, Store, nothing

HSM: Final = 0x48_534D
SECOND: Final = RAM_BASE + 0x100
"""Where hart 0 starts the others."""


def hsm(function: int, *arguments: int) -> Call:
    """A call of the hart state management extension."""
    return Call((*arguments, *(0,) * (6 - len(arguments)), function, HSM))


def prints(text: bytes) -> Guest:
    for byte in text:
        yield Store(UART.base, byte, 1)


def pause_and_resume(s: Scheduler) -> None:
    """A machine that is paused does nothing, and then goes on where it was."""

    def guest(hart: int, pc: int) -> Guest:
        return prints(b"abc") if hart == 0 else nothing()

    machine = ScheduledMachine(s, guest)
    line = machine.board.line

    def monitor() -> None:
        machine.start()
        for _ in range(2):
            machine.pause()
            assert machine.state is State.PAUSED
            before = bytes(line.sent)
            now = machine.board.clock.now()
            for _ in range(3):
                s.point("line output read")
            assert bytes(line.sent) == before, "a hart runs while the machine is paused"
            assert machine.board.clock.now() == now
            machine.resume()

    s.spawn("monitor", monitor)
    s.check(lambda: line.sent == b"abc")


def two_monitors(s: Scheduler) -> None:
    """Two monitors pause and resume at once; whatever they do, the machine runs in the end."""
    machine = ScheduledMachine(s, lambda hart, pc: prints(b"ab") if hart == 0 else nothing())

    def toggle() -> None:
        for request in (machine.pause, machine.resume):
            try:
                request()
            except LifecycleError:
                pass

    def first() -> None:
        machine.start()
        toggle()

    s.spawn("monitor0", first)
    s.spawn("monitor1", toggle)

    def end() -> None:
        if machine.state is State.RUNNING:
            assert machine.board.line.sent == b"ab"
        else:
            assert machine.state is State.PAUSED

    s.check(end)


def reset_by_guest_and_monitor(s: Scheduler) -> None:
    """A guest resets the machine while the monitor does: it boots again, and prints all of its text in the end."""
    boots = [0]

    def guest(hart: int, pc: int) -> Guest:
        if hart:
            yield from nothing()
        boots[0] += 1
        first = boots[0] == 1
        yield from prints(b"<")
        if first:
            yield Store(FINISHER.base, 0x7777)
        yield from prints(b">")

    machine = ScheduledMachine(s, guest, harts=1)

    def monitor() -> None:
        machine.start()
        machine.reset()

    s.spawn("monitor", monitor)

    def end() -> None:
        assert machine.state is State.RUNNING
        # Made once before the start: `boots` counts the resets as well as the first.
        assert machine.board.line.sent.endswith(b"<>"), bytes(machine.board.line.sent)

    s.check(end)


def power_off_and_stop(s: Scheduler) -> None:
    """A guest powers off while the monitor pauses, and another stops the machine: it ends, with one outcome."""

    def guest(hart: int, pc: int) -> Guest:
        if hart == 0:
            yield from prints(b"x")
            yield Store(FINISHER.base, 0x5555)

    machine = ScheduledMachine(s, guest)

    def first() -> None:
        machine.start()
        try:
            machine.pause()
            machine.resume()
        except LifecycleError:
            pass
        machine.stop()

    s.spawn("monitor0", first)
    outcomes: list[object] = []
    s.spawn("monitor1", lambda: outcomes.append(machine.wait()))

    def end() -> None:
        assert machine.state is State.STOPPED
        assert machine.outcome
        assert machine.outcome.reason in (Reason.POWER_OFF, Reason.ASKED), machine.outcome.report
        assert outcomes == [machine.outcome]

    s.check(end)


def harts_come_and_go(s: Scheduler) -> None:
    """Hart 0 starts hart 1, which stops itself, twice; meanwhile the monitor pauses, resumes and stops."""
    ran: list[int] = []

    def guest(hart: int, pc: int) -> Guest:
        if hart == 1:
            s.point("ran write")
            ran.append(pc)
            yield hsm(1)
            raise AssertionError("a stopped hart goes on")
        for turn in range(2):
            while (yield hsm(0, 1, SECOND + 2 * turn, 0)) != 0:
                pass  # it has not stopped yet

    machine = ScheduledMachine(s, guest)

    def monitor() -> None:
        machine.start()
        machine.pause()
        machine.resume()

    s.spawn("monitor", monitor)
    s.check(lambda: ran == [SECOND, SECOND + 2])


def reset_while_harts_start(s: Scheduler) -> None:
    """A reset while hart 0 starts hart 1: afterwards hart 1 is stopped, until hart 0 starts it again."""
    ran: list[int] = []

    def guest(hart: int, pc: int) -> Guest:
        if hart == 1:
            ran.append(pc)
            yield from nothing()
        yield hsm(0, 1, SECOND, 0)

    machine = ScheduledMachine(s, guest)

    def monitor() -> None:
        machine.start()
        machine.reset()

    s.spawn("monitor", monitor)

    def end() -> None:
        assert machine.state is State.RUNNING
        assert ran
        assert ran[-1] == SECOND

    s.check(end)


def timers_over_a_pause(s: Scheduler) -> None:
    """An alarm that comes due around a pause interrupts after it, not in it."""

    def guest(hart: int, pc: int) -> Guest:
        if hart == 0:
            yield Store(RTC.base + 0x10, 1)
            yield Store(RTC.base + 0x0C, 0)
            yield Store(RTC.base + 0x08, 1000)

    machine = ScheduledMachine(s, guest, plugged=())
    board = machine.board
    wire = board.harts.line(RTC.irq)

    def monitor() -> None:
        machine.start()
        machine.pause()
        level = wire.level
        board.wall_clock.advance(0)
        assert wire.level == level, "an interrupt rises while the machine is paused"

    s.spawn("monitor", monitor)
    s.spawn("time", board.wall_clock.advance, 10**6)


def unplug_and_access(s: Scheduler) -> None:
    """A hart reads a slot while its device goes and another comes: it finds the one, none, or the other."""
    seen: list[int] = []
    slot = VIRTIO[0].base

    def guest(hart: int, pc: int) -> Guest:
        if hart == 0:
            for _ in range(3):
                seen.append((yield Load(slot + 8)))
                yield Store(slot + 0x70, 1)
                yield Store(slot + 0x50, 0)

    machine = ScheduledMachine(s, guest, harts=1)

    def monitor() -> None:
        machine.start()
        machine.unplug(0)
        assert machine.slots()[0] == ""
        assert machine.plug(Balloon()) == 0

    s.spawn("monitor", monitor)

    def end() -> None:
        assert machine.state is State.RUNNING, machine.outcome
        order = {4: 0, 0: 1, 5: 2}  # rng, empty, balloon
        steps = [order[kind] for kind in seen]
        assert steps == sorted(steps), f"the slot goes back and forth: {seen}"

    s.check(end)


def unplug_while_paused(s: Scheduler) -> None:
    """Plug, unplug, pause and reset at once: each is done or refused, and the machine goes on."""

    def guest(hart: int, pc: int) -> Guest:
        if hart == 0:
            for window in VIRTIO[:2]:
                yield Load(window.base + 8)
                yield Store(window.base + 0x70, 1)

    machine = ScheduledMachine(s, guest, plugged=(Rng(), Balloon()))

    def first() -> None:
        machine.start()
        machine.pause()
        machine.resume()
        machine.reset()

    def second() -> None:
        machine.unplug(1)
        machine.plug(Rng(), 1)

    s.spawn("monitor0", first)
    s.spawn("monitor1", second)

    def end() -> None:
        assert machine.state is State.RUNNING, machine.outcome
        assert machine.slots()[:2] == ("rng", "rng1")

    s.check(end)


def stop_while_unplugging(s: Scheduler) -> None:
    """The machine stops while a device is taken away: all is given back, once."""

    def guest(hart: int, pc: int) -> Guest:
        if hart == 0:
            yield Load(VIRTIO[0].base + 8)

    machine = ScheduledMachine(s, guest, harts=1)

    def unplug() -> None:
        try:
            machine.unplug(0)
        except LifecycleError:
            pass

    def first() -> None:
        machine.start()
        machine.stop()

    s.spawn("monitor0", first)
    s.spawn("monitor1", unplug)

    def end() -> None:
        assert machine.state is State.STOPPED
        assert machine.outcome
        assert machine.outcome.reason is Reason.ASKED, machine.outcome.report
        assert not any(machine.slots())

    s.check(end)


# -- the bus map alone -------------------------------------------------------------------------------------------------


class Window:
    """A target that must not be used once it has been reclaimed."""

    def __init__(self, s: Scheduler, name: str, value: int) -> None:
        self._s = s
        self._value = value
        self._word = f"{name} used"
        self.gone = False

    def read(self, offset: int, size: int) -> int:
        self._s.point(f"{self._word} read")
        assert not self.gone, "an access to what has been given back"
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        self.read(offset, size)

    def reclaim(self) -> None:
        self._s.point(f"{self._word} write")
        self.gone = True


def map_and_access(s: Scheduler) -> None:
    """Windows come, move and go under accesses, of a thread that keeps the map and of one that does not."""
    bus = ScheduledBus(s)
    one, two = Window(s, "one", 1), Window(s, "two", 2)
    bus.map(0x1000, 0x1000, one, "one")
    kicked = [False]

    def kick() -> None:
        kicked[0] = True

    def keeper() -> None:
        """As a VCPU: it keeps what it found until it is asked to look again."""
        reader = bus.reader("vcpu0", kick)
        for _ in range(2):
            window = reader.refresh().find(0x1000)
            if window is not None:
                assert window.read(0, 4) in (1, 2)
            if kicked[0]:
                kicked[0] = False
                reader.refresh()
        reader.rest()
        reader.leave()

    def visitor() -> None:
        for address in (0x1000, 0x5000):
            try:
                assert bus.read(address, 4) in (1, 2)
            except BusFault:
                pass

    def changer() -> None:
        bus.move(0x1000, 0x5000)
        bus.unmap(0x5000)
        bus.retire(one.reclaim)
        bus.map(0x1000, 0x1000, two, "two")

    s.spawn("vcpu0", keeper)
    s.spawn("monitor", visitor)
    s.spawn("lifecycle", changer)

    def end() -> None:
        assert one.gone, "what was removed is never given back"
        assert bus.read(0x1000, 4) == 2

    s.check(end)


def replace_and_access(s: Scheduler) -> None:
    """A window is replaced: every access finds the one or the other, never nothing, and not the old one for ever."""
    bus = ScheduledBus(s)
    one, two = Window(s, "one", 1), Window(s, "two", 2)
    bus.map(0x1000, 0x1000, one, "one")
    found: list[int] = []

    def visitor() -> None:
        for _ in range(3):
            found.append(bus.read(0x1000, 4))

    def changer() -> None:
        bus.replace(0x1000, two, "two")
        bus.retire(one.reclaim)

    s.spawn("monitor", visitor)
    s.spawn("lifecycle", changer)

    def end() -> None:
        assert found == sorted(found)
        assert one.gone

    s.check(end)


ALL: Final[tuple[Callable[[Scheduler], None], ...]] = (
    pause_and_resume,
    two_monitors,
    reset_by_guest_and_monitor,
    power_off_and_stop,
    harts_come_and_go,
    reset_while_harts_start,
    timers_over_a_pause,
    unplug_and_access,
    unplug_while_paused,
    stop_while_unplugging,
    map_and_access,
    replace_and_access,
)
