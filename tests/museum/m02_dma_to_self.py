"""QEMU's issue 556 and CVE-2021-3750: a guest names the device's own registers as the target of its DMA, and the
device, in the middle of a request, is entered again. Planted: a random number generator whose copies go through the
bus, with its reentrant lock held, so that nothing stops the recursion.
"""

from __future__ import annotations

from typing import Any

from tests.museum.exhibit import Exhibit, first_report
from vmm.devices.virtio.mmio import WINDOW, EmptySlot, VirtioMmio
from vmm.devices.virtio.rng import VirtioRng
from vmm.errors import LockOrderError
from vmm.fabric.bus import Bus
from vmm.fabric.dma import Dma
from vmm.fabric.ram import Ram
from vmm.lockreport import Kind
from vmm.locks import Locking, entry
from vmm.testing.virtio_driver import REGISTERS, VirtioBench

SLOT = 0x1000_1000


class BusDma(Dma):
    """Guest memory as the bus shows it, devices included."""

    __slots__ = ("_bus",)

    def __init__(self, ram: Ram, bus: Bus) -> None:
        super().__init__(ram)
        self._bus = bus

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        if gpa < self.ram.base:
            self._bus.write(gpa, len(data), int.from_bytes(data, "little"))
        else:
            super().write(gpa, data)


class DmaToSelf(VirtioRng):
    """An entropy source that copies under its lock, to wherever the bus leads"""

    def __init__(self, name: str, locking: Locking, *, dma: Dma, **wiring: Any) -> None:
        bus = Bus()
        super().__init__(name, locking, dma=BusDma(dma.ram, bus), **wiring)
        bus.map(SLOT, WINDOW, EmptySlot(), "slot")
        VirtioMmio(self).attach(bus, SLOT)

    @entry
    def serve_some(self, index: int, most: int = 1 << 15) -> bool:
        """Work on chains with the lock held."""
        return super().serve_some(index, most)


def check(rng: type[VirtioRng]) -> str | None:
    bench = VirtioBench()
    try:
        with bench:
            (queue,) = bench.make(rng, entropy=bytes).start()
            queue.add_segments([], [(SLOT + REGISTERS["QueueSel"], 4)])
            queue.kick()
            bench.run()
    except LockOrderError:
        pass
    return first_report(Kind.RE_ENTRY, bench.locking)


EXHIBIT = Exhibit(
    "M2",
    "a device's DMA into its own registers entered it again (QEMU, AHCI, SCSI, SDHCI, xHCI, NVMe, e1000e, lsi53c895a)",
    "re-entry guard",
    DmaToSelf,
    VirtioRng,
    check,
)
