"""The virtio slots of the board, and how devices come and go while the machine runs.

A device that is plugged takes the place of an empty slot in the bus map, in one step; nobody waits for anybody. One
that is unplugged leaves the map in one step too, and is mute from then on. What it needed is given back once nothing
can reach it any more:

    lifecycle   the window leads to an empty slot; the device takes nothing on and drives no line
    VCPUs       each takes up the new map, out of guest code and of any access (`Bus.retire`)
    its home    closes the doorbells, which nobody rings now; no queue is served any more
    anywhere    the last copy in flight ends
    I/O thread  its line to the host is disconnected
    a worker    ends its thread and closes its files; the slot is empty

An access that began before goes on in the map it began with, into a device that does nothing.

Losers: to wait for the accesses in flight before the window goes is how others made a deadlock of a race, since an
access may be waiting for whoever unplugs; to stop all harts for it makes each of them wait for the slowest access.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, NamedTuple, cast

from vmm.devices.virtio.balloon import VirtioBalloon
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.console import VirtioConsole
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.mmio import EmptySlot, VirtioMmio
from vmm.devices.virtio.rng import VirtioRng
from vmm.errors import ConfigError, DeadlineError, HostError
from vmm.fabric.bus import Bus
from vmm.fabric.clock import Clock
from vmm.fabric.dma import Dma
from vmm.fabric.iothread import IoThread, io_thread
from vmm.fabric.irq import Wire
from vmm.fabric.ram import Ram
from vmm.fabric.workers import Workers
from vmm.host.block import open_image
from vmm.host.chardev import Chardev
from vmm.host.consoles import open_chardev
from vmm.locks import Locking
from vmm.machine.config import Balloon, Console, Drive, Pluggable, Rng
from vmm.machine.fdt import Window
from vmm.machine.lifecycle import LifecycleError
from vmm.waitfor import Sighting

DEADLINE_S: Final = 10.0
"""How long harts, devices and threads may take to come to rest before the one that does not is reported."""


class SlotState(Enum):
    EMPTY = "empty"
    FILLING = "being filled"
    OCCUPIED = "occupied"
    LEAVING = "being emptied"


class Step(Enum):
    PLUG = "plug"
    PUBLISH = "publish"
    ABANDON = "abandon"
    UNPLUG = "unplug"
    RELEASE = "release"


class SlotRow(NamedTuple):
    state: SlotState
    step: Step
    to: SlotState
    meaning: str


TABLE: Final = (
    SlotRow(SlotState.EMPTY, Step.PLUG, SlotState.FILLING, "it has a name, and its files are being opened"),
    SlotRow(SlotState.FILLING, Step.PUBLISH, SlotState.OCCUPIED, "the device is on the bus"),
    SlotRow(SlotState.FILLING, Step.ABANDON, SlotState.EMPTY, "a file, or the machine, would not have it"),
    SlotRow(SlotState.OCCUPIED, Step.UNPLUG, SlotState.LEAVING, "the device is off the bus, and mute"),
    SlotRow(SlotState.LEAVING, Step.RELEASE, SlotState.EMPTY, "nothing could reach it, and all is given back"),
)
"""What may happen to a slot. Whatever has no row is refused, and changes nothing."""

_ROWS: Final = {(row.state, row.step): row for row in TABLE}


@dataclass(frozen=True, eq=False)
class Part:
    """What one device needs of the host, open; and how to make the device."""

    make: Callable[[str, Wire], VirtioDevice]
    home: IoThread
    """The thread that serves its queues, and answers its doorbells."""
    chardev: Chardev | None = None
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """End its thread and close its files; again, nothing. It may wait, and not on the I/O thread. Raises HostError,
        naming what does not end."""
        self.closing.close()


@dataclass(eq=False)
class Plugged:
    """A device from the moment that it gets a slot until all it needed is given back."""

    slot: int
    name: str
    what: Pluggable
    part: Part | None = None
    device: VirtioDevice | None = None
    waits_for: str = ""
    """What has to happen next, once it is unplugged."""
    released: bool = False
    error: BaseException | None = None
    """Why something was not given back."""


@dataclass(eq=False)
class _Slot:
    window: Window
    state: SlotState = SlotState.EMPTY
    holds: Plugged | None = field(default=None)


class Slots:
    """The slots of one board. `publish`, `unplug` and the methods that `Board` passes on are the lifecycle thread's;
    `open`, `abandon` and `wait` are for any thread but harts' and I/O threads."""

    def __init__(
        self,
        windows: Sequence[Window],
        *,
        bus: Bus,
        ram: Ram,
        clock: Clock,
        io: IoThread,
        workers: Workers,
        locking: Locking,
        line: Callable[[int], Wire],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`line(source)` is asked when a device is made; `failed` is told of a defect on a disk's thread."""
        self._bus = bus
        self._dma = Dma(ram)
        self._clock = clock
        self._io = io
        self._workers = workers
        self._locking = locking
        self._line = line
        self._failed = failed
        self._departure = locking.kit.progress("devices that leave")
        # Guards the slots; notified when one is empty again. Nothing is called under it.
        self._changed = locking.kit.condition("slots")
        self._slots = [_Slot(window) for window in windows]
        for window in windows:
            bus.map(window.base, window.size, EmptySlot(), _empty(window))

    def __repr__(self) -> str:
        return f"<Slots {', '.join(name or 'empty' for name in self.names())}>"

    def names(self) -> tuple[str, ...]:
        """Which device is in which slot; empty for none. One that leaves is there until it is given back."""
        with self._changed:
            return tuple(slot.holds.name if slot.holds else "" for slot in self._slots)

    def devices(self, *states: SlotState) -> list[VirtioDevice]:
        """Those in slots of such states, by slot."""
        with self._changed:
            holds = [slot.holds for slot in self._slots if slot.state in states and slot.holds]
        return [plugged.device for plugged in holds if plugged.device]

    def homes(self) -> list[IoThread]:
        """The threads that devices have for themselves."""
        with self._changed:
            parts = [slot.holds.part for slot in self._slots if slot.holds]
        return [part.home for part in parts if part and part.home is not self._io]

    def tell(self, sighting: Sighting) -> None:
        """Who waits for devices to leave, and for their copies in flight. A worker is not told apart by device: any
        busy one may be it."""
        self._departure.tell(sighting)
        homes = [self._io, *self.homes()]
        for device in self.devices(*SlotState):
            flight = device.in_flight
            flight.tell(sighting)
            if flight.count:
                for ident in self._workers.busy():
                    sighting.hold(ident, flight.thing, "it may be doing them")
                for home in homes:
                    if running := home.statistics().running:
                        sighting.hold(home.ident, flight.thing, f"it may be doing them in {running}")

    def statistics(self) -> dict[str, Any]:
        with self._changed:
            holds = [slot.holds for slot in self._slots if slot.holds]
        return {
            **{p.part.home.name: p.part.home.statistics() for p in holds if p.part},
            **{p.name: p.device.statistics() for p in holds if p.device},
        }

    # -- plug ---------------------------------------------------------------------------------------------------------

    def open(self, what: Pluggable, slot: int | None = None) -> Plugged:
        """Give a device-to-be a slot, the first empty one unless told, and open what it needs. Publish or abandon it.

        Raises ConfigError, HostError or LifecycleError; then nothing is open, and the slot is as it was.
        """
        plugged = self._reserve(what, slot)
        try:
            with _as_host_error():
                plugged.part = self._opened(what, plugged.name)
        except BaseException:
            self._move(plugged.slot, Step.ABANDON)
            raise
        return plugged

    def publish(self, plugged: Plugged) -> None:
        """Make the device and put it on the bus. Raises LifecycleError if the slot is not its own any more, HostError
        if the host has no more eventfds; then it is still to be abandoned."""
        slot = self._slots[plugged.slot]
        if slot.holds is not plugged or plugged.part is None:
            raise LifecycleError(f"{plugged.name} was abandoned")
        with _as_host_error():
            plugged.device = device = plugged.part.make(plugged.name, self._line(slot.window.irq))
        try:
            self._move(plugged.slot, Step.PUBLISH)
        except LifecycleError:  # whoever asked for it has lost patience meanwhile
            device.close()
            raise
        if plugged.part.chardev is not None:
            plugged.part.chardev.connect(cast(VirtioConsole, device))
        VirtioMmio(device).attach(self._bus, slot.window.base)

    def abandon(self, plugged: Plugged) -> None:
        """Close what `open` opened, unless the device has been published."""
        with self._changed:
            slot = self._slots[plugged.slot]
            if slot.holds is not plugged or slot.state is not SlotState.FILLING:
                return
            self._step(plugged.slot, Step.ABANDON)
        if plugged.part is not None:
            plugged.part.close()

    def _reserve(self, what: Pluggable, wanted: int | None) -> Plugged:
        with self._changed:
            number = wanted
            if number is None:
                empty = [n for n, slot in enumerate(self._slots) if slot.state is SlotState.EMPTY]
                if not empty:
                    raise LifecycleError(f"all {len(self._slots)} slots are taken: unplug a device first")
                number = empty[0]
            self._check_number(number)
            held = [slot.holds for slot in self._slots if slot.holds]
            if isinstance(what, Drive):
                ids = {p.what.id for p in held if isinstance(p.what, Drive)}
                if problem := what.problem(ids):
                    raise ConfigError(problem)
            name = _free_name(what, {p.name for p in held})
            self._step(number, Step.PLUG)
            plugged = self._slots[number].holds = Plugged(number, name, what)
        return plugged

    def _opened(self, what: Pluggable, name: str) -> Part:
        make, dma, io = self._locking.make, self._dma, self._io
        match what:
            case Drive():
                return self._disk(what, name)
            case Console(spec):
                line = open_chardev(spec, io)
                part = Part(
                    lambda name, wire: make(
                        VirtioConsole, name, dma=dma, wire=wire, home=io, clock=self._clock, line=line
                    ),
                    io,
                    line,
                )
                part.closing.callback(line.close)
                return part
            case Rng():
                return Part(
                    lambda name, wire: make(VirtioRng, name, dma=dma, wire=wire, home=io, entropy=os.urandom), io
                )
            case Balloon():
                return Part(lambda name, wire: make(VirtioBalloon, name, dma=dma, wire=wire, home=io), io)
        raise ConfigError(f"{what!r} is nothing that can be plugged: give a Drive, Console, Rng or Balloon")

    def _disk(self, drive: Drive, name: str) -> Part:
        """With a thread that may wait for its disk. Under the big lock everybody would: there it is the I/O thread."""
        with contextlib.ExitStack() as stack:
            disk = open_image(drive.file, readonly=drive.readonly, snapshot=drive.snapshot)
            stack.callback(disk.close)
            home = self._io
            if self._locking.policy == "device":
                home = io_thread(f"{name}-io", on_error=self._failed, kit=self._locking.kit, may_block=True)
                home.start()
                stack.callback(home.stop, DEADLINE_S)
            closing = stack.pop_all()
        return Part(
            lambda name, wire: self._locking.make(
                VirtioBlk,
                name,
                dma=self._dma,
                wire=wire,
                home=home,
                workers=self._workers,
                disk=disk,
                serial=drive.id,
                own_thread=home is not self._io,
            ),
            home,
            closing=closing,
        )

    # -- unplug: see the module's head --------------------------------------------------------------------------------

    def unplug(self, slot: int) -> Plugged:
        """Take the device in a slot off the bus; `wait` for what it returns. Raises LifecycleError if there is none."""
        with self._changed:
            self._check_number(slot)
            self._step(slot, Step.UNPLUG)
            plugged = self._slots[slot].holds
        assert plugged is not None
        window, device = self._slots[slot].window, plugged.device
        assert device is not None
        EmptySlot().attach(self._bus, window.base, _empty(window))
        device.leave()
        plugged.waits_for = "harts and accesses to let go of the old map"
        self._bus.retire(lambda: self._io.call_soon(self._unreachable, plugged))
        return plugged

    def wait(self, plugged: Plugged, timeout: float) -> None:
        """Until all that an unplugged device needed is given back.

        Raises DeadlineError after `timeout` seconds, naming it (it is given back later, or never); and if its files or
        thread could not be given back.
        """
        # It leaves by the callbacks and calls of these two.
        with self._io.progress.waiting(), self._workers.progress.waiting(), self._departure.waiting(), self._changed:
            in_time = self._changed.wait_for(lambda: plugged.released, timeout)
        if not in_time:
            raise DeadlineError(
                f"{plugged.name} is unplugged, but still in use after {timeout:g} s: it waits for {plugged.waits_for}"
            )
        if plugged.error is not None:
            raise plugged.error

    def close(self) -> None:
        """Unplug everything, when the harts have stopped. Raises HostError, naming a device that stays in use."""
        leaving = [slot.holds for slot in self._slots if slot.state is SlotState.LEAVING and slot.holds]
        leaving += [self.unplug(at) for at, slot in enumerate(self._slots) if slot.state is SlotState.OCCUPIED]
        with contextlib.ExitStack() as stack:
            for plugged in leaving:
                stack.callback(self.wait, plugged, DEADLINE_S)

    def _unreachable(self, plugged: Plugged) -> None:
        """I/O thread: no VCPU can ring its doorbells, and no access is left in it."""
        assert plugged.device is not None
        assert plugged.part is not None
        plugged.waits_for = f"{plugged.part.home.name} to end what it does"
        plugged.device.close()
        plugged.part.home.call_soon(self._unserved, plugged)  # behind the closing of the last doorbell

    def _unserved(self, plugged: Plugged) -> None:
        """Its home: no queue of it is being served, nor will be."""
        assert plugged.device is not None
        plugged.waits_for = "requests under way to end"
        plugged.device.when_idle(lambda: self._io.call_soon(self._idle, plugged))

    def _idle(self, plugged: Plugged) -> None:
        """I/O thread: nothing of it is under way anywhere."""
        assert plugged.part is not None
        if plugged.part.chardev is not None:
            plugged.part.chardev.disconnect()
        plugged.waits_for = "its files to be closed"
        self._workers.submit(plugged.part.close, done=partial(self._closed, plugged), home=self._io)

    def _closed(self, plugged: Plugged, outcome: BaseException | None) -> None:
        """I/O thread: it is given back, or as much of it as would go."""
        with self._departure.serving(), self._changed:
            self._step(plugged.slot, Step.RELEASE)
            plugged.released, plugged.error = True, outcome
            plugged.device = plugged.part = None
            self._changed.notify_all()
        if outcome is not None and not isinstance(outcome, HostError):
            raise outcome

    # -- the table ----------------------------------------------------------------------------------------------------

    def _move(self, number: int, step: Step) -> None:
        with self._changed:
            self._step(number, step)

    def _step(self, number: int, step: Step) -> None:
        """With `_changed` held."""
        slot = self._slots[number]
        row = _ROWS.get((slot.state, step))
        if row is None:
            what = f"holds {slot.holds.name} and is {slot.state.value}" if slot.holds else f"is {slot.state.value}"
            raise LifecycleError(f"cannot {step.value} slot {number}: it {what}")
        slot.state = row.to
        if row.to is SlotState.EMPTY:
            slot.holds = None

    def _check_number(self, number: int) -> None:
        if not 0 <= number < len(self._slots):
            raise ConfigError(f"slot {number} does not exist: give 0 to {len(self._slots) - 1}")


_KINDS: Final = {Drive: "disk", Console: "console", Rng: "rng", Balloon: "balloon"}


def _free_name(what: Pluggable, taken: set[str]) -> str:
    """disk0, disk1, ...; rng, rng1, ..."""
    kind = _KINDS.get(type(what), "device")
    number = 0
    while (name := f"{kind}{number}" if number or kind == "disk" else kind) in taken:
        number += 1
    return name


def _empty(window: Window) -> str:
    return f"{window.node_name} (empty)"


@contextlib.contextmanager
def _as_host_error() -> Iterator[None]:
    """What the host refuses to a part that does not expect it, such as one file descriptor more."""
    try:
        yield
    except OSError as error:
        raise HostError(f"the host would not have one more device: {error.strerror or error}") from error


def page() -> str:
    """The section on slots of `docs/lifecycle.md`."""
    rows = [f"| {row.state.value} | {row.step.value} | {row.to.value} | {row.meaning} |" for row in TABLE]
    return "\n".join(
        [
            "## Slots",
            "",
            "`Machine.plug` and `Machine.unplug` move a virtio slot of the board through these states; from the table",
            "in `vmm/machine/slots.py`. Whatever has no row is refused. The machine goes on meanwhile.",
            "",
            "| state | step | then | what has happened |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
