"""How long work tells that it is still going on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

#: Called with what is being done and how much of it is done, 0.0 to 1.0, or None where that cannot be known.
#: The last call of a step has 1.0.
Progress = Callable[[str, float | None], None]

BAR_CELLS = 30


def silent(step: str, done: float | None) -> None:
    """Progress for nobody."""


class TextProgress:
    """A bar on a terminal; elsewhere one line per step."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._announced = ""
        self._drawn = ""

    def __call__(self, step: str, done: float | None) -> None:
        if self._terminal:
            self._draw(step, done)
        elif step != self._announced:
            print(step, file=self._stream, flush=True)
        self._announced = step

    def _draw(self, step: str, done: float | None) -> None:
        if done is None:
            line = f"{step} ..."
        else:
            line = f"{step}  [{'#' * int(done * BAR_CELLS):<{BAR_CELLS}}] {done:4.0%}"
        if line == self._drawn:
            return
        print(f"\r\x1b[K{line}", end="\n" if done == 1.0 else "", file=self._stream, flush=True)
        self._drawn = line
