"""A program on plain threads, over and over: what stress finds without a scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tests.museum.exhibit import Program, Stage

HANG_S: Final = 2.0
"""How long threads may take in all before they are said to hang."""


class PlainStage(Stage):
    """Its threads start together and run as the host likes."""

    def __init__(self) -> None:
        self._gate = threading.Event()
        self._threads: list[threading.Thread] = []
        self._checks: list[Callable[[], object]] = []
        self._failures: list[str] = []

    def spawn(self, name: str, target: Callable[..., object], *args: Any) -> object:
        def run() -> None:
            self._gate.wait()
            try:
                target(*args)
            except BaseException as error:
                self._failures.append(f"{name}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def check(self, invariant: Callable[[], object]) -> object:
        self._checks.append(invariant)
        return invariant

    def run(self) -> str | None:
        """How it failed. Threads that hang are left behind."""
        self._gate.set()
        deadline = time.monotonic() + HANG_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hung := [thread.name for thread in self._threads if thread.is_alive()]:
            return f"{', '.join(hung)} hang"
        for invariant in self._checks:
            try:
                if invariant() is False:
                    return "a check at the end does not hold"
            except AssertionError as error:
                return f"at the end: {error}"
        return self._failures[0] if self._failures else None


def stress(program: Program, runs: int) -> tuple[int, str | None]:
    """How many runs there were, and how the last one failed; None after `runs` that did not."""
    for count in range(1, runs + 1):
        stage = PlainStage()
        program(stage)
        if failure := stage.run():
            return count, failure
    return runs, None
