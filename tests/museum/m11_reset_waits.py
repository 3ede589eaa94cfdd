"""QEMU's issues 647 and 1944: a reset under disk load waited for requests that never came back, for ever and in
silence. Planted: copies in flight whose wait knows no deadline. The machine resets while a worker is stuck in one.
"""

from __future__ import annotations

import threading

from tests.museum.exhibit import Exhibit
from vmm.errors import DeadlineError
from vmm.fabric.inflight import InFlight
from vmm.fabric.workers import Workers
from vmm.machine.lifecycle import Lifecycle, Request
from vmm.testing.fakes import FakeIoThread
from vmm.waitfor import Sighting
from vmm.watchdog import LOOKS, Watchdog

THRESHOLD = 10
DEADLINE_S = 0.01
PATIENCE_S = 0.5
"""How long the reset has until the watchdog's clock, which is no real one, is set going."""


class EndlessInFlight(InFlight):
    """Copies in flight that are waited for until the last one ends, whenever that is"""

    def wait(self, timeout: float) -> bool:
        return super().wait(threading.TIMEOUT_MAX)


class Disk:
    """What the lifecycle does to a disk with one request under way, and what a watchdog sees of both."""

    def __init__(self, flight: InFlight) -> None:
        self.flight = flight
        self.workers = Workers(1, "worker")
        self.lifecycle = Lifecycle()
        self.parts = (self.lifecycle, self.workers, self)
        self._medium = threading.Event()
        flight.begin()
        self.workers.submit(self.read, done=lambda _: None, home=FakeIoThread())

    def read(self) -> None:
        self._medium.wait()
        self.flight.end()

    def answer(self) -> None:
        """The host comes back to life."""
        self._medium.set()
        self.workers.stop()

    def tell(self, sighting: Sighting) -> None:
        self.flight.tell(sighting)
        for ident in self.workers.busy():
            sighting.hold(ident, self.flight.thing, "it may be doing them")

    def sections(self) -> list[tuple[str, list[str]]]:
        return []

    def reset(self) -> None:
        if not self.flight.wait(DEADLINE_S):
            raise DeadlineError(f"the disk did not come to rest: {self.flight}")

    def start(self) -> None:
        """Nothing to do, as in the others."""

    pause = resume = stop = start


def check(kind: type[InFlight]) -> str | None:
    disk = Disk(kind("disk0"))
    now = [0]
    reports: list[str] = []
    watchdog = Watchdog(disk, THRESHOLD, reports.append, now=lambda: now[0])
    disk.lifecycle.begin(disk, watchdog.report)
    disk.lifecycle.do(Request.START)
    disk.lifecycle.post(Request.RESET)
    outcome = disk.lifecycle.wait(PATIENCE_S)
    for _ in range(LOOKS + 1):
        watchdog.look()
        now[0] += THRESHOLD * 1_000_000_000 // LOOKS
    disk.answer()
    if not outcome:
        disk.lifecycle.do(Request.STOP)
    disk.lifecycle.join()
    if reports:
        return reports[0].splitlines()[1].strip()
    named = outcome and "the disk did not come to rest" in outcome.report and "worker0" in outcome.report
    return None if named else "the reset ended without naming who kept it"


EXHIBIT = Exhibit(
    "M11",
    "a reset under disk load waited for ever, and nothing said for whom (QEMU 647, 1944)",
    "watchdog",
    EndlessInFlight,
    InFlight,
    check,
)
