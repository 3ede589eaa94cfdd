"""VCPUs that take part in a schedule: a guest as a script, or real guest code a few instructions at a time.

Both stand where `vmm.vcpu.software.SoftwareVcpu` does, so that the real `VcpuThread` and `Gate` run them. Code that
runs free of any budget is nobody's to schedule: that is what stress tests are for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

from vmm.fabric.bus import BusFault
from vmm.testing.schedule.core import Scheduler
from vmm.testing.schedule.operations import Operation
from vmm.vcpu.layout import Exit, Mmio
from vmm.vcpu.software import SoftwareVcpu

_A0: Final = 10


@dataclass(frozen=True, slots=True)
class Load:
    """Read `size` bytes; the guest is sent the value. Where nothing answers, BusFault is raised in it."""

    address: int
    size: int = 4


@dataclass(frozen=True, slots=True)
class Store:
    """Write `size` bytes."""

    address: int
    value: int
    size: int = 4


@dataclass(frozen=True, slots=True)
class Call:
    """Ask the SBI: a0 to a7. The guest is sent a0."""

    registers: tuple[int, ...]


Guest = Generator[Load | Store | Call, int, None]
"""A guest as a script: it yields what its hart does, and is sent what comes of it. At its end the hart sleeps."""


def nothing() -> Guest:
    """A guest that sleeps from the start."""
    return
    yield


class ScriptedVcpu:
    """A hart without instructions. What a guest does between two accesses takes no step."""

    kind = "scripted"

    def __init__(self, scheduler: Scheduler, index: int, guest: Callable[[int], Guest]) -> None:
        """`guest(pc)` is what it runs from there."""
        self.index: Final = index
        self.address: Final = 0
        self.pc = self.privilege = self.instructions = 0
        self.x = [0] * 32
        self.mmio_addr, self.mmio_size, self.mmio_value, self.mmio_state = [0], [0], [0], [0]
        self._scheduler = scheduler
        self._guest_at = guest
        self._guest: Guest | None = None
        self._asked: Load | Store | Call | None = None
        self._kicked = False
        self._step = Operation(f"guest {index} runs", f"kick of {index}")
        self._sleep = Operation(f"guest {index} sleeps", f"kick of {index}")
        self._kick = f"kick of {index} write"

    def __repr__(self) -> str:
        return f"<ScriptedVcpu {self.index}>"

    @property
    def owner(self) -> object:
        """As a blocker, of a hart that sleeps: itself until it is kicked."""
        return None if self._kicked else self

    def kick(self) -> None:
        """Make `run` return KICK, now or when it is next called."""
        self._scheduler.point(self._kick)
        self._kicked = True

    def reset(self) -> None:
        """It runs nothing until `start_at`."""
        self._guest = self._asked = None
        self.x[:] = [0] * 32

    def start_at(self, pc: int, a0: int, a1: int, a2: int = 0) -> None:
        self.pc = pc
        self.x[_A0 : _A0 + 3] = a0, a1, a2
        self._guest, self._asked = self._guest_at(pc), None

    def set_doorbells(self, doorbells: object) -> None:
        """A script leaves for each of its stores."""

    def statistics(self) -> dict[str, int]:
        return {}

    def run(self, budget: int | None = None) -> int:
        """Go on to the guest's next access; an `Exit`."""
        scheduler = self._scheduler
        scheduler.pause(self._step)
        if not self._kicked:
            self._asked = self._next()
            if self._asked is not None:
                return int(self._leave(self._asked))
            scheduler.pause(self._sleep, self)
        self._kicked = False
        return int(Exit.KICK)

    def _next(self) -> Load | Store | Call | None:
        guest, asked = self._guest, self._asked
        if guest is None:
            return None
        try:
            if asked is None:
                return next(guest)
            if isinstance(asked, Call):
                return guest.send(self.x[_A0])
            if self.mmio_state[0] == Mmio.FAULT:
                return guest.throw(BusFault(f"{asked}"))
            return guest.send(self.mmio_value[0])
        except StopIteration:
            self._guest = None
            return None

    def _leave(self, asked: Load | Store | Call) -> Exit:
        if isinstance(asked, Call):
            self.x[_A0 : _A0 + len(asked.registers)] = asked.registers
            return Exit.SBI
        self.mmio_addr[0], self.mmio_size[0] = asked.address, asked.size
        if isinstance(asked, Load):
            return Exit.MMIO_READ
        self.mmio_value[0] = asked.value
        return Exit.MMIO_WRITE


class BudgetedVcpu:
    """A real hart that runs `budget` instructions a step. Its code must not wait by WFI, which would stop the schedule
    in native code: it spins, or has no more to do."""

    kind = "budgeted"

    def __init__(self, scheduler: Scheduler, vcpu: SoftwareVcpu, budget: int) -> None:
        self._scheduler = scheduler
        self._vcpu = vcpu
        self._budget = budget
        # It may touch all of memory, and raise and lower what others wait for.
        self._step = Operation(f"guest {vcpu.index} runs {budget}", "ram")
        self._kick = f"kick of {vcpu.index} write"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vcpu, name)

    def __repr__(self) -> str:
        return f"<BudgetedVcpu {self._vcpu!r}, {self._budget} instructions a step>"

    def kick(self) -> None:
        self._scheduler.point(self._kick)
        self._vcpu.kick()

    def run(self, budget: int | None = None) -> int:
        """Run until something needs Python, in steps."""
        while True:
            self._scheduler.pause(self._step)
            reason = self._vcpu.run(self._budget)
            if reason != Exit.BUDGET:
                return reason
