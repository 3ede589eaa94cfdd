"""The measured kind of `vmm.locks`: who takes which lock, where, why, how long they wait for it and hold it.

Everything about a lock is written down by the thread that holds it, while it holds it: no update is lost on builds
without a GIL, and there is nothing to merge but what a reader asks for. A reader takes no lock, so that a run that
hangs can still be asked; it may see an acquisition that is counted already and whose hold is not.

Each acquisition is filed under its *site* (the device's door, or the line of the `with`) and its *cause*: what the
thread was doing. A VCPU thread's is its exit, an I/O thread's the kind of callback, any other thread's its name
without the number. Only the outermost acquisition of a reentrant lock counts; those inside are `nested`.

A lock made `around` another shares that one's exclusion. Both count, so the big lock shows how often it was taken, and
the locks around it for which device.
"""

from __future__ import annotations

import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import CodeType
from typing import Any, Final, Literal, TypeVar

from vmm import lockcheck, locks
from vmm.locks import PLAIN, Condition, DeviceLock, Kit, LockStatistics, Progress, Rank, Thread
from vmm.timeline import Timeline, Track

C = TypeVar("C")
now: Final = time.perf_counter_ns

_SUB: Final = 3  # bits: eight buckets for each power of two, so that a bucket is an eighth wide at most
_LARGEST: Final = (1 << 44) - 1  # ns: five hours


class Histogram:
    """Times in ns, in buckets whose width grows with them. One thread at a time may add."""

    __slots__ = ("_buckets", "count", "longest", "total")

    def __init__(self) -> None:
        self.count = self.total = self.longest = 0
        self._buckets = [0] * (_bucket(_LARGEST) + 1)

    def add(self, ns: int) -> None:
        self.count += 1
        self.total += ns
        if ns > self.longest:
            self.longest = ns
        shift = max(ns.bit_length() - _SUB - 1, 0)
        self._buckets[min((shift << _SUB) + (ns >> shift), len(self._buckets) - 1)] += 1

    def merge(self, other: Histogram) -> None:
        self.count += other.count
        self.total += other.total
        self.longest = max(self.longest, other.longest)
        self._buckets = [mine + its for mine, its in zip(self._buckets, other._buckets, strict=True)]

    def quantile(self, share: float) -> int:
        """The time that `share` of all do not exceed, ns; at most an eighth too long. 0 when there are none."""
        left = share * self.count
        for bucket, count in enumerate(self._buckets):
            left -= count
            if count and left <= 0:
                return min(_upper(bucket), self.longest)
        return self.longest

    def as_json(self, *, buckets: bool = False) -> dict[str, Any]:
        """In ns. With `buckets`, also how many were at most as long as each bound and longer than the one before."""
        figures: dict[str, Any] = {
            "count": self.count,
            "total_ns": self.total,
            "p50_ns": self.quantile(0.5),
            "p99_ns": self.quantile(0.99),
            "max_ns": self.longest,
        }
        if buckets:
            figures["buckets"] = [[_upper(bucket), count] for bucket, count in enumerate(self._buckets) if count]
        return figures

    def __repr__(self) -> str:
        return f"<Histogram of {self.count}, {self.total} ns in all, {self.longest} ns the longest>"


def _bucket(ns: int) -> int:
    shift = max(ns.bit_length() - _SUB - 1, 0)
    return (shift << _SUB) + (ns >> shift)


def _upper(bucket: int) -> int:
    """The longest time in a bucket, ns."""
    shift = max((bucket >> _SUB) - 1, 0)
    return ((bucket - (shift << _SUB) + 1) << shift) - 1


# -- threads -----------------------------------------------------------------------------------------------------------


class Activity:
    """What one thread is doing. Only that thread changes it."""

    __slots__ = ("cause", "kind", "locked_ns", "name", "paused_ns", "track")

    def __init__(self, name: str, track: Track | None) -> None:
        self.name: Final = name
        self.kind: Final = re.sub(r"\d+", "", name)
        """The name without its number: alike for threads that do the same work."""
        self.cause = self.kind
        """Why it takes the locks that it takes now."""
        self.locked_ns = 0
        """How long it has waited for locks so far."""
        self.paused_ns = 0
        """How long it has waited for the progress of others so far."""
        self.track: Final = track

    def __repr__(self) -> str:
        return f"<Activity of {self.name}: {self.cause}>"


class _Threads(threading.local):
    def __init__(self, timeline: Timeline | None) -> None:
        name = threading.current_thread().name
        self.activity = Activity(name, timeline.track(name) if timeline else None)


# -- locks -------------------------------------------------------------------------------------------------------------


