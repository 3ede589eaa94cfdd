"""Guest time: nanoseconds that pass while the machine runs, and timers on it.

Generated code reads the clock without an exit, from two aligned 64-bit words at `Clock.words_host`:

    word 0   offset   guest time minus CLOCK_MONOTONIC, ns, signed
    word 1   frozen   guest time while paused, ns; negative while the clock runs

    frozen = load acquire(word 1)
    now = frozen if frozen >= 0 else load acquire(word 0) + clock_gettime(CLOCK_MONOTONIC)

CLOCK_MONOTONIC is read last. Pausing and resuming happen while no hart runs guest code, so no reader can combine words
of two periods.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from vmm.errors import InternalError
from vmm.fabric.atomics import atomics

RUNNING: Final = -1
_OFFSET, _FROZEN = 0, 8


class Home(Protocol):
    """The thread on which timers fire: `vmm.fabric.iothread.IoThread`, or a test's."""

    def add_timers(self, timers: TimerSource) -> None: ...

    def wake(self) -> None: ...


class TimerSource(Protocol):
    """Something that a home thread sleeps for."""

    def next_deadline(self) -> int | None:
        """When the next timer is due, in ns of CLOCK_MONOTONIC; None for never."""

    def take_due(self) -> list[Callable[[], None]]:
        """Disarm what is due now and return its callbacks, earliest first."""


class Timer:
    """One callback, at most one deadline. It comes from `Clock.timer`."""

    __slots__ = ("_clock", "callback", "name")

    def __init__(self, clock: Clock, callback: Callable[[], None], name: str) -> None:
        self._clock = clock
        self.callback: Final = callback
        self.name: Final = name

    def __repr__(self) -> str:
        deadline = self.deadline
        return f"<Timer {self.name} {'off' if deadline is None else f'due at {deadline} ns'}>"

    @property
    def deadline(self) -> int | None:
        """Guest time at which it fires, ns; None when it is not armed."""
        return self._clock._deadline(self)

    def arm(self, deadline: int) -> None:
        """Fire once at guest time `deadline`, in place of any earlier request. A time gone by fires at once."""
        self._clock._arm(self, deadline)

    def cancel(self) -> None:
        """Ask for nothing. A callback that is already on its way still arrives: doors re-check their state."""
        self._clock._cancel(self)


class Clock:
    """A pausable monotonic clock. It is made paused, at `start` ns.

    Callbacks run on `home` and hold nothing; they enter devices by a public door.
    """

    def __init__(
        self, home: Home, *, start: int = 0, name: str = "guest", host_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.name: Final = name
        self._host_ns = host_ns
        self._words = mmap.mmap(-1, mmap.PAGESIZE)  # a page of its own: nobody's writes slow down its readers
        self.words_host: Final = ctypes.addressof(ctypes.c_char.from_buffer(self._words))
        self._store = atomics().store64
        # Rank LEAF; guards `_armed` and the change of `_time`. Nothing is called under it.
        self._lock = threading.Lock()
        self._armed: dict[Timer, int] = {}
        self._time = (0, start)  # (offset, frozen), replaced as one
        self._set(0, start)
        self._home = home
        home.add_timers(self)

    def __repr__(self) -> str:
        return f"<Clock {self.name} at {self.now()} ns{', paused' if self.paused else ''}, {len(self._armed)} timers>"

    def now(self) -> int:
        """Guest time, ns."""
        offset, frozen = self._time
        return frozen if frozen >= 0 else offset + self._host_ns()

    @property
    def paused(self) -> bool:
        return self._time[1] >= 0

    def pause(self) -> None:
        """Stop time, and with it the timers. No hart may be running guest code."""
        with self._lock:
            if not self.paused:
                self._set(self._time[0], self.now())

    def resume(self) -> None:
        """Let time go on from where it stopped. No hart may be running guest code."""
        with self._lock:
            if self.paused:
                self._set(self._time[1] - self._host_ns(), RUNNING)
        self._home.wake()

    def set(self, now: int) -> None:
        """Set guest time, ns, while paused; timers that are already due fire on `resume`."""
        with self._lock:
            if not self.paused or now < 0:
                raise InternalError(f"{self} cannot be set to {now} ns")
            self._set(self._time[0], now)

    def _set(self, offset: int, frozen: int) -> None:
        self._store(self.words_host + _OFFSET, offset)
        self._store(self.words_host + _FROZEN, frozen)
        self._time = (offset, frozen)

    # -- timers -------------------------------------------------------------------------------------------------------

    def timer(self, callback: Callable[[], None], name: str) -> Timer:
        """A timer that is not armed yet."""
        return Timer(self, callback, name)

    def next_deadline(self) -> int | None:
        """When the first armed timer is due, in ns of the host's clock; None while paused or when there is none."""
        with self._lock:
            offset, frozen = self._time
            if frozen >= 0 or not self._armed:
                return None
            return min(self._armed.values()) - offset

    def take_due(self) -> list[Callable[[], None]]:
        """Disarm the timers that are due and return their callbacks, earliest first."""
        with self._lock:
            if self.paused:
                return []
            now = self.now()
            due = sorted((t for t, at in self._armed.items() if at <= now), key=self._armed.__getitem__)
            for timer in due:
                del self._armed[timer]
        return [timer.callback for timer in due]

    def armed(self) -> list[tuple[str, int]]:
        """The armed timers' names, and in how many ns of guest time each is due, earliest first."""
        with self._lock:
            armed, now = list(self._armed.items()), self.now()
        return sorted(((timer.name, at - now) for timer, at in armed), key=lambda one: one[1])

    def _deadline(self, timer: Timer) -> int | None:
        with self._lock:
            return self._armed.get(timer)

    def _arm(self, timer: Timer, deadline: int) -> None:
        # A machine has some tens of timers, so the minimum is found by looking. A heap with lazy deletion would let a
        # guest that re-arms in a loop grow it without bound.
        with self._lock:
            first = min(self._armed.values(), default=None)
            self._armed[timer] = deadline
        if first is None or deadline < first:
            self._home.wake()

    def _cancel(self, timer: Timer) -> None:
        with self._lock:
            self._armed.pop(timer, None)
