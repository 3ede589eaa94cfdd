"""A pool of threads for calls that block: disk I/O, name lookups, anything the I/O thread must not wait for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from vmm.errors import DeadlineError, InternalError
from vmm.fabric.threads import name_os_thread
from vmm.locks import PLAIN, Kit, Thread
from vmm.waitfor import Sighting


class Posts(Protocol):
    """Where completions go: an `IoThread`, or a test's."""

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None: ...


Done = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """What a pool has done, and which calls are under way now, with the seconds since each began."""

    done: int
    waiting: int
    running: dict[str, float]


class Workers:
    """`size` threads named `name`0, `name`1, ... They start with the first `submit`."""

    def __init__(self, size: int, name: str, kit: Kit = PLAIN) -> None:
        self.name: Final = name
        self._kit = kit
        self.progress: Final = kit.progress(f"calls of {name}", "worker calls")
        """Whoever waits for what only a call brings about waits for this."""
        self._size = size
        self._jobs: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Done, Posts] | None]
        self._jobs = queue.SimpleQueue()
        # Rank LEAF; guards `_threads`, `_stopped`, `_running` and `_done`. Nothing is called under it.
        self._lock = threading.Lock()
        self._threads: list[Thread] = []
        self._stopped = False
        self._running: dict[int, tuple[str, str, float]] = {}  # thread ident -> its name, the call, since when (s)
        self._done = 0

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Workers {self.name}: {len(now.running)} of {self._size} busy, {now.waiting} calls waiting>"

    def submit(self, function: Callable[..., Any], *arguments: Any, done: Done, home: Posts) -> None:
        """Call `function(*arguments)` on a worker, then `done(result)` on `home`, or `done(exception)` if it raised."""
        with self._lock:
            if self._stopped:
                raise InternalError(f"{self.name} has been stopped")
            if not self._threads:
                names = [f"{self.name}{i}" for i in range(self._size)]
                self._threads = [self._kit.thread(self._main, name, (name,)) for name in names]
                for thread in self._threads:
                    thread.start()
            # Under the lock, too: behind the threads' ends, which `stop` queues, nobody would do it.
            self._jobs.put((function, arguments, done, home))

    def stop(self, timeout: float = 10.0) -> None:
        """Finish what was submitted and end the threads; their completions are posted, not awaited.

        Raises DeadlineError, naming the culprits, when calls do not return within `timeout` seconds.
        """
        with self._lock:
            self._stopped = True
            threads = self._threads
        for _ in threads:
            self._jobs.put(None)
        deadline = time.monotonic() + timeout
        with self.progress.waiting():
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            stuck = ", ".join(f"{what} for {s:.1f} s" for what, s in self.statistics().running.items())
            raise DeadlineError(f"{self.name} did not stop within {timeout:g} s: {stuck or 'threads are still ending'}")

    def tell(self, sighting: Sighting) -> None:
        """Who waits for the pool, and the calls its threads are in. Calls may take long: that is what it is for."""
        self.progress.tell(sighting)
        now = time.monotonic()
        with self._lock:
            running = list(self._running.items())
        for ident, (_, what, since) in running:
            sighting.hold(ident, self.progress.name, f"it is in {what} for {now - since:.1f} s")

    def busy(self) -> list[int]:
        """The threads that are in a call."""
        with self._lock:
            return list(self._running)

    def statistics(self) -> WorkerStatistics:
        now = time.monotonic()
        with self._lock:
            running = {f"{thread} in {what}": now - since for thread, what, since in self._running.values()}
            return WorkerStatistics(self._done, self._jobs.qsize(), running)

    def _main(self, name: str) -> None:
        name_os_thread(name)
        ident = threading.get_ident()
        while (job := self._jobs.get()) is not None:
            function, arguments, done, home = job
            with self._lock:
                self._running[ident] = (name, getattr(function, "__qualname__", repr(function)), time.monotonic())
            try:
                with self.progress.serving():
                    result = function(*arguments)
            except BaseException as e:
                result = e
            with self._lock:
                del self._running[ident]
                self._done += 1
            home.call_soon(done, result)
            del job, function, arguments, done, home, result
