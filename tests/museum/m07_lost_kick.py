"""QEMU's issue 1195: whoever paused the VCPUs looked whether they were idle, kicked those that were not, and then
waited for the next one to say that it had stopped. One that stopped between the look and the wait had said so already.
Planted: a gate that waits for an edge. The gate of `vmm/vcpu/thread.py` waits for a predicate.
"""

from __future__ import annotations

from typing import Any

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.vcpu.thread import Gate

VISITS = 2


class EdgeGate(Gate):
    """A gate whose close waits for the next VCPU to leave, if any was inside when it looked"""

    def close(self, deadline: float = 10.0) -> None:
        with self._changed:
            self._closers += 1
            inside = self._inside
        if inside:
            for thread in self._threads:
                thread.vcpu.kick()
            with self._changed:
                self._changed.wait()


class Hart:
    """What the gate needs of a VCPU's thread."""

    def __init__(self) -> None:
        self.vcpu = self
        self.parked = self.inside = False

    def kick(self) -> None:
        """It looks at the gate after each visit anyway."""


def program(gate_class: type[Gate]) -> Program:
    def threads(s: Stage) -> None:
        gate = gate_class(s)
        hart: Any = Hart()
        gate.add(hart)

        def run() -> None:
            for _ in range(VISITS):
                if gate.enter(hart):
                    hart.inside = True
                    s.point("guest code")
                    hart.inside = False
                    gate.leave()

        def pause() -> None:
            gate.close()
            assert not hart.inside, "a VCPU is in guest code behind a closed gate"
            gate.open()

        s.spawn("vcpu0", run)
        s.spawn("lifecycle", pause)

    return threads


def check(gate_class: type[Gate]) -> str | None:
    return first_failure(program(gate_class))


EXHIBIT = Exhibit(
    "M7",
    "idle check, then kick, then wait: the wake-up between check and wait was lost (QEMU 1195)",
    "seeded scheduler",
    EdgeGate,
    Gate,
    check,
    program,
)
