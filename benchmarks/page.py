"""Write docs/benchmarks.md, with its plots, from the committed results; with --check, say whether it is up to date."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.guests import ROOT
from benchmarks.plot import chart, svg

RESULTS: Final = ROOT / "benchmarks" / "results"
PAGE: Final = ROOT / "docs" / "benchmarks.md"
MODULES: Final = (
    *("boot", "cpu", "smp", "exits", "startup"),
    *("locks.headline", "locks.threads", "locks.blocks", "locks.latency", "locks.policies"),
    *("locks.seams", "locks.entry", "locks.schedules", "locks.model"),
)
"""The benchmarks, in the order in which the page shows them; each writes the result of its name."""
HEAD: Final = """\
# Benchmarks

Generated from `benchmarks/results/*.json` by `python -m benchmarks.page`; `python -m benchmarks.all` measures all of it
anew. What is compared runs in turns, so that a slow minute of the host slows all sides alike; figures are medians, with
the range of all samples behind them.
"""
Content = dict[str, Any]


def pages(results: Path, page: Path) -> dict[Path, str]:
    """The page and its plots, by path."""
    names = map(result_name, MODULES)
    found = {name: json.loads(path.read_text()) for name in names if (path := results / f"{name}.json").exists()}
    files: dict[Path, str] = {}
    sections = [HEAD, "\n".join(summary(found))]
    for name, content in found.items():
        pictures = {title: svg(title, lines) for title, lines in content.get("curves", {}).items()}
        pictures |= {plot["title"]: chart(**plot) for plot in content.get("charts", ())}
        plots = {}
        for number, (title, picture) in enumerate(pictures.items(), 1):
            path = page.parent / "pictures" / f"{name}-{number}.svg"
            files[path] = picture
            plots[title] = path.relative_to(page.parent)
        sections.append("\n".join(section(content, plots)))
    files[page] = "\n".join(sections)
    return files


def result_name(module: str) -> str:
    return module.replace(".", "-")


def summary(found: dict[str, Content]) -> Iterator[str]:
    """Every figure that the project promises something for."""
    yield "| figure | measured, and promised | |"
    yield "| --- | --- | --- |"
    for content in found.values():
        for figure in content["figures"]:
            if figure["bound"]:
                yield f"| {figure['name']} | {figure['bound']} | {'met' if figure['met'] else '**not met**'} |"
    yield ""


def section(content: Content, plots: dict[str, Path]) -> Iterator[str]:
    yield f"## {content['title']}"
    yield ""
    if about := content.get("about"):
        yield from prose(about)
        yield ""
    for fact, value in content.items():
        if fact not in ("title", "about", "figures", "curves", "charts"):
            yield f"- {fact}: {'; '.join(value.values()) if fact == 'pythons' else value}"
    yield ""
    for _, group in itertools.groupby(content["figures"], key=alike):
        yield from table(list(group))
        yield ""
    for title, path in plots.items():
        yield f"![{title}]({path})"
        yield ""


def prose(about: str) -> Iterator[str]:
    """A docstring as Markdown: lists in two columns get bullets."""
    for paragraph in re.split(r"\n\s*\n", about.strip()):
        rows = re.findall(r"^ {0,2}(\S.*?) {2,}(\S.*(?:\n {6,}\S.*)*)", paragraph, re.MULTILINE)
        if rows:
            yield from ("- **{}**: {}".format(term, re.sub(r"\s+", " ", text)) for term, text in rows)
        else:
            yield paragraph
        yield ""


def alike(figure: Content) -> tuple[object, ...]:
    """Figures that share this stand in one table."""
    return (figure["unit"], tuple(figure["samples"]), figure["name"] if len(figure["samples"]) < 2 else figure["bound"])


def table(figures: list[Content]) -> Iterator[str]:
    if len(figures) == 1:
        figure = figures[0]
        yield f"**{figure['name']}**, {figure['unit']}" + (
            f" ({figure['bound']}: {'met' if figure['met'] else 'not met'})" if figure["bound"] else ""
        )
        yield ""
        yield "| | median | from | to | samples |"
        yield "| --- | ---: | ---: | ---: | ---: |"
        for side, values in figure["samples"].items():
            row = (figure["medians"][side], min(values), max(values))
            yield f"| {side} | {' | '.join(map(number, row))} | {len(values)} |"
    else:
        sides = list(figures[0]["samples"])
        yield f"| {figures[0]['unit']}, medians of {len(figures[0]['samples'][sides[0]])} | {' | '.join(sides)} |"
        yield "| --- |" + " ---: |" * len(sides)
        for figure in figures:
            yield f"| {figure['name']} | {' | '.join(number(figure['medians'][side]) for side in sides)} |"


def number(value: float) -> str:
    """Three digits, or as many as it has before the point; counts as they are."""
    if isinstance(value, int):
        return f"{value:,}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON files are")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the page to write")
    options = parser.parse_args()
    return write(options.results, options.page, check=options.check)


def write(results: Path, page: Path, *, check: bool = False) -> int:
    files = pages(results, page)
    if check:
        stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path}: out of date: run `python -m benchmarks.page`", file=sys.stderr)
        return bool(stale)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
