"""Processes that measure in one Python each, so that builds can take turns within a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.guests import ROOT, Python
from benchmarks.report import gil_came_back

C = TypeVar("C")


class Worker:
    """A process of one Python that measures what it is told: `python -m MODULE --worker`, which calls `serve`."""

    def __init__(self, python: Python, module: str) -> None:
        self.python = python
        self._process = subprocess.Popen(
            [python.path, "-m", module, "--worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def measure(self, cell: Any) -> Any:
        """What the module's `measure` says of `cell`, a dataclass."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(asdict(cell)), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.python.name}: the measuring process ended with {self._process.wait()}")
        return json.loads(answer)


def serve(measure: Callable[[C], Any], cell: Callable[..., C]) -> int:
    """Measure the cells that come in, as JSON, on standard input."""
    for line in sys.stdin:
        result = measure(cell(**json.loads(line)))
        if gil_came_back():
            raise SystemExit("an import has brought the GIL back")
        print(json.dumps(result), flush=True)
    return 0
