"""What the benchmarks share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Figure, Report, alternate, parser, python_build


def test_sides_run_in_turn_and_in_the_opposite_order_every_other_round() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    samples = alternate({"ours": lambda: side("ours"), "theirs": lambda: side("theirs")}, rounds=3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert samples == {"ours": [1, 4, 5], "theirs": [2, 3, 6]}


def test_a_report_names_the_python_that_ran_and_compares_medians(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("boot")
    report.add(Figure("time to init", "s", {"ours": [3.0, 9.0, 4.0]}, bound="ours at most 5", met=True))
    options = parser("Boot.", rounds=3).parse_args(["--json", str(tmp_path / "new" / "boot.json")])
    assert report.finish(options) == 0
    printed = capsys.readouterr().out
    assert python_build() in printed
    assert "ours at most 5: met" in printed
    written = json.loads((tmp_path / "new" / "boot.json").read_text())
    assert written["python"] == python_build()
    assert written["figures"][0]["medians"] == {"ours": 4.0}
