"""Distributions as SVG: what share of all samples took longer, over time, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

Point = Sequence[float]
WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 330, 34, 44
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#7a3e9d")
"""Told apart also by readers who do not see all of them (Okabe and Ito)."""
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.t{font-size:14px;font-weight:bold}.g{stroke:#ddd}.l{fill:none;stroke-width:2}"
)
_UNITS: Final = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"), (1e-3, "ns"))


def svg(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """`lines` are of points (us, share of samples that took longer). Names that end in "t" are drawn dashed."""
    points = [point for line in lines.values() for point in line]
    x = _Axis([point[0] for point in points], LEFT, WIDTH - RIGHT)
    y = _Axis([1.0, *(point[1] for point in points)], HEIGHT - BOTTOM, TOP)
    parts = [*_frame(title, x, y), *_lines(lines, x, y)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", background, *parts, "</svg>", ""])


class _Axis:
    """Whole decades around the values, from pixel `first` to `last`."""

    def __init__(self, values: Sequence[float], first: int, last: int) -> None:
        self.low = math.floor(math.log10(min(values)) + 1e-9)
        self.high = max(self.low + 1, math.ceil(math.log10(max(values)) - 1e-9))
        self._first, self._last = first, last

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self._first + share * (self._last - self._first), 1)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def _frame(title: str, x: _Axis, y: _Axis) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    yield f'<text class="t" x="{LEFT}" y="20">{escape(title)}</text>'
    for value in x.decades():
        yield f'<path class="g" d="M{x.at(value)} {TOP}V{bottom}"/>'
        yield f'<text x="{x.at(value)}" y="{bottom + 18}" text-anchor="middle">{_time(value)}</text>'
    for value in y.decades():
        yield f'<path class="g" d="M{LEFT} {y.at(value)}H{right}"/>'
        yield f'<text x="{LEFT - 6}" y="{y.at(value) + 4}" text-anchor="end">{100 * value:g} %</text>'
    middle = (LEFT + right) // 2
    caption = "time of one access; upwards: the share of accesses that took longer"
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{caption}</text>'


def _lines(lines: Mapping[str, Sequence[Point]], x: _Axis, y: _Axis) -> Iterator[str]:
    colours: dict[str, str] = {}
    for row, (name, points) in enumerate(lines.items()):
        condition = name.rpartition(", ")[0]
        colour = colours.setdefault(condition, COLOURS[len(colours) % len(COLOURS)])
        style = f'stroke="{colour}"' + (' stroke-dasharray="6 3"' if name.endswith("t") else "")
        path = "L".join(f"{x.at(time)} {y.at(share)}" for time, share in points)
        yield f'<path class="l" {style} d="M{path}"/>'
        at = TOP + 10 + 18 * row
        yield f'<path class="l" {style} d="M{WIDTH - RIGHT + 16} {at - 4}h26"/>'
        yield f'<text x="{WIDTH - RIGHT + 48}" y="{at}">{escape(name)}</text>'


def _time(us: float) -> str:
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if us >= scale * (1 - 1e-9)), _UNITS[-1])
    return f"{us / scale:g} {unit}"