class Counts:
    """What is counted of acquisitions that have something in common."""

    __slots__ = ("acquired", "contended", "handoffs", "hold", "wait")

    def __init__(self) -> None:
        self.acquired = self.contended = 0
        self.handoffs = 0  # the thread that held it last was another one
        self.wait = Histogram()  # of the contended ones
        self.hold = Histogram()

    def merge(self, other: Counts) -> None:
        self.acquired += other.acquired
        self.contended += other.contended
        self.handoffs += other.handoffs
        self.wait.merge(other.wait)
        self.hold.merge(other.hold)

    def as_json(self, *, buckets: bool = False) -> dict[str, Any]:
        return {
            "acquired": self.acquired,
            "contended": self.contended,
            "handoffs": self.handoffs,
            "wait": self.wait.as_json(buckets=buckets),
            "hold": self.hold.as_json(buckets=buckets),
        }


class Site:
    """A place that takes locks, with the cause for which it does."""

    __slots__ = ("_code", "_instruction", "cause", "counts")

    def __init__(self, code: CodeType, instruction: int, cause: str) -> None:
        self._code = code
        self._instruction = instruction
        self.cause: Final = cause
        self.counts: Final = Counts()

    @property
    def place(self) -> str:
        """`Class.method` for a door; for a `with` also the file's name and the line."""
        door = re.fullmatch(r"<@entry (?:.*\.)?([^.]+\.[^.]+)>", self._code.co_filename)
        if door:
            return door[1]
        rows = self._code.co_lines()
        line = next((line for first, end, line in rows if first <= self._instruction < end), None)
        return f"{self._code.co_qualname} ({self._code.co_filename.rpartition('/')[2]}:{line})"


class Ledger:
    """All that is known of one lock. Written by its holder."""

    def __init__(self, name: str, lock_class: str, rank: Rank, around: str) -> None:
        self.name: Final = name
        self.lock_class: Final = lock_class
        self.rank: Final = rank
        self.around: Final = around
        """The lock whose exclusion it shares, empty if it has its own."""
        self.sites: Final[dict[tuple[CodeType, int, str], Site]] = {}
        self.blockers: Final[dict[tuple[str, CodeType, int], tuple[Site, Histogram]]] = {}
        """Waits, by the thread and the place that held the lock when they began."""
        self.nested = 0

    def __repr__(self) -> str:
        return f"<Ledger of {self.name}: {len(self.sites)} sites>"


def _sum(parts: Iterable[Counts]) -> Counts:
    whole = Counts()
    for part in parts:
        whole.merge(part)
    return whole


def _grouped(parts: Iterable[tuple[str, Counts]]) -> dict[str, Counts]:
    """Sums by key, the most frequent first."""
    groups: dict[str, Counts] = {}
    for key, counts in parts:
        groups.setdefault(key, Counts()).merge(counts)
    return dict(sorted(groups.items(), key=lambda item: -item[1].acquired))


