"""A timeline of what each thread did, as a file for ui.perfetto.dev or chrome://tracing.

The file is a JSON array of complete events (the Trace Event Format's "X"), so that no span is ever half open. Threads
fill buffers of their own; one writer turns them into text. After each write the file is a whole array again, since the
next one begins by overwriting the closing bracket: it loads also while the run goes on, or after it was killed.

Memory is bounded: when the writer falls behind by `MOST_WAITING` buffers, whole buffers are dropped, and counted.
"""

from __future__ import annotations

import json
import os
import queue
import stat
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

from vmm.errors import ConfigError

BUFFER: Final = 1024
"""Spans that a thread keeps before it hands them to the writer."""
MOST_WAITING: Final = 64
"""Buffers that may wait for the writer."""
_END: Final = b"\n]\n"

Span: TypeAlias = tuple[str, str, int, int, Mapping[str, object] | None]
"""Name, category, begin and end in ns of perf_counter_ns(), and whatever else is worth showing."""


class Track:
    """What one thread did. Only that thread calls `span`."""

    __slots__ = ("_timeline", "head", "name", "spans")

    def __init__(self, timeline: Timeline, name: str) -> None:
        self._timeline = timeline
        self.name: Final = name
        self.head: Final = f'"pid":{os.getpid()},"tid":{threading.get_native_id()}'
        self.spans: list[Span] = []

    def __repr__(self) -> str:
        return f"<Track {self.name}, {len(self.spans)} spans not handed over>"

    def span(
        self, name: str, category: str, began: int, ended: int, details: Mapping[str, object] | None = None
    ) -> None:
        """Note what has just ended. Spans of one thread lie inside one another, or apart."""
        self.spans.append((name, category, began, ended, details))
        if len(self.spans) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        spans, self.spans = self.spans, []
        self._timeline.hand_over(self, spans)


class Timeline:
    """One file. `begin` empties it and starts the writer, `close` ends it; before `begin` nothing is touched."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError when the file cannot be written."""
        self._path = path
        self._new = not Path(path).exists()
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"--trace {path}: {error.strerror}: give a file that can be written") from None
        self._in_place = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._zero = time.perf_counter_ns()
        self._begun = False
        self._written = 0  # bytes, without `_END`
        self._waiting: queue.Queue[tuple[Track, list[Span]] | None] = queue.Queue(MOST_WAITING)
        # Rank LEAF; guards `_tracks` and `dropped`. Nothing is called under it.
        self._lock = threading.Lock()
        self._tracks: list[Track] = []
        self.dropped = 0
        """Spans for which there was no room."""
        self._cut = ""
        self._closed = False
        self._writer = threading.Thread(target=self._write_all, name="trace", daemon=True)

    def __repr__(self) -> str:
        state = "not begun" if not self._begun else self._cut or f"{self._written} bytes"
        return f"<Timeline {self._path}: {state}, {self._waiting.qsize()} buffers wait>"

    def statistics(self) -> dict[str, object]:
        return {"written": self._written, "waiting": self._waiting.qsize(), "dropped": self.dropped}

    @property
    def problem(self) -> str:
        """What the file lacks, in a line; empty if nothing."""
        dropped = f"{self.dropped} spans are missing: they came faster than they could be written" * bool(self.dropped)
        return "; ".join(filter(None, (self._cut, dropped)))

    def track(self, name: str) -> Track:
        """The calling thread's."""
        track = Track(self, name)
        with self._lock:
            self._tracks.append(track)
        return track

    def begin(self) -> None:
        self._begun = True
        if self._in_place:
            os.ftruncate(self._fd, 0)
        self._writer.start()

    def close(self) -> None:
        """Write what the threads still have and end the file. One that never began is left as it was found."""
        if self._closed:
            return
        self._closed = True
        if not self._begun:
            os.close(self._fd)
            if self._new:
                os.unlink(self._path)
            return
        with self._lock:
            tracks, self._tracks = self._tracks, []
        for track in tracks:
            self._waiting.put((track, track.spans))
        self._waiting.put(None)
        self._writer.join()
        os.close(self._fd)

    def hand_over(self, track: Track, spans: list[Span]) -> None:
        """Give the writer what a thread has noted; never waits."""
        try:
            self._waiting.put_nowait((track, spans))
        except queue.Full:
            with self._lock:
                self.dropped += len(spans)

    # -- the writer's thread ------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        named: set[str] = set()
        while (buffer := self._waiting.get()) is not None:
            track, spans = buffer
            if self._cut or not spans:
                continue
            rows = [_row(track.head, span, self._zero) for span in spans]
            if track.head not in named:
                named.add(track.head)
                rows.append(f'{{"ph":"M","name":"thread_name",{track.head},"args":{{"name":{_quoted(track.name)}}}}}')
            self._write(",\n".join(rows))
        if not self._cut:
            self._write("")

    def _write(self, rows: str) -> None:
        """Add rows; leave a whole array."""
        lead = b"[\n" if not self._written else b",\n" if rows else b""
        text = lead + rows.encode()
        try:
            if self._in_place:
                self._put(text + _END, self._written)
            else:
                self._stream(text if rows else text + _END)
            self._written += len(text)
        except OSError as error:
            self._cut = f"{error.strerror}: the trace is cut after {self._written} bytes"
            self._mend()

    def _put(self, data: bytes, at: int) -> None:
        while data:
            done = os.pwrite(self._fd, data, at)
            data, at = data[done:], at + done

    def _stream(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _mend(self) -> None:
        """Take half a write back. The end goes in before the file is cut: it needs no room that is not there."""
        if not self._in_place:
            return
        try:
            if self._written:
                os.pwrite(self._fd, _END, self._written)
                os.ftruncate(self._fd, self._written + len(_END))
            else:
                os.ftruncate(self._fd, 0)
        except OSError as error:
            self._cut += f", and could not be mended ({error.strerror})"


@lru_cache(1024)
def _quoted(text: str) -> str:
    return json.dumps(text)


def _row(head: str, span: Span, zero: int) -> str:
    name, category, began, ended, details = span
    more = f',"args":{json.dumps(details)}' if details else ""
    return (
        f'{{"ph":"X","name":{_quoted(name)},"cat":{_quoted(category)},{head},'
        f'"ts":{(began - zero) / 1e3:.3f},"dur":{(ended - began) / 1e3:.3f}{more}}}'
    )
