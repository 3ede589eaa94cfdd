"""The committed time budget of CI."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_stages_of_ci_take_an_hour_at_most_together() -> None:
    rows = re.findall(r"(?m)^\| *[\w-]+ *\| *(\d+) *\| *`(.+?)` *\|", (ROOT / "docs/ci-budget.md").read_text())
    assert sum(int(minutes) for minutes, _ in rows) <= 60
    commands = " ".join(command for _, command in rows)
    assert {"make lint", "make test", "make test-ft", "make test-slow"} <= set(re.findall(r"make [\w-]+", commands))
