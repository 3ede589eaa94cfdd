"""The museum's programs under other people's tools: `python -m tests.museum.foreign TOOL ID SIDE`, which prints JSON.

The tools are not installed beside this project: `benchmarks/locks/museum.py` gives each an environment of its own. They
schedule what Python's `threading` makes, so that the kit here makes locks, conditions and threads of that alone; the
devices, buses and gates on top are the same as under the seeded scheduler.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from tests.museum import catalogue
from tests.museum.exhibit import Program, Stage
from vmm.locks import Condition, DeviceLock, Rank, Thread
from vmm.machine import lifecycle

RUNS: Final = 1000
PATIENCE_S: Final = 10.0
BATCH: Final = 20
"""Runs of a tool that has no limit of time, between two looks at the clock."""
MOST_STEPS: Final = 100_000


class ToolLock:
    """What doors and checks want of a `DeviceLock`, on whatever `threading.RLock` is now."""

    def __init__(self, name: str, lock_class: str, rank: Rank) -> None:
        self.name, self.lock_class, self.rank = name, lock_class, rank
        self._lock = threading.RLock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._lock.acquire(blocking, timeout) if blocking else self._lock.acquire(False)

    def contend(self) -> Literal[True]:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


class Joinable:
    """A thread that the tool runs as one of its own."""

    ident = None

    def __init__(self, run: Callable[[], None], start: Callable[[Joinable], None]) -> None:
        self._start = start
        self._ended = threading.Event()
        self.run_it = run

    def start(self) -> None:
        self._start(self)

    def run(self) -> None:
        try:
            self.run_it()
        finally:
            self._ended.set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        return not self._ended.is_set()


class ToolStage(Stage):
    """Collects a program's threads for a tool that starts them itself."""

    def __init__(self, program: Program) -> None:
        self.threads: list[Callable[[], None]] = []
        self.failures: list[str] = []
        self._checks: list[Callable[[], object]] = []
        program(self)

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> DeviceLock:
        made: Any = ToolLock(name, lock_class or name, rank) if around is None else around
        return made  # type: ignore[no-any-return]

    def condition(self, name: str, condition_class: str | None = None) -> Condition:
        made: Any = threading.Condition(threading.Lock())
        return made  # type: ignore[no-any-return]

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> Thread:
        def run() -> None:
            target(*args)

        return Joinable(self._guarded(name, run), lambda thread: self.threads.append(thread.run))

    def spawn(self, name: str, target: Callable[..., object], *args: Any) -> object:
        self.threads.append(self._guarded(name, lambda: target(*args)))
        return None

    def check(self, invariant: Callable[[], object]) -> object:
        self._checks.append(invariant)
        return None

    def _guarded(self, name: str, run: Callable[[], object]) -> Callable[[], None]:
        def guarded() -> None:
            try:
                run()
            except Exception as error:
                self.failures.append(f"{name}: {type(error).__name__}: {error}")

        return guarded

    def holds(self) -> bool:
        if not self.failures:
            for invariant in self._checks:
                try:
                    if invariant() is False:
                        self.failures.append("a check at the end does not hold")
                except AssertionError as error:
                    self.failures.append(str(error))
        return not self.failures


def frontrun(program: Program, strategy: str) -> dict[str, Any]:
    import frontrun as tool  # type: ignore[import-not-found]

    count = len(ToolStage(program).threads)
    options: dict[str, Any] = {"max_executions": RUNS}
    if strategy == "random":
        options = {"max_attempts": RUNS, "max_ops": MOST_STEPS, "seed": 1}
    result = tool.explore(
        setup=lambda: ToolStage(program),
        workers=[lambda stage, index=index: stage.threads[index]() for index in range(count)],
        invariant=ToolStage.holds,
        strategy=strategy,
        clock="virtual",
        detect_io=False,
        reproduce_on_failure=0,
        total_timeout=PATIENCE_S,
        **options,
    )
    says = next(filter(None, str(result.explanation or "").splitlines()), "")
    return {
        "found": not result.property_holds and "inconclusive" not in says,
        "inconclusive": "inconclusive" in says,
        "runs": result.num_explored,
        "says": says,
    }


def interleave(program: Program, strategy: str) -> dict[str, Any]:
    import interleave_test as tool  # type: ignore[import-not-found]

    def model() -> None:
        stage = ToolStage(program)
        tasks = [tool.spawn(run) for run in stage.threads]
        for task in tasks:
            task.join()
        assert stage.holds(), stage.failures[0]

    began = time.monotonic()
    runs = 0
    while runs < RUNS and time.monotonic() - began < PATIENCE_S:
        try:
            runs += tool.explore(model, strategy=strategy, iterations=BATCH, seed=1 + runs).schedules_run
        except tool.InterleaveError as error:
            return {"found": True, "runs": runs + error.result.schedules_run, "says": str(error).splitlines()[0]}
    return {"found": False, "runs": runs, "says": ""}


TOOLS: Final = {
    "frontrun-dpor": lambda program: frontrun(program, "dpor"),
    "frontrun-random": lambda program: frontrun(program, "random"),
    "interleave-random": lambda program: interleave(program, "random"),
    "interleave-pct": lambda program: interleave(program, "pct"),
}


def main(arguments: list[str]) -> int:
    tool, name, side = arguments
    # A tool's threads may be none that `threading` knows, and have no name to set.
    lifecycle.name_os_thread = lambda name: None  # type: ignore[attr-defined]
    began = time.monotonic()
    program = getattr({"mutant": catalogue.mutant, "twin": catalogue.twin}[side], name)
    found = TOOLS[tool](program)
    print(json.dumps({**found, "seconds": round(time.monotonic() - began, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
