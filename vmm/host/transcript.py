"""What a guest printed, kept in memory for programs and tests that wait for something in it."""

from __future__ import annotations

import re
import threading
import time
from typing import Final

from vmm.errors import VmmError


class ExpectError(VmmError):
    """The guest did not print what was expected: time ran out, or the machine stopped."""


class Transcript:
    """Output to look at and to wait for. The last `keep` bytes are kept."""

    _PACE_S: Final = 0.01
    """Least time between two searches of one `expect`: a guest prints byte by byte, and a search costs more."""

    def __init__(self, *, keep: int = 4 << 20) -> None:
        self._keep = keep
        # Rank LEAF; guards all below. `_changed` signals more output, or the end.
        self._changed = threading.Condition(threading.Lock())
        self._waiters = 0
        self._output = bytearray()
        self._fed = 0
        self._matched = 0  # in bytes since the beginning, as `_fed`
        self._ended = threading.Event()

    def feed(self, data: bytes) -> None:
        """The guest printed `data`. Never blocks; a device's lock may be held."""
        with self._changed:
            self._output += data
            self._fed += len(data)
            if len(self._output) > self._keep + self._keep // 4:
                del self._output[: -self._keep]
            if self._waiters:
                self._changed.notify_all()

    def end(self) -> None:
        """There will be no more."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self) -> bytes:
        """What is kept of the output so far."""
        with self._changed:
            return bytes(self._output)

    @property
    def text(self) -> str:
        """The same as text; what is not UTF-8 is replaced."""
        return self.output.decode(errors="replace")

    @property
    def forgotten(self) -> int:
        """Bytes that came before what is kept."""
        with self._changed:
            return self._fed - len(self._output)

    def expect(self, pattern: str | bytes | re.Pattern[bytes], timeout: float = 60.0) -> re.Match[bytes]:
        """Wait until the output behind the last match matches the regular expression `pattern`; return the match.

        Raises ExpectError, with the end of the output, after `timeout` seconds or when there will be no more.
        """
        regex = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + timeout
        while True:
            ended = self._ended.is_set()
            with self._changed:
                fed = self._fed
                start = max(self._matched, fed - len(self._output))
                unmatched = bytes(self._output[start - fed :]) if start < fed else b""
            if match := regex.search(unmatched):  # not under the lock, for it may take long
                self._matched = start + match.end()
                return match
            left = deadline - time.monotonic()
            if ended or left <= 0:
                why = "the machine stopped" if ended else f"{timeout:g} s passed"
                tail = self.output[-500:].decode(errors="replace")
                raise ExpectError(f"{why} without {regex.pattern!r} on the console, which ends in:\n{tail}")
            with self._changed:
                self._waiters += 1
                if self._fed == fed and not self._ended.is_set():
                    self._changed.wait(left)
                self._waiters -= 1
            self._ended.wait(min(self._PACE_S, max(0.0, deadline - time.monotonic())))
