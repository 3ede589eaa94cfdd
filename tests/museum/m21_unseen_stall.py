"""Propolis's issue 1008 and cloud-hypervisor's 8899: pre-copy kept VCPUs out of the guest for 103 to 367 ms, and no
metric said so. Planted: a pass over memory that holds the lock of a device from its first page to its last. The VCPU's
thread and its histogram of stalls are this monitor's own; there is no migration here yet, so the pass is a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from tests.museum.announcing import Announcing
from tests.museum.exhibit import CheckerOff, Exhibit
from vmm import lockstat
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.fabric.bus import Bus
from vmm.locks import Locking
from vmm.lockstat import Meter
from vmm.testing.fakes import FakeClock, FakeWire
from vmm.vcpu import metered
from vmm.vcpu.layout import Exit
from vmm.vcpu.thread import Gate

BASE = 0x10_1000
PAGES, PAGE_NS = 103, 1_000_000
BOUND_NS = 10_000_000
"""A guest notices more than this."""


class Pass:
    """A pass over memory that takes the device's lock for its state alone"""

    def __init__(self, device: GoldfishRtc, copy: Callable[[], None]) -> None:
        self._device = device
        self._copy = copy

    def run(self) -> None:
        self._device.save()
        for _ in range(PAGES):
            self._copy()


class LockedPass(Pass):
    """A pass over memory with the device's lock held"""

    def run(self) -> None:
        with self._device._lock:
            super().run()


class ScriptedVcpu:
    """A VCPU that reads a register of the device, and is kicked."""

    index = 0

    def __init__(self) -> None:
        self.mmio_addr, self.mmio_size, self.mmio_state, self.mmio_value = [BASE], [4], [0], [0]
        self.words = {"idle_ns": 0}
        self._exits = iter((Exit.MMIO_READ, Exit.KICK))

    def run(self) -> int:
        return next(self._exits)

    def kick(self) -> None:
        """It is kicked already."""


def check(kind: type[Pass]) -> str | None:
    """Guest-stall histogram: the longest time that the VCPU was outside the guest during the pass."""
    now = 1
    waits_or_done = threading.Event()
    meter = Meter(Announcing(waits_or_done.set))
    device = Locking(kit=meter).make(GoldfishRtc, "rtc", wire=FakeWire(), clock=FakeClock())
    bus = Bus()
    bus.map(BASE, 0x1000, device, "rtc")
    vcpu: Any = ScriptedVcpu()
    thread = metered.MeteredVcpuThread(
        vcpu,
        None,
        bus,
        Gate(),
        sbi=lambda vcpu: None,
        outside_guest=None,
        on_death=lambda vcpu, report: None,
        meter=meter,
    )
    thread.parked = True  # so that it leaves for the gate when it is kicked
    thread._snapshot = bus.snapshot

    def guest() -> None:
        thread._run()
        waits_or_done.set()

    runner = threading.Thread(target=guest, name="vcpu0")

    def copy() -> None:
        nonlocal now
        if runner.ident is None:
            runner.start()
            waits_or_done.wait()
        now += PAGE_NS

    with patch.object(lockstat, "now", lambda: now), patch.object(metered, "now", lambda: now):
        kind(device, copy).run()
        runner.join()
    stalls = meter.report()["outside_guest"]["vcpu0"]
    if not stalls["count"]:
        raise CheckerOff("nothing measured the VCPU's time outside the guest")
    longest = stalls["max_ns"]
    cause = max(stalls["causes"], key=lambda name: stalls["causes"][name]["total_ns"], default="")
    return f"vcpu0 was outside the guest for {longest / 1e6:g} ms: {cause}" if longest > BOUND_NS else None


EXHIBIT = Exhibit(
    "M21",
    "pre-copy kept VCPUs out of the guest for 103 to 367 ms, and no metric said so (Propolis, cloud-hypervisor)",
    "guest-stall histogram",
    LockedPass,
    Pass,
    check,
)
