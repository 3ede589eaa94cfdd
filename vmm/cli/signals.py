"""SIGINT, SIGTERM and SIGHUP as events: a thread waits for them, and no other thread is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

WATCHED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class Signals:
    """Inside the `with` block the signals are blocked for this thread and all that it starts.

    The first one calls `stop(number)` on a thread of its own. A second one means that stopping hangs: after `restore()`
    the process ends at once. Signals in `asked` call what they are for, as often as they come.
    """

    def __init__(
        self,
        stop: Callable[[signal.Signals], None],
        restore: Callable[[], None],
        asked: Mapping[signal.Signals, Callable[[], None]] | None = None,
    ) -> None:
        self.received: signal.Signals | None = None
        self._stop = stop
        self._restore = restore
        self._asked = asked or {}
        self._watched = WATCHED | self._asked.keys()
        self._leaving = False
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)

    def __enter__(self) -> Self:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        signal.pthread_kill(self._thread.ident or 0, signal.SIGHUP)
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _watch(self) -> None:
        while True:
            number = signal.Signals(signal.sigwait(self._watched))
            if self._leaving:
                return
            if number in self._asked:
                self._asked[number]()
                continue
            if self.received is not None:
                self._restore()
                os._exit(128 + number)
            self.received = number
            self._stop(number)
