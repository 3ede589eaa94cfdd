"""A directed graph without cycles as SVG: rows of boxes, all arrows downwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

Arrow = tuple[str, str]

LINE: Final = 16
ROW_GAP: Final = 46
GAP: Final = 22
PAD: Final = 10
LABEL: Final = 84
CHARACTER: Final = 6.9
_SWEEPS: Final = 12
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.r{fill:#888;font-weight:bold}.b{fill:#fff;stroke:#0072b2;stroke-width:1.5}"
    ".w{fill:#fff;stroke:#d55e00;stroke-width:1.5}.a{fill:none;stroke:#777;stroke-width:1.2}.d{stroke-dasharray:5 3}"
)


@dataclass
class Box:
    """A box with a line of text for each member. `kind` is its class in the style sheet, `row` counts from the top."""

    members: tuple[str, ...]
    kind: str
    row: int
    x: float = 0.0
    """Of its middle."""
    width: float = field(init=False)
    height: float = field(init=False)

    def __post_init__(self) -> None:
        self.width = max((len(member) for member in self.members), default=0) * CHARACTER + 2 * PAD
        self.height = len(self.members) * LINE + PAD


def without_shortcuts(arrows: Iterable[Arrow]) -> set[Arrow]:
    """The arrows that do not follow from others."""
    below: dict[str, set[str]] = {}
    for outer, inner in arrows:
        below.setdefault(outer, set()).add(inner)

    def reach(node: str) -> set[str]:
        found: set[str] = set()
        todo = list(below.get(node, ()))
        while todo:
            if (at := todo.pop()) not in found:
                found.add(at)
                todo += below.get(at, ())
        return found

    return {
        (outer, inner)
        for outer, inners in below.items()
        for inner in inners
        if not any(inner in reach(other) for other in inners if other != inner)
    }


def alike(nodes: Iterable[str], arrows: Iterable[Arrow], kinds: Mapping[str, object]) -> list[tuple[str, ...]]:
    """Nodes of one kind with the same arrows, together."""
    arrows = list(arrows)
    groups: dict[object, list[str]] = {}
    for node in sorted(nodes):
        above = frozenset(outer for outer, inner in arrows if inner == node)
        below = frozenset(inner for outer, inner in arrows if outer == node)
        groups.setdefault((kinds[node], above, below), []).append(node)
    return [tuple(group) for group in groups.values()]


def svg(title: str, boxes: Sequence[Box], arrows: Iterable[Arrow], dashed: set[Arrow], rows: Sequence[str]) -> str:
    """`arrows` are between first members; `rows` are what to write at the left of each row."""
    at = {box.members[0]: box for box in boxes}
    chains = [(arrow, _chain(arrow, at)) for arrow in sorted(arrows)]
    grid: list[list[Box]] = [[] for _ in rows]
    for box in sorted(boxes, key=lambda box: box.members):
        grid[box.row].append(box)
    for _, chain in chains:
        for box in chain[1:-1]:
            grid[box.row].append(box)
    _order(grid, [chain for _, chain in chains])
    width = _place(grid, [chain for _, chain in chains])
    tops, height = [], 40.0
    for row in grid:
        tops.append(height)
        height += max((box.height for box in row), default=0.0) + ROW_GAP
    height -= ROW_GAP - 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#777"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        *(
            f'<text class="r" x="10" y="{top + LINE:.0f}">{escape(name)}</text>'
            for name, top in zip(rows, tops, strict=True)
        ),
        *(_curve(chain, tops, arrow in dashed) for arrow, chain in chains),
        *(part for box in at.values() for part in _box(box, tops[box.row])),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def _chain(arrow: Arrow, at: Mapping[str, Box]) -> list[Box]:
    """The boxes of an arrow, with an empty one in each row that it passes."""
    first, last = at[arrow[0]], at[arrow[1]]
    if first.row >= last.row:
        raise ValueError(f"{arrow[0]} -> {arrow[1]} does not point down")
    return [first, *(Box((), "", row) for row in range(first.row + 1, last.row)), last]


def _order(grid: list[list[Box]], chains: Sequence[Sequence[Box]]) -> None:
    """Sweep down and up, each time sorting a row by the mean place of its neighbours in the row before."""
    above, below = _neighbours(chains)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for number in range(1, len(grid)) if down else range(len(grid) - 2, -1, -1):
            before = grid[number + (-1 if down else 1)]
            place = {id(box): index / max(1, len(before) - 1) for index, box in enumerate(before)}
            means = {
                id(box): _mean([place[id(other)] for other in (above if down else below).get(id(box), ())], 0.5)
                for box in grid[number]
            }
            grid[number].sort(key=lambda box: means[id(box)])


def _place(grid: list[list[Box]], chains: Sequence[Sequence[Box]]) -> float:
    """Give every box its x, as near as its row allows to the mean of its neighbours'; returns the width of all."""
    above, below = _neighbours(chains)
    for row in grid:
        _spread(row, [0.0] * len(row))
    for _ in range(_SWEEPS):
        for row in (*grid, *reversed(grid)):
            near = [[other.x for other in (*above.get(id(box), ()), *below.get(id(box), ()))] for box in row]
            _spread(row, [_mean(xs, box.x) for box, xs in zip(row, near, strict=True)])
    left = min(box.x - box.width / 2 for row in grid for box in row) - LABEL
    for row in grid:
        for box in row:
            box.x -= left
    return max(box.x + box.width / 2 for row in grid for box in row) + GAP


