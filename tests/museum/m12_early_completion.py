"""QEMU's issue 2622 and vitastor's 132: a completion looked whether anybody waited, before whoever had found the
request unfinished had begun to wait. Planted: a count of copies in flight that is changed and looked at outside its
lock.
"""

from __future__ import annotations

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.fabric.inflight import InFlight
from vmm.locks import PLAIN, Kit

DEADLINE_S = 0.5


class HastyInFlight(InFlight):
    """Copies in flight whose end is noted, and looked for, before the lock is taken"""

    def __init__(self, name: str, kit: Kit = PLAIN) -> None:
        super().__init__(name, kit)
        self._kit = kit

    def end(self, count: int = 1) -> None:
        self._kit.point("write count")
        self._count -= count
        if self._waiters:
            with self._idle:
                self._idle.notify_all()

    def wait(self, timeout: float) -> bool:
        self._kit.point("read count")
        if not self._count:
            return True
        with self._idle:
            self._waiters += 1
            woken = self._idle.wait(timeout)
            self._waiters -= 1
            return woken


def program(in_flight: type[InFlight]) -> Program:
    def threads(s: Stage) -> None:
        copies = in_flight("disk", s)
        copies.begin()

        def reset() -> None:
            assert copies.wait(DEADLINE_S), "the reset gave up, and nothing was in flight"

        s.spawn("vcpu0", reset)
        s.spawn("worker0", copies.end)

    return threads


def check(in_flight: type[InFlight]) -> str | None:
    return first_failure(program(in_flight))


EXHIBIT = Exhibit(
    "M12",
    "a completion woke a waiter that did not sleep yet (QEMU 2622, vitastor 132)",
    "seeded scheduler",
    HastyInFlight,
    InFlight,
    check,
    program,
)
