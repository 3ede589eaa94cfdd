"""Deterministic stand-ins for what devices are wired to: wire, I/O thread, clock, serial line."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vmm.errors import InternalError
from vmm.fabric.clock import Clock, TimerSource
from vmm.host.chardev import FrontEnd


class FakeWire:
    """A wire that keeps every change of its level, in order."""

    def __init__(self) -> None:
        self.changes: list[bool] = []

    def __repr__(self) -> str:
        return f"<FakeWire {'high' if self.level else 'low'} after {len(self.changes)} changes>"

    @property
    def level(self) -> bool:
        return bool(self.changes) and self.changes[-1]

    def set(self, level: bool) -> None:
        if level != self.level:
            self.changes.append(level)


class FakeIoThread:
    """An I/O thread without a thread: `run` does, on the caller's, what there is to do now. `around` is held while
    callbacks run, as by the real one."""

    def __init__(self, name: str = "io", *, around: AbstractContextManager[Any] | None = None) -> None:
        self.name = name
        self._around: AbstractContextManager[Any] = nullcontext() if around is None else around
        self._soon: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._timers: list[TimerSource] = []

    def run(self, turns: int = 10_000) -> None:
        """Go on until nothing is posted, readable, writable or due. Raises InternalError after `turns` rounds."""
        for _ in range(turns):
            if not self._turn():
                return
        raise InternalError(f"{self.name} finds no end: a descriptor stays ready, or calls post each other")

    def _turn(self) -> bool:
        ready = self._ready()
        with self._around:
            for callbacks, fd in ready:
                # Looked up again each time, as the real one does: an earlier callback may have taken it away.
                if callback := callbacks.get(fd):
                    callback()
            soon = list(self._soon)
            for _ in soon:
                function, arguments = self._soon.popleft()
                function(*arguments)
            due = [callback for timers in self._timers for callback in timers.take_due()]
            for callback in due:
                callback()
        return bool(ready or soon or due)

    def _ready(self) -> list[tuple[dict[int, Callable[[], None]], int]]:
        """The descriptors that can be read or written now, each with the callbacks that it has one among."""
        ready = []
        poll = select.poll()
        for fd in dict.fromkeys((*self._readers, *self._writers)):  # in order, unlike a set
            wanted = (select.POLLIN if fd in self._readers else 0) | (select.POLLOUT if fd in self._writers else 0)
            poll.register(fd, wanted)
        for fd, events in poll.poll(0):
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and fd in self._readers:
                ready.append((self._readers, fd))
            if events & (select.POLLOUT | select.POLLHUP | select.POLLERR) and fd in self._writers:
                ready.append((self._writers, fd))
        return ready

    @property
    def is_home(self) -> bool:
        return True

    def assert_home(self) -> None:
        """Everything happens on the test's thread."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self._readers.pop(fd, None)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self._writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        self._writers.pop(fd, None)

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((function, arguments))

    def add_timers(self, timers: TimerSource) -> None:
        self._timers.append(timers)

    def wake(self) -> None:
        """It looks at everything whenever it runs."""


class FakeClock(Clock):
    """A clock that a test moves by hand. It starts running, at `start` ns."""

    def __init__(self, home: FakeIoThread | None = None, start: int = 0) -> None:
        self._host_now = 1_000_000_000_000
        self._io = home or FakeIoThread()
        super().__init__(self._io, start=start, name="fake", host_ns=lambda: self._host_now)
        self.resume()

    def advance(self, ns: int) -> None:
        """Let `ns` pass. Each timer fires at its own time, and sees that time."""
        self._io.run()
        until = self._host_now + ns
        while (deadline := self.next_deadline()) is not None and deadline <= until:
            self._host_now = max(deadline, self._host_now)
            self._io.run()
        self._host_now = until
        self._io.run()


class FakeLine:
    """The host's end of a serial line: it keeps what was sent and sends what it is told to."""

    def __init__(self) -> None:
        self.congested = False
        self.sent = bytearray()
        self.lost_bytes = 0
        self._front: FrontEnd | None = None
        self._waiting = bytearray()

    def connect(self, front: FrontEnd) -> None:
        self._front = front

    def put(self, data: bytes) -> None:
        self.sent += data

    def lost(self, count: int) -> None:
        self.lost_bytes += count

    def input_ready(self) -> None:
        """Real lines post this to their home thread; here the test calls `pump`."""

    def type(self, data: bytes) -> None:
        """Have `data` arrive; what the device has no room for waits for `pump`."""
        self._waiting += data
        self.pump()

    def pump(self) -> None:
        """Offer what waits."""
        if self._front and self._waiting:
            del self._waiting[: self._front.receive(bytes(self._waiting))]

    @property
    def waiting(self) -> int:
        """Bytes of input that the device has not taken yet."""
        return len(self._waiting)

    def relieve(self) -> None:
        """End a congestion and say so."""
        self.congested = False
        if self._front:
            self._front.output_ready()
