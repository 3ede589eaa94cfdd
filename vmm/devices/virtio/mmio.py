"""The virtio-mmio transport, version 2 (virtio 1.2, 4.2.2).

It decodes and nothing else: all state, and the lock, are the device's. Reads answer what the device's doors say; queue
notifications that did not already ring a doorbell in native code ring it here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, ClassVar, Final

from vmm.devices.registers import Register
from vmm.devices.virtio.device import VirtioDevice
from vmm.fabric.bus import Bus

WINDOW: Final = 0x1000
"""Bytes of a slot, as in the device tree."""

MAGIC: Final = int.from_bytes(b"virt", "little")
VERSION: Final = 2
VENDOR: Final = int.from_bytes(b"vmm ", "little")
QUEUE_NOTIFY: Final = 0x050
CONFIG: Final = 0x100


def magic(device: VirtioDevice) -> int:
    return MAGIC


def version(device: VirtioDevice) -> int:
    return VERSION


def device_id(device: VirtioDevice) -> int:
    return device.device_id


def vendor(device: VirtioDevice) -> int:
    return VENDOR


def no_shared_memory(device: VirtioDevice) -> int:
    """4.2.2.1: what a region that does not exist has for its length and base."""
    return 0xFFFFFFFF


def ignore(device: VirtioDevice, value: int) -> None:
    """Any shared memory region may be selected; none exists."""


# fmt: off
REGISTERS: Final = (
    Register(0x000, 4, "ro", "MagicValue", '"virt"', magic),
    Register(0x004, 4, "ro", "Version", "2: not the legacy interface", version),
    Register(0x008, 4, "ro", "DeviceID", "virtio device type; 0 when the slot is empty", device_id),
    Register(0x00C, 4, "ro", "VendorID", '"vmm "', vendor),
    Register(0x010, 4, "ro", "DeviceFeatures", "the selected 32 features on offer", VirtioDevice.device_features),
    Register(0x014, 4, "wo", "DeviceFeaturesSel", "which 32", write=VirtioDevice.select_device_features),
    Register(0x020, 4, "wo", "DriverFeatures", "the selected 32 accepted", write=VirtioDevice.set_driver_features),
    Register(0x024, 4, "wo", "DriverFeaturesSel", "which 32", write=VirtioDevice.select_driver_features),
    Register(0x030, 4, "wo", "QueueSel", "which queue the next registers speak of", write=VirtioDevice.select_queue),
    Register(0x034, 4, "ro", "QueueNumMax", "its largest size; 0: no such queue", VirtioDevice.queue_size_max),
    Register(0x038, 4, "wo", "QueueNum", "its size in use", write=VirtioDevice.set_queue_size),
    Register(0x044, 4, "rw", "QueueReady", "1: in use", VirtioDevice.queue_ready, VirtioDevice.set_queue_ready),
    Register(0x050, 4, "wo", "QueueNotify", "index of a queue with new buffers", write=VirtioDevice.notify),
    Register(0x060, 4, "ro", "InterruptStatus", "bit 0 used buffer, 1 configuration", VirtioDevice.interrupt_status),
    Register(0x064, 4, "wo", "InterruptACK", "causes handled", write=VirtioDevice.acknowledge_interrupt),
    Register(0x070, 4, "rw", "Status", "device status; writing 0 resets", VirtioDevice.status, VirtioDevice.set_status),
    Register(0x080, 4, "wo", "QueueDescLow", "descriptor table, bits 31:0", write=VirtioDevice.set_descriptors_low),
    Register(0x084, 4, "wo", "QueueDescHigh", "descriptor table, bits 63:32", write=VirtioDevice.set_descriptors_high),
    Register(0x090, 4, "wo", "QueueDriverLow", "available ring, bits 31:0", write=VirtioDevice.set_driver_low),
    Register(0x094, 4, "wo", "QueueDriverHigh", "available ring, bits 63:32", write=VirtioDevice.set_driver_high),
    Register(0x0A0, 4, "wo", "QueueDeviceLow", "used ring, bits 31:0", write=VirtioDevice.set_device_low),
    Register(0x0A4, 4, "wo", "QueueDeviceHigh", "used ring, bits 63:32", write=VirtioDevice.set_device_high),
    Register(0x0AC, 4, "wo", "SHMSel", "which shared memory region", write=ignore),
    Register(0x0B0, 4, "ro", "SHMLenLow", "all ones: no such region", no_shared_memory),
    Register(0x0B4, 4, "ro", "SHMLenHigh", "all ones: no such region", no_shared_memory),
    Register(0x0B8, 4, "ro", "SHMBaseLow", "all ones: no such region", no_shared_memory),
    Register(0x0BC, 4, "ro", "SHMBaseHigh", "all ones: no such region", no_shared_memory),
    Register(0x0FC, 4, "ro", "ConfigGeneration", "changes with the configuration", VirtioDevice.config_generation),
)
# fmt: on


class VirtioMmio:
    """One slot with a device in it.

    Below 0x100 only aligned 32-bit accesses to registers are answered (4.2.2.2); any other reads 0, is ignored, and is
    counted by the device. From 0x100 on lies the device's configuration, accessible in any width.
    """

    registers: ClassVar = REGISTERS
    span: ClassVar[int] = CONFIG
    sizes: ClassVar = frozenset({4})

    def __init__(self, device: VirtioDevice) -> None:
        self.device: Final = device
        self._reads: dict[int, Callable[[], int]] = {
            row.offset: _bound(row.read, device) for row in REGISTERS if row.read
        }
        self._writes: dict[int, Callable[[int], None]] = {
            row.offset: _bound(row.write, device) for row in REGISTERS if row.write
        }

    @property
    def refused(self) -> int:
        return self.device.statistics().refused

    def __repr__(self) -> str:
        return f"<VirtioMmio of {self.device!r}>"

    def attach(self, bus: Bus, base: int) -> None:
        """Take the place of the `EmptySlot` at `base`, and have each queue's notification ring its doorbell without an
        exit."""
        bells = [(QUEUE_NOTIFY, 4, index, doorbell.fd) for index, doorbell in enumerate(self.device.doorbells)]
        bus.replace(base, self, self.device.name, bells)

    def read(self, offset: int, size: int) -> int:
        if offset >= CONFIG:
            return self.device.read_config(offset - CONFIG, size)
        answer = self._reads.get(offset)
        if answer is None or size != 4:
            self.device.refuse()
            return 0
        return answer()

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= CONFIG:
            self.device.write_config(offset - CONFIG, size, value)
            return
        take = self._writes.get(offset)
        if take is None or size != 4:
            self.device.refuse()
            return
        take(value)


class EmptySlot:
    """A slot without a device: DeviceID 0 tells a driver to look no further (4.2.2.1)."""

    def attach(self, bus: Bus, base: int, name: str) -> None:
        """Take the place of the device at `base`, whose doorbells go with it."""
        bus.replace(base, self, name)

    def read(self, offset: int, size: int) -> int:
        return {0x000: MAGIC, 0x004: VERSION, 0x00C: VENDOR}.get(offset, 0) if size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Nobody is there to take it."""


def _bound(method: Callable[..., Any], device: VirtioDevice) -> Callable[..., Any]:
    """A door, in the variant that this device is made of; or a constant of the transport."""
    if method.__module__ == __name__:
        return MethodType(method, device)
    return getattr(device, method.__name__)  # type: ignore[no-any-return]