class MeteredLock(DeviceLock):  # type: ignore[misc]
    """A lock that is written down in its ledger. What excludes is `inner`."""

    __slots__ = ("_by", "_depth", "_inner", "_last", "_meter", "_since", "_site", "ledger")

    def __init__(self, meter: Meter, ledger: Ledger, inner: DeviceLock) -> None:
        super().__init__(ledger.name, ledger.lock_class, ledger.rank)
        self.ledger: Final = ledger
        self._meter = meter
        self._inner = inner
        # Written by the holder; `_by` and `_site` are read by whoever begins to wait.
        self._depth = self._since = 0
        self._by: Activity | None = None
        self._site: Site | None = None
        self._last: Activity | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._inner.acquire(False):
            self._took(0)
            return True
        if not blocking:
            return False
        if timeout < 0:
            return self.contend()
        began, holder = now(), self._holder()
        taken = self._inner.acquire(True, timeout)
        if taken:
            self._took(began, holder)
        return taken

    def contend(self) -> Literal[True]:
        began, holder = now(), self._holder()
        try:
            return self._inner.contend()
        finally:  # it ends with the lock held even when it raises
            self._took(began, holder)

    def release(self) -> None:
        if not self._depth or not self._inner.held():
            raise RuntimeError(f"cannot release {self.name}: this thread does not hold it")
        if self._depth == 1:
            ended, by = now(), self._by
            if self._site is not None:
                self._site.counts.hold.add(ended - self._since)
            if by is not None and by.track is not None:
                by.track.span(self.name, "hold", self._since, ended)
            self._by = None
        self._depth -= 1
        self._inner.release()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def held(self) -> bool:
        return self._inner.held()

    @property
    def exclusion(self) -> DeviceLock:
        return self._inner.exclusion

    @property
    def held_since(self) -> int:
        return self._since if self._depth else 0

    def statistics(self) -> LockStatistics:
        return replace(self._inner.statistics(), name=self.name, lock_class=self.lock_class, rank=self.rank)

    def _holder(self) -> tuple[Activity, Site] | None:
        """Who has it, as seen by one that does not."""
        lock = self._inner if isinstance(self._inner, MeteredLock) else self
        by, site = lock._by, lock._site
        return (by, site) if by is not None and site is not None else None

    def _took(self, began: int, holder: tuple[Activity, Site] | None = None) -> None:
        """The calling thread holds it now; it has waited since `began`, for `holder`, or not at all."""
        self._depth += 1
        if self._depth > 1:
            self.ledger.nested += 1
            return
        waited = now() - began if began else 0
        activity = self._meter.here.activity
        frame = sys._getframe(1)
        while frame.f_code.co_filename in _OWN_FILES and frame.f_back is not None:
            frame = frame.f_back
        key = (frame.f_code, frame.f_lasti, activity.cause)
        site = self.ledger.sites.get(key)
        if site is None:
            site = self.ledger.sites[key] = Site(*key)
        counts = site.counts
        counts.acquired += 1
        if self._last is not activity:
            counts.handoffs += self._last is not None
            self._last = activity
        if began:
            counts.contended += 1
            counts.wait.add(waited)
            if holder is not None:
                self._blame(*holder, waited)
            if not isinstance(self._inner, MeteredLock):
                activity.locked_ns += waited
                if activity.track is not None:
                    activity.track.span(self.name, "wait", began, began + waited)
        self._by, self._site = activity, site
        self._since = now()

    def _blame(self, by: Activity, site: Site, waited: int) -> None:
        key = (by.name, site._code, site._instruction)
        if key not in self.ledger.blockers:
            self.ledger.blockers[key] = (site, Histogram())
        self.ledger.blockers[key][1].add(waited)


# -- waits that are not for a lock -------------------------------------------------------------------------------------


class Waits:
    """The waits for things of one class, by any thread."""

    def __init__(self) -> None:
        # Rank LEAF; guards `times`, and is short beside the waits that it counts.
        self._lock = threading.Lock()
        self.times: Final = Histogram()

    def add(self, ns: int) -> None:
        with self._lock:
            self.times.add(ns)

    def __repr__(self) -> str:
        return f"<Waits: {self.times}>"


class MeteredProgress(Progress):
    """Progress whose waits are timed. What waits and serves beyond that is `inner`'s to say."""

    __slots__ = ("_inner", "_meter", "_waits")

    def __init__(self, meter: Meter, inner: Progress, waits: Waits) -> None:
        super().__init__(inner.name)
        self._waiters = inner._waiters
        self._meter = meter
        self._inner = inner
        self._waits = waits

    def serving(self) -> AbstractContextManager[object]:
        return self._inner.serving() if self._meter.timeline is None else self._serving()

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """A span, where nothing more exact is known of what the thread does."""
        activity, began = self._meter.here.activity, now()
        outermost = activity.cause is activity.kind
        with self._inner.serving():
            yield
        if activity.track is not None and outermost and activity.cause is activity.kind:
            activity.track.span(self.name, "work", began, now())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        activity, began = self._meter.here.activity, now()
        try:
            with self._inner.waiting():
                yield
        finally:
            ended = now()
            activity.paused_ns += ended - began
            self._waits.add(ended - began)
            if activity.track is not None:
                activity.track.span(f"until {self.name}", "pause", began, ended)


