"""Two devices enter each other with their locks held, on two threads: a real deadlock, which only the process's end
ends. Writes the report that a watchdog with a clock of its own makes of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from vmm.locks import Device, Locking, entry
from vmm.watchdog import LOOKS, Watchdog


class Peer(Device):
    @entry
    def enter(self, inside: Callable[[], object]) -> object:
        return inside()

    @entry
    def touch(self) -> None:
        """Wants the lock."""


class Watched:
    def __init__(self, locking: Locking) -> None:
        self.parts = (locking,)

    def sections(self) -> list[tuple[str, list[str]]]:
        return []


def main() -> None:
    locking = Locking()
    uart, rtc = locking.make(Peer, "uart"), locking.make(Peer, "rtc")
    both = threading.Barrier(2)

    def cross(mine: Peer, other: Peer) -> None:
        mine.enter(lambda: (both.wait(), other.touch()))

    for name, mine, other in (("vcpu0", uart, rtc), ("vcpu1", rtc, uart)):
        threading.Thread(target=cross, args=(mine, other), name=name, daemon=True).start()
    while any(not now.waiters for now in locking.statistics() if now.name != "bql"):
        pass
    now = [0]
    watchdog = Watchdog(Watched(locking), 10.0, sys.stdout.write, now=lambda: now[0])
    for _ in range(2 * LOOKS):
        watchdog.look()
        now[0] += 10_000_000_000 // LOOKS
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
