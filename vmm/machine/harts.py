"""What board and lifecycle need of whatever runs guest code. `vmm.machine.software` fits the software VCPUs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from vmm.fabric.bus import Bus
from vmm.fabric.clock import Clock
from vmm.fabric.irq import Wire
from vmm.fabric.ram import Ram
from vmm.locks import Locking
from vmm.machine.boot import Entry
from vmm.machine.lifecycle import Outcome
from vmm.machine.sbi import Answer, HartControl
from vmm.vcpu.software import JitStatistics
from vmm.waitfor import Sighting


@dataclass(frozen=True)
class Surroundings:
    """What the harts of one machine are connected to."""

    count: int
    ram: Ram
    bus: Bus
    clock: Clock
    locking: Locking
    firmware: bool
    """Harts start in M-mode and take their own ecalls; otherwise `call` answers those of S-mode."""

    svadu: bool
    jit: bool
    """Warm code is translated to machine code."""

    call: Callable[[int, Sequence[int]], Answer]
    """Answers an ecall from S-mode that the backend does not answer itself: hart, a0 to a7."""

    resumed: Callable[[int], None]
    """A hart's wait after `vmm.machine.sbi.Suspend` is over."""

    ended: Callable[[Outcome], None]
    """A hart cannot go on, by the guest's fault or the monitor's: posts to the lifecycle and returns at once."""

    trace_exits: TextIO | None
    trace_exec: TextIO | None


class Harts(HartControl, Protocol):
    """The harts with their threads, interrupt controllers and timers. Every method but those of `HartControl` is
    called by one thread at a time, never by a hart's own."""

    def line(self, source: int) -> Wire:
        """The input of the interrupt controller that PLIC `source` comes in on."""
        ...

    def reset(self, entry: Entry) -> None:
        """All harts and interrupt controllers go to their reset values. Only when not started, or paused.

        With `entry.machine_mode` every hart will enter `entry.pc` in M-mode; without, hart 0 in S-mode, and the others
        wait for `start_hart`.
        """
        ...

    def start(self) -> None:
        """The threads begin to run guest code. Once."""
        ...

    def pause(self, timeout: float) -> None:
        """Returns when no thread is in guest code or in a device. Raises DeadlineError, naming who is still there."""
        ...

    def resume(self) -> None:
        """The threads go on after `pause`."""
        ...

    def stop(self, timeout: float) -> None:
        """The threads end, paused or not. Raises DeadlineError, naming who does not."""
        ...

    def tell(self, sighting: Sighting) -> None:
        """Who waits for harts and what these are doing. Any thread, and waits for nobody."""
        ...

    def standing(self) -> list[str]:
        """Each hart's privilege and pc and what it is doing, as text for a report. As `tell`."""
        ...

    def interrupts(self) -> list[str]:
        """What interrupts are pending and when timers are due, as text for a report. As `tell`."""
        ...

    def statistics(self) -> dict[str, object]:
        """What the harts have done so far, by name."""
        ...

    def jit_statistics(self) -> JitStatistics:
        """What was translated."""
        ...


Make = Callable[[Surroundings], Harts]
