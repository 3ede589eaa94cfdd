"""QEMU's issues 2111, 1182 and 650: a device that waited for its requests ran the event loop itself, and so somebody
else's completion, on a VCPU's thread and in the middle of an access. Planted: a disk whose reset does that.
"""

from __future__ import annotations

import threading
from typing import Any

from tests.museum.exhibit import Exhibit, first_report
from vmm.devices.virtio.rng import VirtioRng
from vmm.fabric.dma import Dma
from vmm.fabric.iothread import IoThread
from vmm.fabric.ram import Ram
from vmm.lockreport import Kind
from vmm.locks import Locking, lockfree
from vmm.testing.fakes import FakeWire
from vmm.testing.virtio_driver import BASE


class NestedLoop(VirtioRng):
    """A device whose reset runs the event loop until nothing is left to do"""

    @lockfree("the mistake: a loop in a loop")
    def reset(self) -> None:
        home: Any = self._home
        while home._soon:
            home._turn(home._look())
        super().reset()


def check(device: type[VirtioRng]) -> str | None:
    """Home-thread assertion: the completion is another device's, and says that its home is the I/O thread."""
    busy, release = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        release.wait()

    locking = Locking(checked=True)
    with Ram(BASE, 1 << 20, minimum=0) as ram:
        io = IoThread("io", kit=locking.kit, on_error=lambda error: None)
        wiring: dict[str, Any] = {"dma": Dma(ram), "home": io, "entropy": bytes}
        nic = locking.make(device, "nic", wire=FakeWire(), **wiring)
        other = locking.make(VirtioRng, "rng", wire=FakeWire(), **wiring)
        io.start()
        io.call_soon(occupy)
        busy.wait()
        io.call_soon(other.serve, 0)
        nic.reset()  # by a VCPU
        release.set()
        nic.close()
        other.close()
        io.stop()
    return first_report(Kind.HOME, locking)


EXHIBIT = Exhibit(
    "M9",
    "a nested event loop ran another device's completion on a VCPU's thread (QEMU 2111, 1182, 650)",
    "home-thread assertion",
    NestedLoop,
    VirtioRng,
    check,
)