def _neighbours(chains: Sequence[Sequence[Box]]) -> tuple[dict[int, list[Box]], dict[int, list[Box]]]:
    """For each box those above it, and those below."""
    above: dict[int, list[Box]] = {}
    below: dict[int, list[Box]] = {}
    for chain in chains:
        for upper, lower in itertools.pairwise(chain):
            above.setdefault(id(lower), []).append(upper)
            below.setdefault(id(upper), []).append(lower)
    return above, below


def _spread(row: Sequence[Box], wanted: Sequence[float]) -> None:
    """Put the boxes of a row where they want to be, or half way between where they fit when pushed from either side."""
    pushed_right, pushed_left = list(wanted), list(wanted)
    apart = [(one.width + other.width) / 2 + GAP for one, other in itertools.pairwise(row)]
    for at in range(1, len(row)):
        pushed_right[at] = max(pushed_right[at], pushed_right[at - 1] + apart[at - 1])
    for at in range(len(row) - 2, -1, -1):
        pushed_left[at] = min(pushed_left[at], pushed_left[at + 1] - apart[at])
    for box, one, other in zip(row, pushed_right, pushed_left, strict=True):
        box.x = (one + other) / 2


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _curve(chain: Sequence[Box], tops: Sequence[float], dashed: bool) -> str:
    points = []
    for index, box in enumerate(chain):
        top = tops[box.row]
        if index:
            points.append((box.x, top))
        if index < len(chain) - 1:
            points.append((box.x, top + (box.height if box.members else 30)))
    path = [f"M{points[0][0]:.0f} {points[0][1]:.0f}"]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        bend = (y1 - y0) / 2
        path.append(f"C{x0:.0f} {y0 + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}")
    return f'<path class="a{" d" * dashed}" marker-end="url(#tip)" d="{"".join(path)}"/>'


def _box(box: Box, top: float) -> Iterator[str]:
    left = box.x - box.width / 2
    size = f'width="{box.width:.0f}" height="{box.height:.0f}"'
    yield f'<rect class="{box.kind}" x="{left:.0f}" y="{top:.0f}" {size} rx="4"/>'
    for number, member in enumerate(box.members):
        y = top + PAD / 2 + LINE * (number + 0.75)
        yield f'<text x="{box.x:.0f}" y="{y:.0f}" text-anchor="middle">{escape(member)}</text>'
