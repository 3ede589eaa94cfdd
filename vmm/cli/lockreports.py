"""What the checked locks of a run found: on standard error, and as JSON where `--lock-report` says."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmm.cli.files import WholeFile
from vmm.lockgraph import graph_as_json
from vmm.lockreport import joined
from vmm.machine.machine import Machine

OPTION = "--lock-report"
OFF = "the locks were not checked: give --check-locks too"


class LockReports:
    """Inside the `with` block the machine runs. At its end, however that comes, the reports are told."""

    def __init__(self, file: Path | None) -> None:
        """`file` for JSON. The block begins by making sure that it can be written; raises ConfigError."""
        self.machine: Machine | None = None
        self._files = contextlib.ExitStack()
        self._file = WholeFile(OPTION, file) if file else None

    def __enter__(self) -> Self:
        if self._file:
            self._files.enter_context(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._files:
            if self.machine is not None:
                self.tell()
                if self._file:
                    self._file.write(json.dumps(self._as_json(self.machine), indent=1).encode() + b"\n")

    @property
    def found(self) -> bool:
        """Whether there is any report."""
        checker = self.machine.locking.checker if self.machine else None
        return checker is not None and bool(checker.reports)

    def tell(self) -> None:
        """Print them; any thread, any time."""
        if self.machine is None:
            return
        checker = self.machine.locking.checker
        if checker is None and self._file:
            print(f"vmm-run: {OPTION}: {OFF}", file=sys.stderr)
        if checker is not None and (reports := list(checker.reports)):
            count = f"{len(reports)} report{'s' * (len(reports) > 1)}"
            print(f"{joined(reports)}\nvmm-run: --check-locks: {count}, see above", file=sys.stderr)

    def _as_json(self, machine: Machine) -> dict[str, Any]:
        """Without a checker there are no lists, for an empty one would look clean."""
        checker = machine.locking.checker
        found: dict[str, Any] = {"why": OFF}
        if checker is not None:
            found = {
                "reports": [report.as_json() for report in checker.reports],
                "graph": graph_as_json(checker.graph.edges()),
            }
        return {"version": 1, "checked": checker is not None, "locking": machine.locking.policy, **found}
