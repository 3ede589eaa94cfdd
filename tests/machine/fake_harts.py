"""Harts that run no code: a test does what their guest would."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vmm.errors import HostError
from vmm.fabric.irq import Unconnected, Wire
from vmm.machine.boot import Entry
from vmm.machine.harts import Surroundings
from vmm.vcpu.software import JitStatistics
from vmm.waitfor import Sighting


class FakeHarts:
    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.log: list[str] = []
        self.entries: list[Entry] = []
        self.lines: dict[int, Unconnected] = {}
        self.stuck = False

    def line(self, source: int) -> Wire:
        return self.lines.setdefault(source, Unconnected())

    def reset(self, entry: Entry) -> None:
        self.log.append("reset")
        self.entries.append(entry)

    def start(self) -> None:
        self.log.append("start")

    def pause(self, timeout: float) -> None:
        self.log.append("pause")

    def resume(self) -> None:
        self.log.append("resume")

    def stop(self, timeout: float) -> None:
        self.log.append("stop")
        if self.stuck:
            raise HostError("vcpu0: did not end")

    def tell(self, sighting: Sighting) -> None:
        """Nothing hangs."""

    def standing(self) -> list[str]:
        return ["hart 0: does what a test wants"]

    def interrupts(self) -> list[str]:
        return [f"source {source} high" for source, wire in self.lines.items() if wire.level]

    def jit_statistics(self) -> JitStatistics:
        return JitStatistics(0, 0, 0, 0, 0.0, "off")

    def statistics(self) -> dict[str, object]:
        return {}

    def start_hart(self, hart: int, pc: int, opaque: int) -> None:
        self.log.append(f"start {hart}")

    # -- what a test does as the guest --------------------------------------------------------------------------------

    def store(self, address: int, value: int, size: int = 4) -> None:
        """As a hart's own thread would."""
        self._on_a_hart(lambda: self.around.bus.write(address, size, value))

    def load(self, address: int, size: int = 4) -> int:
        return self._on_a_hart(lambda: self.around.bus.read(address, size))

    def _on_a_hart(self, access: Callable[[], object]) -> int:
        result: list[object] = []
        thread = threading.Thread(target=lambda: result.append(access()), name="vcpu0")
        thread.start()
        thread.join()
        return result[0]  # type: ignore[return-value]
