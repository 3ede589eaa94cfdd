"""The I/O thread: file descriptors, timers and posted calls, one after the other on one thread.

Callbacks hold nothing when they start and must not block; what blocks goes to `Workers`. The thread sleeps in
epoll_pwait2() until something is due, so an idle machine's I/O thread uses no CPU. (Where that call is missing its
timers fire at whole milliseconds, rounded up: epoll_wait() knows no finer.)

Before it sleeps it looks, and looking keeps the GIL. A look that gave it up for a microsecond each turn would starve
whoever waits for it: each release wakes the waiter, which needs 40 us to wake, finds the GIL taken, and starts its
waiting time anew, so it never gets to ask for it (VCPUs waited up to 1.6 s: docs/adr/0001-first-measurement.md).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import DeadlineError, InternalError
from vmm.fabric.clock import TimerSource
from vmm.fabric.doorbell import Doorbell
from vmm.fabric.threads import name_os_thread, wait_exactly
from vmm.locks import PLAIN, Kit, Thread
from vmm.waitfor import Sighting

if TYPE_CHECKING:
    from vmm.lockstat import Meter

_LONGEST_SLEEP_S: Final = 3600.0
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
_WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR

_EVENT: Final = struct.Struct("<III")  # struct epoll_event, packed on x86-64: events, and 64 bits of ours: the fd
_MOST_EVENTS: Final = 64
_epoll_wait: Final = ctypes.PyDLL(None).epoll_wait
_epoll_wait.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
_epoll_pwait2: Final = getattr(ctypes.CDLL(None, use_errno=True), "epoll_pwait2", None)  # glibc 2.35, Linux 5.11

Callback = Callable[[], None]


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@dataclass(frozen=True, slots=True)
class IoStatistics:
    """What an I/O thread has done so far, and what it is doing now."""

    turns: int
    """Times it woke."""
    callbacks: int
    busy_ns: int
    """Time spent in callbacks."""
    longest_ns: int
    longest: str
    """The callback that took `longest_ns`."""
    running: str
    """The callback that runs now, empty when none does."""


@dataclass(slots=True)
class _Interest:
    reader: Callback | None = None
    writer: Callback | None = None

    def mask(self) -> int:
        return (select.EPOLLIN if self.reader else 0) | (select.EPOLLOUT if self.writer else 0)


def _print_traceback(error: BaseException) -> None:
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


class IoThread:
    """A home for callbacks. All of its methods may be called by any thread, except where they say otherwise.

    `on_error(exception)` is told, on this thread, of a callback that raised; the thread goes on. `around` is held while
    callbacks run, and not while the thread sleeps (`Locking.outside_guest`: the big lock, under that policy).
    """

    def __init__(
        self,
        name: str,
        *,
        on_error: Callable[[BaseException], None] = _print_traceback,
        around: AbstractContextManager[Any] | None = None,
        kit: Kit = PLAIN,
        may_block: bool = False,
    ) -> None:
        """`may_block`: a callback that takes long is no hang, as on a thread that waits for one disk."""
        self.name: Final = name
        self._may_block = may_block
        self._kit = kit
        self.progress: Final = kit.progress(f"callbacks of {name}", "I/O callbacks")
        """Whoever waits for what only a callback brings about waits for this."""
        self._on_error = on_error
        self._around: AbstractContextManager[Any] = nullcontext() if around is None else around
        self._epoll = select.epoll()
        self._events = ctypes.create_string_buffer(_MOST_EVENTS * _EVENT.size)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        # Closed with the last reference, not in stop(): late callers must never write to a number that was reused.
        weakref.finalize(self, os.close, self._wake_fd)
        # Rank LEAF; guards `_interests` together with what epoll was told. Nothing is called under it.
        self._lock = threading.Lock()
        self._interests: dict[int, _Interest] = {}
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._timers: tuple[TimerSource, ...] = ()
        # True from a wake() until the thread has taken note of it; spares an eventfd write for each call in a burst.
        # The thread clears it before it looks at its queues, and callers fill the queues before they test it.
        self._woken = False
        self._stopping = False
        self._thread: Thread | None = None
        self._turns = self._callbacks = self._busy_ns = self._longest_ns = 0
        self._longest = self._running = ""

    def __repr__(self) -> str:
        state = "not started" if self._thread is None else self._running or "asleep"
        return f"<IoThread {self.name}: {state}>"

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. What was posted or registered before is served first."""
        if self._thread is not None:
            raise InternalError(f"{self} was started before")
        self._thread = self._kit.thread(self._main, self.name)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Serve what has been posted so far and end the thread. Not from the thread itself.

        Raises DeadlineError, naming the culprit, when a callback does not return within `timeout` seconds.
        """
        if self.is_home:
            raise InternalError(f"{self} cannot wait for itself")
        self._stopping = True
        self.wake()
        if self._thread is not None:
            with self.progress.waiting():
                self._thread.join(timeout)
            if self._thread.is_alive():
                raise DeadlineError(f"{self.name} did not stop within {timeout:g} s: it is still in {self._running}")

    @property
    def ident(self) -> int | None:
        """The thread's, once it was started."""
        return self._thread.ident if self._thread else None

    @property
    def is_home(self) -> bool:
        """Whether the caller runs on this thread."""
        return self._thread is not None and self._thread.ident == threading.get_ident()

    def assert_home(self) -> None:
        """Raise InternalError, or have the checker report, when the caller runs on another thread than this one. Before
        it is started any thread may do its work."""
        if self._thread is not None and not self.is_home:
            self._kit.away_from_home(f"work of {self.name}", self.name)

    def tell(self, sighting: Sighting) -> None:
        """Who waits for this thread, and the callback it is in."""
        running = self._running
        self.progress.tell(sighting)
        sighting.hold(self.ident, self.progress.name, f"it is in {running}" if running else "it is between callbacks")
        if running and not self._may_block:
            sighting.stay(self.ident, f"in the callback {running}", self._callbacks)

    def statistics(self) -> IoStatistics:
        return IoStatistics(self._turns, self._callbacks, self._busy_ns, self._longest_ns, self._longest, self._running)

    # -- what to wait for ---------------------------------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is readable, or its peer has gone.

        Raises PermissionError for files that cannot be waited for (regular ones, /dev/null).
        """
        with self._lock:
            interest = self._interests.get(fd, _Interest())
            self._register(fd, _Interest(callback, interest.writer))

    def remove_reader(self, fd: int) -> None:
        """Stop that. On any other thread than this one, a call already under way may still be running."""
        with self._lock:
            interest = self._interests.get(fd, _Interest())
            self._register(fd, _Interest(None, interest.writer))

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` can be written to, or its peer has gone. Raises as `add_reader`."""
        with self._lock:
            interest = self._interests.get(fd, _Interest())
            self._register(fd, _Interest(interest.reader, callback))

    def remove_writer(self, fd: int) -> None:
        """Stop that. On any other thread than this one, a call already under way may still be running."""
        with self._lock:
            interest = self._interests.get(fd, _Interest())
            self._register(fd, _Interest(interest.reader, None))

    def _register(self, fd: int, interest: _Interest) -> None:
        known = fd in self._interests
        if interest.mask():
            (self._epoll.modify if known else self._epoll.register)(fd, interest.mask())
            self._interests[fd] = interest
        elif known:
            self._epoll.unregister(fd)
            del self._interests[fd]

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function(*arguments)` on this thread, after what was posted before."""
        self._soon.append((function, arguments))
        self.wake()

    def add_timers(self, timers: TimerSource) -> None:
        """Sleep for `timers` too; they call `wake` when their next deadline has come closer."""
        with self._lock:
            self._timers += (timers,)
        self.wake()

    def wake(self) -> None:
        """Have the thread look at its queues and timers again."""
        if not self._woken and not self.is_home:
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        name_os_thread(self.name)
        wait_exactly()
        while not (self._stopping and not self._soon):
            sleep = self._sleep_s()
            ready = self._look() or (self._sleep(sleep) if sleep else [])
            with self.progress.serving(), self._around:
                self._turn(ready)

    def _look(self) -> list[tuple[int, int]]:
        """What is ready now, as (fd, events)."""
        return self._found(_epoll_wait(self._epoll.fileno(), self._events, _MOST_EVENTS, 0))

    def _found(self, found: int) -> list[tuple[int, int]]:
        events = memoryview(self._events)[: max(found, 0) * _EVENT.size]
        return [(fd, mask) for mask, fd, _ in _EVENT.iter_unpack(events)]

    def _sleep(self, seconds: float) -> list[tuple[int, int]]:
        if _epoll_pwait2 is not None:
            whole = int(seconds)
            timeout = _TimeSpec(whole, int((seconds - whole) * 1e9))
            found = _epoll_pwait2(
                self._epoll.fileno(), self._events, _MOST_EVENTS, ctypes.byref(timeout), None, ctypes.c_size_t(0)
            )
            if found >= 0 or ctypes.get_errno() == errno.EINTR:
                return self._found(found)
        return self._epoll.poll(seconds)  # to whole milliseconds, rounded up

    def _sleep_s(self) -> float:
        if self._soon or self._stopping:
            return 0
        deadlines = [at for timers in self._timers if (at := timers.next_deadline()) is not None]
        if not deadlines:
            return _LONGEST_SLEEP_S
        return min(max(0, min(deadlines) - time.monotonic_ns()) / 1e9, _LONGEST_SLEEP_S)

    def _turn(self, ready: list[tuple[int, int]]) -> None:
        self._turns += 1
        for fd, events in ready:
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                self._woken = False
                continue
            # Looked up again each time: an earlier callback of this turn may have taken the registration away.
            if events & _READABLE and (interest := self._interests.get(fd)) and interest.reader:
                self._ready(interest.reader)
            if events & _WRITABLE and (interest := self._interests.get(fd)) and interest.writer:
                self._ready(interest.writer)
        for _ in range(len(self._soon)):
            function, arguments = self._soon.popleft()
            self._posted(function, *arguments)
        for timers in self._timers:
            for callback in timers.take_due():
                self._due(callback)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        self._running = name = _name(function)
        began = time.perf_counter_ns()
        try:
            function(*arguments)
        except BaseException as e:
            self._report(e)
        spent = time.perf_counter_ns() - began
        self._running = ""
        self._callbacks += 1
        self._busy_ns += spent
        if spent > self._longest_ns:
            self._longest_ns, self._longest = spent, name

    # One function under three names, by what it is called for: a variant tells them apart.
    _ready = _posted = _due = _call

    def _report(self, error: BaseException) -> None:
        try:
            self._on_error(error)
        except BaseException:  # the last reporter there is, and the thread must outlive it
            sys.excepthook(*sys.exc_info())


class MeteredIoThread(IoThread):
    """One that says, to a meter, what it calls back for and when it sleeps."""

    def __init__(self, name: str, *, meter: Meter, **more: Any) -> None:
        super().__init__(name, **more)
        self._meter = meter

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        super().call_soon(function, f"posted by {self._meter.here.activity.kind}", *arguments)

    def _sleep(self, seconds: float) -> list[tuple[int, int]]:
        began = time.perf_counter_ns()
        ready = super()._sleep(seconds)
        if track := self._meter.here.activity.track:
            track.span("idle", "idle", began, time.perf_counter_ns())
        return ready

    def _ready(self, function: Callable[..., None]) -> None:
        self._call_for("doorbell" if isinstance(getattr(function, "__self__", None), Doorbell) else "I/O", function)

    def _posted(self, function: Callable[..., None], *arguments: Any) -> None:
        cause, *rest = arguments
        self._call_for(cause, function, *rest)

    def _due(self, function: Callable[..., None]) -> None:
        self._call_for("timer", function)

    def _call_for(self, cause: str, function: Callable[..., None], *arguments: Any) -> None:
        activity = self._meter.here.activity
        activity.cause, began = cause, time.perf_counter_ns()
        self._call(function, *arguments)
        activity.cause = activity.kind
        if activity.track is not None:
            activity.track.span(_name(function), cause, began, time.perf_counter_ns())


def io_thread(name: str, *, kit: Kit = PLAIN, **more: Any) -> IoThread:
    """An I/O thread in the variant that goes with `kit`."""
    meter = kit.meter
    return IoThread(name, kit=kit, **more) if meter is None else MeteredIoThread(name, kit=kit, meter=meter, **more)


def _name(function: Callable[..., None]) -> str:
    return getattr(function, "__qualname__", "") or repr(function)
