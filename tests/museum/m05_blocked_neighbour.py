"""Under QEMU's big lock an access that takes 5 ms in one device is 5 ms in the tail of every other device. Planted: one
lock for all devices. Time here is counted, not measured: the slow device lets the clock go on by 5 ms once its
neighbour has either been served or found to wait. `benchmarks/locks/blocks.py` measures the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.museum.announcing import Announcing
from tests.museum.exhibit import Exhibit
from vmm.locks import Device, Kit, Locking, entry

BLOCK_NS = 5_000_000
BOUND_NS = 300_000
"""What the neighbour may see in its tail."""


class Slow(Device):
    """Device A: its access blocks, which here is to call what the test hands it."""

    @entry
    def access(self, block: Callable[[], None]) -> None:
        block()


class Quick(Device):
    """Device B."""

    @entry
    def access(self) -> None:
        pass


def one_lock(kit: Kit) -> Locking:
    """All devices behind the big lock"""
    return Locking("bql", kit=kit)


def check(policy: Callable[..., Locking]) -> str | None:
    """Tail benchmark: the longest of B's accesses, begun while A blocks."""
    now = 0
    waits_or_served = threading.Event()

    locking = policy(kit=Announcing(waits_or_served.set))
    slow, quick = locking.make(Slow, "a"), locking.make(Quick, "b")
    latencies: list[int] = []

    def neighbour() -> None:
        began = now
        quick.access()
        latencies.append(now - began)
        waits_or_served.set()

    thread = threading.Thread(target=neighbour, name="vcpu1")

    def block() -> None:
        nonlocal now
        thread.start()
        waits_or_served.wait()
        now += BLOCK_NS

    slow.access(block)
    thread.join()
    tail = max(latencies)
    return f"{quick.name} took {tail / 1e6:g} ms while {slow.name} blocked" if tail > BOUND_NS else None


EXHIBIT = Exhibit(
    "M5",
    "an access that blocks for 5 ms in one device was 5.6 ms in another one's p99 (QEMU)",
    "tail benchmark",
    one_lock,
    Locking,
    check,
)
