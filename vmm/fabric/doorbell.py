"""Doorbells: an eventfd that native code rings on a VCPU's thread, and a callback that answers on the home thread.

Rings that come before the answer are one ring: whoever answers looks at the queue, not at a count.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Final, Protocol


class Home(Protocol):
    """The thread that answers: `vmm.fabric.iothread.IoThread`, or a test's."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...

    def remove_reader(self, fd: int) -> None: ...

    def assert_home(self) -> None: ...


class Doorbell:
    """Runs `callback` on `home` after `fd` was written to, by `ring`, by generated code or by another process."""

    def __init__(self, home: Home, callback: Callable[[], None], name: str) -> None:
        self.name: Final = name
        self.fd: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self.fd)  # at the latest with the last reference
        self._home = home
        self._callback = callback
        home.add_reader(self.fd, self._rung)

    def __repr__(self) -> str:
        return f"<Doorbell {self.name} fd {self.fd}>"

    def ring(self) -> None:
        """Ring from any thread; never blocks."""
        os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """On the home thread, once nobody rings any more (see `Bus.retire`): a closed descriptor's number is reused."""
        self._home.assert_home()
        self._home.remove_reader(self.fd)
        self._close()

    def _rung(self) -> None:
        # Emptied before the callback looks at its queue: a ring that comes after the look is answered again.
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return
        self._callback()
