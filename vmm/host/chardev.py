"""Character devices: where the bytes of a serial port go on the host, and where its input comes from.

A front-end (a UART, a virtio console) calls `put` with its lock held: the bytes join a queue, whose order is the order
in which the guest sent them, and the call returns. A thread of the character device takes them from there with blocking
writes, so a stopped terminal, a full pipe or a slow disk holds up that thread and nobody else. When the queue reaches
its bound the device is `congested`: the front-end keeps what it has and tells the guest to wait (the UART by leaving
THR not empty), and is told when to go on. What a guest sends in spite of that, or after the peer has gone, is counted.

Losers: non-blocking writes on the VCPU's thread need O_NONBLOCK, which is a property of the open file, would leak into
the shell that shares the terminal, and does nothing for files; posting the write for after the device's lock is free
lets two harts' bytes change places.

Input is read on the home thread, one chunk at a time, and offered to the front-end's door. What it has no room for
stays here, and nothing more is read until it asks.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from vmm.errors import HostError
from vmm.fabric.threads import name_os_thread
from vmm.host.transcript import Transcript

_CHUNK: Final = 4096
QUEUE_LIMIT: Final = 64 << 10
_PACE_S: Final = 0.001
"""How long the writing thread lets bytes gather. A guest prints byte by byte, and each wake-up of another Python thread
costs its VCPU more than the byte."""


class Home(Protocol):
    """The thread on which input is read: `vmm.fabric.iothread.IoThread`, or a test's."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...

    def remove_reader(self, fd: int) -> None: ...

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None: ...


class FrontEnd(Protocol):
    """The guest's side: doors, which are called on the home thread holding nothing."""

    def receive(self, data: bytes) -> int:
        """Input. Returns how much of it was taken; `input_ready` is called when there is room for the rest."""

    def line_break(self) -> None:
        """The user asked for a break condition."""

    def output_ready(self) -> None:
        """The device is not congested any more."""


@dataclass(frozen=True, slots=True)
class ChardevStatistics:
    """Bytes, each way. What was lost is never silent: `problem` says why."""

    sent: int
    waiting: int
    lost: int
    received: int
    problem: str


class Chardev:
    """A byte stream to and from the outside.

    This one has no other end: output goes into the transcript, if there is one, and input comes from `send` alone.
    """

    def __init__(self, name: str, home: Home, transcript: Transcript | None = None) -> None:
        self.name: Final = name
        self.transcript: Final = transcript
        self.congested = False
        """Read without a lock, by front-ends: the bound holds to within what they keep themselves."""
        self._home = home
        self._front: FrontEnd | None = None
        # Rank LEAF; guards `_queue`, `congested` and the counters. Nothing is called under it.
        self._lock = threading.Lock()
        self._queue = bytearray()
        self._sent = self._lost = self._received = 0
        self._problem = ""
        # Home thread only.
        self._input = bytearray()

    def __repr__(self) -> str:
        now = self.statistics()
        problem = f", {now.problem}" if now.problem else ""
        return f"<{type(self).__name__} {self.name}: {now.waiting} bytes waiting{problem}>"

    def connect(self, front: FrontEnd) -> None:
        """Give the guest's side, once, before the machine runs."""
        self._front = front
        self._home.call_soon(self._offer)

    def disconnect(self) -> None:
        """Leave the guest's side alone: it is on its way out. On the home thread; `close` may come from any then."""
        self._front = None
        self._stop_reading()

    def close(self, timeout: float = 2.0) -> None:
        """Deliver what is queued, waiting up to `timeout` seconds, and give everything back. What is left is lost.

        On the home thread, after it has stopped, or after `disconnect`.
        """
        if self.transcript:
            self.transcript.end()

    def send(self, data: bytes) -> None:
        """Have `data` arrive as input. Any thread; returns at once, and the guest takes it when it has room."""
        self._home.call_soon(self._arrived, data)

    def statistics(self) -> ChardevStatistics:
        with self._lock:
            return ChardevStatistics(self._sent, len(self._queue), self._lost, self._received, self._problem)

    # -- for the front-end: any thread, a device's lock may be held ---------------------------------------------------

    def put(self, data: bytes) -> None:
        """Queue output. Never blocks and never refuses: look at `congested` first."""
        if self.transcript:
            self.transcript.feed(data)
        self._deliver(data)

    def write(self, data: bytes) -> int:
        """Queue output unless congested; returns how many bytes were taken: all of them, or none."""
        if self.congested:
            return 0
        self.put(data)
        return len(data)

    def lost(self, count: int) -> None:
        """Account for `count` bytes that the guest sent although it was told to wait."""
        with self._lock:
            self._lost += count
            self._problem = self._problem or "the guest did not wait for a slow reader"

    def input_ready(self) -> None:
        """The front-end has room again."""
        self._home.call_soon(self._offer)

    def _deliver(self, data: bytes) -> None:
        with self._lock:
            self._sent += len(data)

    # -- input: home thread -------------------------------------------------------------------------------------------

    def _arrived(self, data: bytes) -> None:
        self._received += len(data)
        self._input += data
        self._offer()

    def _offer(self) -> None:
        while self._input and self._front:
            taken = self._front.receive(bytes(self._input[:_CHUNK]))
            del self._input[:taken]
            if not taken:
                return
        if self._front:
            self._want_input()

    def _want_input(self) -> None:
        """All input so far was taken: get more, if there is a source."""

    def _stop_reading(self) -> None:
        """Get no more."""

    def _uncongested(self) -> None:
        if self._front:
            self._front.output_ready()


