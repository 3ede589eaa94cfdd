"""What a benchmark is doing, on standard error."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line that is overwritten at a terminal, one after the other elsewhere."""
    terminal = sys.stderr.isatty()
    print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


def done() -> None:
    """Takes the line away."""
    if sys.stderr.isatty():
        say("")
