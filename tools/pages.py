"""Generated pages of the documentation: written, or with --check compared with what is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def publish(about: str | None, pages: Mapping[str, Callable[[], str]]) -> int:
    """The `main` of a generator: `pages` are names of files in docs/ with what makes them. Returns the exit status."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = {DOCS / name: text for name, page in pages.items() if not _is(DOCS / name, text := page())}
    for path, text in stale.items():
        if check:
            print(f"docs/{path.name} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(text)
    return int(check and bool(stale))


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text
