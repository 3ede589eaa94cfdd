"""Every device class of the package on a bench of its own, to be driven through the bus and by its peer.

The classes are found by walking the package: one that has no rig fails a test.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import vmm.devices
from vmm.bql import Policy
from vmm.devices.finisher import Finisher
from vmm.devices.registers import Register, RegisterDevice
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.devices.uart16550 import Uart16550
from vmm.devices.virtio.balloon import VirtioBalloon
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.console import VirtioConsole
from vmm.devices.virtio.device import VirtioDevice
from vmm.devices.virtio.mmio import REGISTERS, WINDOW, EmptySlot
from vmm.devices.virtio.rng import VirtioRng
from vmm.errors import HostError
from vmm.fabric.bus import Bus
from vmm.locks import Device, Locking
from vmm.testing.bench import DeviceBench
from vmm.testing.fakes import FakeIoThread, FakeLine
from vmm.testing.virtio_driver import BASE, Driver, VirtioBench

SLOT: Final = 0x1000_1000
"""Where the device answers; DMA is pointed there too."""
RAM: Final = 1 << 20


def device_classes() -> set[type[Device]]:
    """Every class of the package that can be made: those with a name for their saved state."""
    for module in pkgutil.walk_packages(vmm.devices.__path__, "vmm.devices."):
        importlib.import_module(module.name)
    found: set[type[Device]] = set()
    todo: list[type[Device]] = [RegisterDevice, VirtioDevice]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if "kind" in vars(cls) and cls.__module__.startswith("vmm.devices.") and not inspect.isabstract(cls):
            found.add(cls)
    return found


class MemoryDisk:
    """A disk in memory, of which every second request would have to wait."""

    name = "memory"
    readonly = False
    cached = True
    block_size = physical_block_size = 512

    def __init__(self) -> None:
        self.size = 64 << 10
        self._data = bytearray(self.size)
        self._turn = 0

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        for buffer in buffers:
            buffer[:] = self._data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, buffers: Sequence[memoryview], offset: int, *, durable: bool = False) -> None:
        for buffer in buffers:
            self._data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def read_now(self, buffers: Sequence[memoryview], offset: int) -> bool:
        self._turn += 1
        if self._turn % 7 == 0:
            raise HostError("the disk is out of order")
        if self._turn % 2:
            self.read(buffers, offset)
        return bool(self._turn % 2)

    def write_now(self, buffers: Sequence[memoryview], offset: int) -> bool:
        self._turn += 1
        if self._turn % 2:
            self.write(buffers, offset)
        return bool(self._turn % 2)

    def flush(self) -> None:
        """Memory keeps nothing over a power failure anyway."""

    def discard(self, offset: int, length: int) -> None:
        """It may do nothing."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        """Nothing to close."""


class Rig:
    """One device on its bench. Nothing happens by itself: `turn` is what its threads would do."""

    cls: type[Device]
    queues = 0

    def __init__(self, locking: Locking) -> None:
        self.bus = Bus()
        self.locking = locking
        self.device: Any = None

    def turn(self, ns: int) -> None:
        """Let guest time pass, and happen what is due, posted or rung."""
        raise NotImplementedError

    def work(self) -> None:
        """What a worker does."""

    def rest(self) -> None:
        """Let all that is under way come to its end."""

    def peer(self, number: int) -> None:
        """The host's side does something."""

    def store(self, address: int, data: bytes) -> None:
        """The guest writes to its memory."""

    def broken(self) -> list[str]:
        """Which invariants do not hold now."""
        with self.device._lock:
            return [why for why in (self.device._state.broken(),) if why]

    def state(self) -> tuple[object, ...]:
        """A rough picture of the state, to tell situations apart."""
        with self.device._lock:
            return _picture(self.device._state)

    def registers(self) -> tuple[Register, ...]:
        return self.device.registers  # type: ignore[no-any-return]

    def still_good(self) -> None:
        """After all that, with nothing under way: a reset leads to the reset values, whatever went before."""
        self.device.reset()
        fresh = self._fresh()
        assert self.device.save() == fresh.save(), "a reset does not lead to the reset values"
        assert not self.level(), "a reset leaves the interrupt line high"

    def _fresh(self) -> Any:
        raise NotImplementedError

    def level(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def _picture(state: Any) -> tuple[object, ...]:
    values = ((name, _unseen(state, name)) for name in state.__dataclass_fields__)
    return tuple(value if name in ("status", "ready", "interrupt") else bool(value) for name, value in values)


def _unseen(state: Any, name: str) -> Any:
    """A field, past the race checker: what a test looks at is no access of the device's, and no point to switch at."""
    members = (vars(cls).get(name) for cls in type(state).__mro__)
    return next(member for member in members if inspect.ismemberdescriptor(member)).__get__(state)


class PlainRig(Rig):
    """A device with registers of its own."""

    def __init__(self, locking: Locking) -> None:
        super().__init__(locking)
        self.bench: DeviceBench[Any] = DeviceBench(self.cls, self.wiring, locking=locking)
        self.device = self.bench.device
        self.bus.map(SLOT, WINDOW, self.device, "device")

    def wiring(self, bench: DeviceBench[Any]) -> dict[str, Any]:
        raise NotImplementedError

    def turn(self, ns: int) -> None:
        self.bench.advance(ns)

    def level(self) -> bool:
        return self.bench.wire.level

    def _fresh(self) -> Any:
        return self.locking.make(self.cls, "fresh", **self.wiring(self.bench))

    def close(self) -> None:
        self.bench.ram.close()


class FinisherRig(PlainRig):
    cls = Finisher

    def wiring(self, bench: DeviceBench[Any]) -> dict[str, Any]:
        return {"power_off": lambda code: None, "restart": lambda: None}


class RtcRig(PlainRig):
    cls = GoldfishRtc

    def wiring(self, bench: DeviceBench[Any]) -> dict[str, Any]:
        return {"wire": bench.wire, "clock": bench.clock}


class UartRig(PlainRig):
    cls = Uart16550

    def wiring(self, bench: DeviceBench[Any]) -> dict[str, Any]:
        self.line = FakeLine()
        return {"wire": bench.wire, "clock": bench.clock, "line": self.line, "input_hz": 3_686_400}

    def __init__(self, locking: Locking) -> None:
        super().__init__(locking)
        self.line.connect(self.device)

    def peer(self, number: int) -> None:
        _line_peer(self.line, self.bench.io, number)


def _line_peer(line: FakeLine, home: FakeIoThread, number: int) -> None:
    """On the home thread, as the real one."""
    match number % 4:
        case 0:
            line.congested = True
        case 1:
            home.call_soon(line.relieve)
        case _:
            home.call_soon(line.type, bytes(range(number % 40)))


class Bench(VirtioBench):
    """Of locks that are given."""

    def __init__(self, locking: Locking) -> None:
        self._given = locking
        super().__init__(size=RAM)

    def _wire_up(self, policy: Policy, checked: bool) -> None:
        super()._wire_up(policy, checked)
        self.locking = self._given


class VirtioRig(Rig):
    """A device behind virtio-mmio, in a slot on the bus, with rings at places that streams know."""

    def __init__(self, locking: Locking) -> None:
        super().__init__(locking)
        self.bench = Bench(locking)
        self.driver = self.made()
        self.device = self.driver.device
        self.queues = len(self.device.queue_sizes)
        self.bus.map(SLOT, WINDOW, EmptySlot(), "slot")
        self.driver.slot.attach(self.bus, SLOT)

    def wiring(self) -> dict[str, Any]:
        return {}

    def made(self) -> Driver:
        return self.bench.make(self.cls, **self.wiring())  # type: ignore[arg-type]

    def turn(self, ns: int) -> None:
        self.bench.clock.advance(ns)

    def work(self) -> None:
        if self.bench.workers.waiting:
            self.bench.workers.run()

    def rest(self) -> None:
        self.bench.run()

    def store(self, address: int, data: bytes) -> None:
        self.bench.dma.write(address, data)

    def registers(self) -> tuple[Register, ...]:
        return REGISTERS

    def broken(self) -> list[str]:
        with self.device._lock:
            states = (self.device._state, *(queue.state for queue in self.device._queues))
            return [why for why in (state.broken() for state in states) if why]

    def state(self) -> tuple[object, ...]:
        with self.device._lock:
            states = [queue.state for queue in self.device._queues]
            queues = tuple((_unseen(s, "ready"), _unseen(s, "next_avail") != _unseen(s, "next_used")) for s in states)
            return (*_picture(self.device._state), queues, self.device._in_flight.count > 0)

    def level(self) -> bool:
        return self.bench.wire.level

    def still_good(self) -> None:
        """And a driver that does as it should is served."""
        super().still_good()
        self.bench._free = BASE + 0x4_0000
        before = self.device.statistics().guest_errors
        queues = self.driver.start()
        assert self.driver.read("Status") == 15
        self.good(queues)
        assert self.device.statistics().guest_errors == before

    def good(self, queues: list[Any]) -> None:
        raise NotImplementedError

    def _fresh(self) -> Any:
        return self.bench.make(self.cls, **self.wiring()).device  # type: ignore[arg-type]

    def close(self) -> None:
        for device in self.bench._devices:
            device.close()
        self.bench.home.run()
        self.bench.ram.close()


class BlkRig(VirtioRig):
    cls = VirtioBlk

    def wiring(self) -> dict[str, Any]:
        return {"disk": MemoryDisk(), "workers": self.bench.workers, "serial": "fuzz"}

    def good(self, queues: list[Any]) -> None:
        answer = queues[0].call([struct.pack("<IIQ", 8, 0, 0)], [20, 1]).answer()
        assert (answer[:4], answer[-1]) == (b"fuzz", 0)


class ConsoleRig(VirtioRig):
    cls = VirtioConsole

    def wiring(self) -> dict[str, Any]:
        self.line = FakeLine()
        return {"clock": self.bench.clock, "line": self.line}

    def made(self) -> Driver:
        driver = super().made()
        self.line.connect(driver.device)
        return driver

    def peer(self, number: int) -> None:
        _line_peer(self.line, self.bench.home, number)

    def still_good(self) -> None:
        line = self.driver.device._line
        line.relieve()
        super().still_good()

    def good(self, queues: list[Any]) -> None:
        line = self.driver.device._line
        line.sent.clear()
        queues[1].call([b"still here"])
        assert line.sent == b"still here"


class RngRig(VirtioRig):
    cls = VirtioRng

    def wiring(self) -> dict[str, Any]:
        return {"entropy": lambda length: b"\x5a" * length}

    def good(self, queues: list[Any]) -> None:
        assert queues[0].call([], [8]).answer() == b"\x5a" * 8


class BalloonRig(VirtioRig):
    cls = VirtioBalloon

    def peer(self, number: int) -> None:
        if number % 3:
            self.device.set_target(4096 * (number % 64))
        else:
            self.device.ask_statistics()

    def good(self, queues: list[Any]) -> None:
        queues[1].call([struct.pack("<I", BASE >> 12)])

    def still_good(self) -> None:
        self.device.set_target(0)  # a wish of the host's, which a reset leaves alone
        super().still_good()


RIGS: Final[dict[str, Callable[[Locking], Rig]]] = {
    "finisher": FinisherRig,
    "rtc": RtcRig,
    "uart": UartRig,
    "blk": BlkRig,
    "console": ConsoleRig,
    "rng": RngRig,
    "balloon": BalloonRig,
}


def rig_classes() -> Iterator[type[Device]]:
    for rig in RIGS.values():
        yield rig.cls  # type: ignore[attr-defined]