class StreamChardev(Chardev):
    """Output to one file descriptor and input from another, either of which may be missing.

    The descriptors are left open unless `owned`. The queue's bound is `limit` bytes. `on_gone(problem)` is called on
    the home thread when the output's peer has gone or its file cannot be written.
    """

    def __init__(
        self,
        name: str,
        home: Home,
        transcript: Transcript | None = None,
        *,
        input_fd: int | None = None,
        output_fd: int | None = None,
        owned: bool = False,
        limit: int = QUEUE_LIMIT,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(name, home, transcript)
        self._limit = limit
        self._owned = [fd for fd in {input_fd, output_fd} if fd is not None] if owned else []
        self._on_gone = on_gone
        # Home thread only.
        self._input_fd = input_fd
        self._reading = False
        # Guarded by the lock: the writer has work and needs no new token; nobody takes output any more.
        self._writing = False
        self._dead = output_fd is None
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: there is work; False: end
        self._ending = threading.Event()
        self._writer: threading.Thread | None = None
        if output_fd is not None:
            self._writer = threading.Thread(target=self._write_out, args=(output_fd,), daemon=True)
            self._writer.start()

    def close(self, timeout: float = 2.0) -> None:
        super().close(timeout)
        self._stop_reading()
        self._input_fd = None
        writer, self._writer = self._writer, None
        if writer:
            self._ending.set()
            self._tokens.put(False)
            writer.join(timeout)
            if writer.is_alive():
                self._give_up(f"{self.name}: nobody took the rest of the output within {timeout:g} s")
                return  # its descriptor stays open under the write that hangs
        while self._owned:
            os.close(self._owned.pop())

    # -- output -------------------------------------------------------------------------------------------------------

    def _deliver(self, data: bytes) -> None:
        with self._lock:
            if self._dead:
                self._lost += len(data)
                return
            self._queue += data
            if len(self._queue) >= self._limit:
                self.congested = True
            if self._writing:
                return
            self._writing = True
        self._tokens.put(True)

    def _write_out(self, fd: int) -> None:
        name_os_thread(f"{self.name}-out")
        while self._tokens.get():
            while chunk := self._head():
                try:
                    self._wrote(os.write(fd, chunk))
                except BlockingIOError:  # somebody else made the open file non-blocking
                    poll = select.poll()
                    poll.register(fd, select.POLLOUT)
                    poll.poll()
                except OSError as e:
                    self._give_up(f"{self.name}: {e.strerror}")
            self._ending.wait(_PACE_S)

    def _head(self) -> bytes:
        """The bytes to write next; empty when there are none, and then `put` sends a token again."""
        with self._lock:
            self._writing = bool(self._queue)
            return bytes(self._queue[:_CHUNK])

    def _wrote(self, count: int) -> None:
        with self._lock:
            if self._dead:
                return
            del self._queue[:count]
            self._sent += count
            relieved = self.congested and len(self._queue) <= self._limit // 2
            if relieved:
                self.congested = False
        if relieved:
            self._home.call_soon(self._uncongested)

    def _give_up(self, problem: str) -> None:
        """Nobody takes output any more: what is queued and what follows is lost."""
        with self._lock:
            self._dead = True
            self._problem = problem
            self._lost += len(self._queue)
            self._queue.clear()
            self.congested = False
        self._home.call_soon(self._uncongested)
        if self._on_gone:
            self._home.call_soon(self._on_gone, problem)

    # -- input --------------------------------------------------------------------------------------------------------

    def _want_input(self) -> None:
        if self._input_fd is None or self._reading:
            return
        self._reading = True
        try:
            self._home.add_reader(self._input_fd, self._readable)
        except PermissionError:  # a regular file or /dev/null: always ready, and epoll will not have it
            self._home.call_soon(self._readable)

    def _stop_reading(self) -> None:
        if self._reading and self._input_fd is not None:
            self._reading = False
            self._home.remove_reader(self._input_fd)

    def _readable(self) -> None:
        if self._input_fd is None:
            return
        try:
            data = os.read(self._input_fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError as e:
            data = b""
            with self._lock:
                self._problem = self._problem or f"{self.name}: input: {e.strerror}"
        self._stop_reading()
        if data:
            self._arrived(data)
        else:
            self._input_fd = None  # end of file; output goes on


class FileChardev(StreamChardev):
    """Output to a file, which is emptied first. Raises HostError when it cannot be opened."""

    def __init__(self, path: Path, home: Home, transcript: Transcript | None = None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOCTTY
        super().__init__(f"file:{path}", home, transcript, output_fd=_open(path, flags, 0o644), owned=True)


class PipeChardev(StreamChardev):
    """A pair of FIFOs that exist already: input from PATH.in, output to PATH.out.

    They are opened for reading and writing, so that peers may come and go; without one, output waits.
    Raises HostError when they cannot be opened.
    """

    def __init__(self, path: Path, home: Home, transcript: Transcript | None = None) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY
        source = _open(Path(f"{path}.in"), flags)
        try:
            sink = _open(Path(f"{path}.out"), flags)
        except HostError:
            os.close(source)
            raise
        super().__init__(f"pipe:{path}", home, transcript, input_fd=source, output_fd=sink, owned=True)


class PtyChardev(StreamChardev):
    """A new pseudo terminal; `path` is what to open at the other end. Output waits for someone to read it."""

    def __init__(self, home: Home, transcript: Transcript | None = None) -> None:
        # The other end is kept open here too: without any opener, reading from this one fails at once.
        controller, self._other = os.openpty()
        tty.setraw(self._other)
        self.path: Final = os.ttyname(self._other)
        super().__init__(f"pty:{self.path}", home, transcript, input_fd=controller, output_fd=controller, owned=True)

    def close(self, timeout: float = 2.0) -> None:
        super().close(timeout)
        os.close(self._other)


def _open(path: Path, flags: int, mode: int = 0) -> int:
    try:
        return os.open(path, flags, mode)
    except OSError as e:
        raise HostError(f"{path}: {e.strerror}; a character device must be able to open it") from e
