"""The cost of a door: the same method bare, with a hand-written `with self._lock:`, with @entry, and checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from benchmarks.quiet import Quiet
from benchmarks.report import Figure, Report, alternate, parser
from vmm.locks import Device, Locking, entry, lockfree

CALLS = 200_000
BOUND = 1.2


class Registers(Device):
    """One register behind each kind of door."""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._rlock = threading.RLock()
        self._value = 7

    @lockfree("the body alone, to compare with")
    def read_bare(self, offset: int, size: int) -> int:
        return self._value

    @lockfree("takes the lock by hand, to compare with")
    def read_with(self, offset: int, size: int) -> int:
        with self._rlock:
            return self._value

    @entry
    def read(self, offset: int, size: int) -> int:
        return self._value

    @entry(posts=True)
    def read_posting(self, offset: int, size: int) -> int:
        return self._value


def nanoseconds(read: Callable[[int, int], int], calls: int = CALLS) -> float:
    """Time of one call, without that of the loop around it."""
    turns = range(calls)
    started = time.perf_counter_ns()
    for _ in turns:
        pass
    empty = time.perf_counter_ns()
    for _ in turns:
        read(0, 1)
    return (time.perf_counter_ns() - empty - (empty - started)) / calls


def main() -> int:
    options = parser(__doc__, rounds=15).parse_args()
    report = Report("Locks: one call of a device's public method", __doc__ or "")
    quiet = Quiet(options.patience)
    plain = Locking().make(Registers, "plain")
    checked = Locking(checked=True).make(Registers, "checked")
    with_lock, with_entry = "with RLock, by hand", "@entry"
    sides: dict[str, Callable[[], float]] = {
        "no lock": lambda: nanoseconds(plain.read_bare),
        with_lock: lambda: nanoseconds(plain.read_with),
        with_entry: lambda: nanoseconds(plain.read),
        "@entry(posts=True)": lambda: nanoseconds(plain.read_posting),
        "@entry, checked": lambda: nanoseconds(checked.read, CALLS // 10),
    }
    samples = alternate(sides, options.rounds, quiet)
    report.facts["conditions"] = str(quiet)
    figure = Figure("a call, uncontended", "ns", samples)
    ratio = figure.medians[with_entry] / figure.medians[with_lock]
    report.add(
        Figure(
            figure.name,
            figure.unit,
            samples,
            bound=f"@entry costs {ratio:.2f} times the hand-written lock; at most {BOUND}",
            met=ratio <= BOUND,
        )
    )
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