class Stalls:
    """The time that one VCPU's thread spends outside the guest, by cause. Written by that thread."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.whole: Final = Histogram()
        """From leaving the guest to going back in."""
        self.parts: Final[dict[str, Histogram]] = {}
        """What of it was due to what: waits for locks, pauses, and the exits themselves without these."""

    def add(self, cause: str, total: int, locked: int, paused: int) -> None:
        self.whole.add(total)
        for part, ns in ((LOCKED, locked), (PAUSED, paused), (cause, total - locked - paused)):
            if ns > 0:
                if part not in self.parts:
                    self.parts[part] = Histogram()
                self.parts[part].add(ns)

    def __repr__(self) -> str:
        return f"<Stalls of {self.name}: {self.whole}>"


LOCKED: Final = "waits for locks"
PAUSED: Final = "paused or parked"


# -- the kit -----------------------------------------------------------------------------------------------------------


class Meter(Kit):
    """Measures the locks, waits and VCPUs of one machine, and draws its timeline if it was given one."""

    def __init__(self, base: Kit = PLAIN, timeline: Timeline | None = None) -> None:
        """Kit `base` makes what does the work."""
        self._base: Kit = base
        self.timeline: Final = timeline
        self.here: Final = _Threads(timeline)
        """Of it, `activity` is the calling thread's."""
        self._registry = threading.Lock()  # guards those below
        self._ledgers: list[tuple[weakref.ref[MeteredLock], Ledger]] = []
        self._waits: dict[str, Waits] = {}
        self._stalls: dict[str, Stalls] = {}

    @property
    def meter(self) -> Meter:
        return self

    def __repr__(self) -> str:
        return f"<Meter of {len(self._ledgers)} locks>"

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> MeteredLock:
        inner = self._base.lock(name, lock_class, rank, children) if around is None else around
        with self._registry:
            ledger = self._ledger(name, lock_class or name, rank, around.name if around else "")
            lock = MeteredLock(self, ledger, inner)
            self._ledgers.append((weakref.ref(lock), ledger))
        return lock

    def _ledger(self, name: str, lock_class: str, rank: Rank, around: str) -> Ledger:
        """A new one, or that of such a lock that is gone: devices that come and go do not use up memory."""
        for entry in self._ledgers:
            ref, ledger = entry
            if ref() is None and (ledger.name, ledger.lock_class, ledger.around) == (name, lock_class, around):
                self._ledgers.remove(entry)
                return ledger
        return Ledger(name, lock_class, rank, around)

    def variant(self, cls: C) -> C:
        return self._base.variant(cls)

    def progress(self, name: str, progress_class: str | None = None) -> Progress:
        with self._registry:
            waits = self._waits.setdefault(progress_class or name, Waits())
        return MeteredProgress(self, self._base.progress(name, progress_class), waits)

    def condition(self, name: str, lock_class: str | None = None) -> Condition:
        return self._base.condition(name, lock_class)

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> Thread:
        return self._base.thread(target, name, args)

    def away_from_home(self, work: str, home: str) -> None:
        self._base.away_from_home(work, home)

    def point(self, what: str) -> None:
        self._base.point(what)

    def stalls(self, name: str) -> Stalls:
        """Where the VCPU thread of this name writes down its time outside the guest."""
        with self._registry:
            return self._stalls.setdefault(name, Stalls(name))

    # -- for readers, while the machine runs or afterwards

    def ledgers(self) -> list[Ledger]:
        """By rank and name."""
        with self._registry:
            ledgers = [ledger for _, ledger in self._ledgers]
        return sorted(ledgers, key=lambda ledger: (ledger.rank, ledger.name))

    def report(self) -> dict[str, Any]:
        """All of it, for JSON. Times are in ns."""
        ledgers = self.ledgers()
        with self._registry:
            waits, stalls = dict(self._waits), dict(self._stalls)
        return {
            "locks": [_of_ledger(ledger) for ledger in ledgers],
            "classes": _of_classes(ledgers),
            "outside_guest": {
                name: {
                    **of.whole.as_json(buckets=True),
                    "causes": {cause: part.as_json(buckets=True) for cause, part in sorted(of.parts.copy().items())},
                }
                for name, of in sorted(stalls.items())
            },
            "waits": {name: of.times.as_json() for name, of in sorted(waits.items()) if of.times.count},
        }


def _of_ledger(ledger: Ledger) -> dict[str, Any]:
    sites = ledger.sites.copy().values()
    return {
        "name": ledger.name,
        "class": ledger.lock_class,
        "rank": ledger.rank.name,
        "around": ledger.around,
        "nested": ledger.nested,
        **_sum(site.counts for site in sites).as_json(buckets=True),
        "causes": _as_json(_grouped((site.cause, site.counts) for site in sites)),
        "sites": _as_json(_grouped((site.place, site.counts) for site in sites)),
        "blockers": [
            {"thread": thread, "site": site.place, **waits.as_json()}
            for (thread, *_), (site, waits) in ledger.blockers.copy().items()
        ],
    }


def _of_classes(ledgers: Iterable[Ledger]) -> dict[str, Any]:
    classes: dict[str, list[Site]] = {}
    for ledger in ledgers:
        classes.setdefault(ledger.lock_class, []).extend(ledger.sites.copy().values())
    return {
        lock_class: {
            **_sum(site.counts for site in sites).as_json(),
            "causes": _as_json(_grouped((site.cause, site.counts) for site in sites)),
        }
        for lock_class, sites in classes.items()
    }


def _as_json(groups: Mapping[str, Counts]) -> dict[str, Any]:
    return {key: counts.as_json() for key, counts in groups.items()}


_OWN_FILES: Final = {module.__file__ for module in (locks, lockcheck, sys.modules[__name__])}
