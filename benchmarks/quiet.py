"""Other people's work on the host: measured beside each sample, and kept out of it where there is patience."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.progress import say

T = TypeVar("T")

LIMIT = 0.08
"""Processors' worth of others' work beside which a sample still counts as undisturbed."""
LOOK_S = 0.5
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """Processor time that the host has spent since it booted, with what its own host took from it (steal)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S


def own_s() -> float:
    """Processor time of this process and all that it has started, ended and waited for or still running."""
    children: dict[int, list[int]] = defaultdict(list)
    spent: dict[int, float] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            spent[int(entry.name)] = sum(map(int, fields[11:15])) * _TICK_S
            children[int(fields[1])].append(int(entry.name))
    total, left = 0.0, [os.getpid()]
    while left:
        pid = left.pop()
        total += spent.get(pid, 0.0)
        left += children[pid]
    return total


class _Span:
    """Others' work between its making and `share()`."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), busy_s(), own_s()

    def share(self) -> float:
        """In processors: 0.5 is half of one."""
        wall = time.monotonic() - self._began
        return max(0.0, (busy_s() - self._busy) - (own_s() - self._own)) / max(wall, _TICK_S)


class Quiet:
    """Takes samples while others rest, as far as `patience` seconds in all reach."""

    def __init__(self, patience: float) -> None:
        self._left = patience
        self._shares: list[float] = []
        self._repeated = 0

    def sample(self, measure: Callable[[], T]) -> T:
        """One sample: the least disturbed of those that had to be taken."""
        tries: list[tuple[float, T]] = []
        while True:
            began = time.monotonic()
            self._wait()
            waited = time.monotonic() - began
            span = _Span()
            value = measure()
            tries.append((span.share(), value))
            if tries[-1][0] <= LIMIT or self._left <= 0:
                break
            self._left -= time.monotonic() - began - waited
            self._repeated += 1
        share, value = min(tries, key=lambda tried: tried[0])
        self._shares.append(share)
        return value

    def _wait(self) -> None:
        said = False
        while self._left > 0:
            span = _Span()
            time.sleep(LOOK_S)
            if span.share() <= LIMIT:
                return
            self._left -= LOOK_S
            if not said:
                say(f"waiting: others take {span.share():.0%} of a processor; for at most {self._left:.0f} s more")
                said = True

    def __str__(self) -> str:
        if not self._shares:
            return "nothing was measured"
        median, most = statistics.median(self._shares), max(self._shares)
        return (
            f"others' work beside the samples: median {median:.0%}, most {most:.0%} of one processor; "
            f"{self._repeated} disturbed samples repeated"
        )
