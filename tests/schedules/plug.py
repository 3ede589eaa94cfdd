"""Programs for the scheduler: devices that come and go under VCPUs that use them."""

from __future__ import annotations

import os

from vmm.fabric.bus import Bus
from vmm.fabric.ram import Ram
from vmm.machine.config import Rng
from vmm.machine.lifecycle import LifecycleError
from vmm.machine.slots import Plugged, Slots, SlotState
from vmm.machine.virt import RAM_BASE, VIRTIO
from vmm.testing.schedule import Scheduler
from vmm.testing.schedule.surroundings import ScheduledClock, ScheduledHome, ScheduledWire, ScheduledWorkers

SLOT = VIRTIO[0]
DEVICE_ID, RNG = 8, 4
DEADLINE_S = 10.0


class Slotted:
    """Two slots of the board, and what they need, on threads of the schedule."""

    def __init__(self, s: Scheduler) -> None:
        self.s = s
        self.bus = Bus()
        self.ram = Ram(RAM_BASE, 1 << 20, minimum=0)
        s.cleanup(self.ram.close)
        self.io, workers = ScheduledHome(s), ScheduledWorkers(s, 1)
        self.io.progress = s.progress("callbacks")  # type: ignore[attr-defined]
        workers.progress = s.progress("calls")  # type: ignore[attr-defined]
        self.slots = Slots(
            VIRTIO[:2],
            bus=self.bus,
            ram=self.ram,
            clock=ScheduledClock(s, self.io),
            io=self.io,  # type: ignore[arg-type]
            workers=workers,  # type: ignore[arg-type]
            locking=s.locking(),
            line=lambda source: ScheduledWire(s, f"wire {source}"),
            failed=_fail,
        )
        s.cleanup(self._close)

    def plugged(self) -> Plugged:
        plugged = self.slots.open(Rng(), 0)
        self.slots.publish(plugged)
        return plugged

    def vcpu(self, accesses: int, *, rest: bool = False) -> None:
        """As a VCPU's thread does: it rings the doorbells of the map that it has, and finds windows in it; between two
        accesses it takes up the map as it is. In the end it rests at the gate, or leaves."""
        bus, point = self.bus, self.s.point
        reader = bus.reader("vcpu", lambda: None)
        snapshot = reader.refresh()
        for _ in range(accesses):
            for bell in snapshot.doorbells:
                point("a doorbell in guest code")
                os.eventfd_write(bell.fd, 1)
            if bus.snapshot is not snapshot:
                snapshot = reader.refresh()
            window = snapshot.find(SLOT.base)
            assert window is not None
            point("an access on its way in")
            assert window.read(DEVICE_ID, 4) in (0, RNG)
            window.write(0x50, 4, 0)
        (reader.rest if rest else reader.leave)()

    def _close(self) -> None:
        for device in self.slots.devices(*SlotState):
            for doorbell in device.doorbells:
                doorbell.close()


def _fail(error: BaseException) -> None:
    raise error


def unplugged_under_two_vcpus(s: Scheduler) -> None:
    """Nobody rings a doorbell that is closed, and in the end all is given back."""
    on = Slotted(s)
    on.plugged()

    def unplug() -> None:
        on.slots.wait(on.slots.unplug(0), DEADLINE_S)

    s.spawn("vcpu0", on.vcpu, 3)
    s.spawn("vcpu1", lambda: on.vcpu(2, rest=True))
    s.spawn("lifecycle", unplug)
    s.check(lambda: on.slots.names() == ("", ""))


def plugged_under_a_vcpu(s: Scheduler) -> None:
    """It finds the empty slot or the device, and never something between."""
    on = Slotted(s)
    s.spawn("vcpu0", on.vcpu, 3)
    s.spawn("lifecycle", on.plugged)
    s.check(lambda: on.bus.read(SLOT.base + DEVICE_ID, 4) == RNG)


def exchanged_under_a_vcpu(s: Scheduler) -> None:
    """One goes, and as soon as it is given back another comes."""
    on = Slotted(s)
    on.plugged()

    def exchange() -> None:
        on.slots.wait(on.slots.unplug(0), DEADLINE_S)
        on.plugged()

    s.spawn("vcpu0", on.vcpu, 4)
    s.spawn("lifecycle", exchange)
    s.check(lambda: on.slots.names() == ("rng", ""))


def given_up_while_it_is_plugged(s: Scheduler) -> None:
    """Whoever asked loses patience: then there is a device, or nothing at all."""
    on = Slotted(s)
    plugged = on.slots.open(Rng(), 0)

    def publish() -> None:
        try:
            on.slots.publish(plugged)
        except LifecycleError:
            s.result = "refused"

    s.spawn("lifecycle", publish)
    s.spawn("api", on.slots.abandon, plugged)
    s.spawn("vcpu0", on.vcpu, 2)

    def end() -> None:
        there = on.bus.read(SLOT.base + DEVICE_ID, 4) == RNG
        assert on.slots.names() == ("rng" if there else "", "")
        assert bool(on.bus.snapshot.doorbells) == there

    s.check(end)


ALL = (unplugged_under_two_vcpus, plugged_under_a_vcpu, exchanged_under_a_vcpu, given_up_while_it_is_plugged)
