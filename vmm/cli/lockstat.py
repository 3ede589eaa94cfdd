"""What `--lock-stat` measured: as tables on standard error, or as JSON in a file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmm.cli.files import WholeFile
from vmm.errors import ConfigError, HostError
from vmm.machine.machine import Machine

OPTION = "--lock-stat"

_COUNTS = ("acquired", "contended", "hand-offs")
_MOST = 6
_TIMES = ("total", "p50", "p99", "max")


class LockFigures:
    """Inside the `with` block the machine runs. At its end, however that comes, the figures are told."""

    def __init__(self, to: str) -> None:
        """ "-" for tables, or a file for JSON. The block begins by making sure that it can be written."""
        self.machine: Machine | None = None
        self._files = contextlib.ExitStack()
        self._path = None if to == "-" else Path(to)
        self._file = WholeFile(OPTION, self._path) if self._path else None

    def __enter__(self) -> Self:
        if self._file:
            self._files.enter_context(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._files:
            self._tell(self._file)

    def show(self) -> None:
        """Tell them now; any thread. A file that cannot be written is told too, and the run goes on."""
        try:
            with WholeFile(OPTION, self._path) if self._path else contextlib.nullcontext() as file:
                self._tell(file)
        except (ConfigError, HostError) as error:
            print(f"vmm-run: {error}", file=sys.stderr, flush=True)

    def _tell(self, file: WholeFile | None) -> None:
        if self.machine is None:
            return
        figures = self.machine.lock_statistics()
        if file is None:
            print(table(figures), file=sys.stderr, flush=True)
        else:
            file.write(json.dumps(figures, indent=1).encode() + b"\n")


def table(figures: Mapping[str, Any]) -> str:
    """What `Meter.report` says, for a terminal."""
    return "\n".join(_lines(figures))


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    locks = [lock for lock in figures["locks"] if lock["acquired"]]
    unused = [lock["name"] for lock in figures["locks"] if not lock["acquired"]]
    shared = any(lock["around"] for lock in locks)
    yield "Locks" + (" (of those marked *, the exclusion is the big lock's)" if shared else "")
    head = ("lock", "class", *_COUNTS, *(f"wait {time}" for time in _TIMES), *(f"hold {time}" for time in _TIMES))
    yield from _table(
        head, [(lock["name"] + "*" * bool(lock["around"]), lock["class"], *_counts(lock)) for lock in locks]
    )
    if unused:
        yield f"  never taken: {', '.join(unused)}"
    names = [lock["class"] for lock in locks]
    several = {name: of for name, of in figures["classes"].items() if names.count(name) > 1}
    if several:
        yield ""
        yield "Classes of several locks"
        yield from _table(("class", *head[2:]), [(name, *_counts(of)) for name, of in several.items()], texts=1)
    for title, key in (("cause", "causes"), ("call site", "sites")):
        yield ""
        yield f"By {title}" + f" (at most {_MOST} each, but all that were waited at)" * (key == "sites")
        rows = [(lock["name"], name, *_counts(group)) for lock in locks for name, group in _worth_showing(lock[key])]
        yield from _table(("lock", title, *head[2:]), rows)
    held = [
        (lock["name"], by["thread"], by["site"], str(by["count"]), *_times(by))
        for lock in locks
        for by in sorted(lock["blockers"], key=lambda by: -by["total_ns"])
    ]
    if held:
        yield ""
        yield "Who held a lock when others began to wait for it"
        yield from _table(("lock", "thread", "call site", "waits", *_TIMES), held, texts=3)
    if figures["outside_guest"]:
        yield ""
        yield "Time outside the guest"
        rows = []
        for name, whole in figures["outside_guest"].items():
            rows.append((name, "all", str(whole["count"]), *_times(whole)))
            rows += [(name, cause, str(part["count"]), *_times(part)) for cause, part in whole["causes"].items()]
        yield from _table(("hart", "cause", "times", *_TIMES), rows)
    if figures["waits"]:
        yield ""
        yield "Waits for others' progress"
        rows = [(name, str(times["count"]), *_times(times)) for name, times in figures["waits"].items()]
        yield from _table(("for", "times", *_TIMES), rows, texts=1)


def _worth_showing(groups: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The most frequent and all that were waited at; JSON has the rest too."""
    return ((name, of) for at, (name, of) in enumerate(groups.items()) if at < _MOST or of["contended"])


def _counts(of: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(f"{of[key]:,}" for key in ("acquired", "contended", "handoffs")),
        *(_times(of["wait"]) if of["contended"] else ("",) * len(_TIMES)),
        *_times(of["hold"]),
    )


def _times(of: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_time(of[key]) for key in ("total_ns", "p50_ns", "p99_ns", "max_ns"))


def _time(ns: int) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns / size:,.0f} {unit}"
    return f"{ns} ns"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 2) -> Iterator[str]:
    """Columns as wide as they must be; the first `texts` to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [
            f"{cell:<{width}}" if at < texts else f"{cell:>{width}}"
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
