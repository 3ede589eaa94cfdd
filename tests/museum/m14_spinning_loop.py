"""QEMU's issues 997 and 1018: an I/O thread at 100 % CPU, since what woke it was never taken note of. Planted: a
doorbell that answers without emptying its eventfd. `benchmarks/startup.py` measures the idle machine.
"""

from __future__ import annotations

from typing import Any

from tests.museum.exhibit import Exhibit
from vmm.fabric.doorbell import Doorbell
from vmm.fabric.iothread import IoThread

TURNS = 8


class StuckDoorbell(Doorbell):
    """A doorbell that leaves its eventfd readable"""

    def _rung(self) -> None:
        self._callback()


def check(doorbell: type[Doorbell]) -> str | None:
    """Idle benchmark, in turns of the loop: some time after the last ring the thread must sleep until the next."""
    io: Any = IoThread("io")  # not started: its turns are taken here, one at a time
    answers: list[None] = []
    bell = doorbell(io, lambda: answers.append(None), "queue")
    bell.ring()
    for _ in range(TURNS):
        io._turn(io._look())
    spinning = bool(io._look()) or not io._sleep_s()
    bell.close()
    return f"the I/O thread does not sleep: {len(answers)} answers to one ring in {TURNS} turns" if spinning else None


EXHIBIT = Exhibit(
    "M14",
    "an idle machine's I/O thread used 100 % CPU (QEMU 997, 1018)",
    "idle benchmark",
    StuckDoorbell,
    Doorbell,
    check,
)
