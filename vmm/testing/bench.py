"""A bench for one device: it is driven through the bus by its registers, as a guest would, and by its wires."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from vmm.bql import Policy
from vmm.errors import LockOrderError
from vmm.fabric.bus import Bus, Target
from vmm.fabric.dma import Dma
from vmm.fabric.ram import Ram
from vmm.lockreport import joined
from vmm.locks import Device, Locking
from vmm.testing.fakes import FakeClock, FakeIoThread, FakeWire

D = TypeVar("D", bound=Device)

WINDOW = 0x1000_0000
RAM_BASE = 0x8000_0000


class DeviceBench(Generic[D]):
    """One device of class `make` at `WINDOW`, in its checked variant, wired to fakes.

    `wiring(bench)` gives the constructor's keyword arguments; the bench offers `wire`, `clock`, `io`, `ram` and `dma`.
    As a context manager it fails at the end if any lock rule was broken, on whichever thread.
    """

    def __init__(
        self,
        make: Callable[..., D],
        wiring: Callable[[DeviceBench[D]], dict[str, Any]],
        *,
        policy: Policy = "device",
        checked: bool = True,
        size: int = 0x1000,
        start_ns: int = 0,
        locking: Locking | None = None,
    ) -> None:
        """With `locking` the device is made of that, such as a schedule's."""
        self.locking = locking or Locking(policy, checked)
        self.io = FakeIoThread(around=self.locking.outside_guest)
        self.clock = FakeClock(self.io, start_ns)
        self.wire = FakeWire()
        self.ram = Ram(RAM_BASE, 1 << 20, minimum=1 << 20)
        self.dma = Dma(self.ram)
        self.bus = Bus()
        self.device: D = self.locking.make(make, "device", **wiring(self))
        target: Target = self.device  # type: ignore[assignment]  # what is on a bench has registers
        self.bus.map(WINDOW, size, target, "device")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.ram.close()
        if self.locking.checker and self.locking.checker.reports and e is None:
            raise LockOrderError(joined(self.locking.checker.reports))

    def read(self, offset: int, size: int = 4) -> int:
        return self.bus.read(WINDOW + offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(WINDOW + offset, size, value)

    def advance(self, ns: int) -> None:
        """Let guest time pass, and what is due or posted happen."""
        self.clock.advance(ns)
