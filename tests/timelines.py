"""A timeline's file, read back."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Span(NamedTuple):
    """Times in ns."""

    began: int
    ended: int
    name: str
    category: str


def tracks(path: Path) -> dict[str, list[Span]]:
    """The spans of each thread, by its name, outer ones first. AssertionError if one reaches out of another."""
    rows = json.loads(path.read_text())
    names = {row["tid"]: row["args"]["name"] for row in rows if row["ph"] == "M"}
    found: dict[str, list[Span]] = defaultdict(list)
    for row in rows:
        if row["ph"] == "X":
            began = round(row["ts"] * 1000)
            found[names[row["tid"]]].append(Span(began, began + round(row["dur"] * 1000), row["name"], row["cat"]))
    for name, spans in found.items():
        spans.sort(key=lambda span: (span.began, -span.ended))
        inside: list[Span] = []
        for span in spans:
            while inside and inside[-1].ended <= span.began:
                inside.pop()
            assert not inside or span.ended <= inside[-1].ended, f"{name}: {span} reaches out of {inside[-1]}"
            inside.append(span)
    return dict(found)
