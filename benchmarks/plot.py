"""Plots as SVG: distributions (what share of all samples took longer, over time) and what grows with a count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Final, Protocol

Point = Sequence[float]
WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 330, 34, 44
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#7a3e9d")
"""Told apart also by readers who do not see all of them (Okabe and Ito)."""
WIDE: Final = 20
"""A chart whose greatest value is so many times its least has a logarithmic scale."""
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.t{font-size:14px;font-weight:bold}.g{stroke:#ddd}.l{fill:none;stroke-width:2}"
)
_UNITS: Final = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"), (1e-3, "ns"))


def svg(title: str, lines: Mapping[str, Sequence[Point]]) -> str:
    """A distribution: `lines` are of points (us, share of samples that took longer). Names that end in "t" are drawn
    dashed."""
    points = [point for line in lines.values() for point in line]
    x = _Decades([point[0] for point in points], LEFT, WIDTH - RIGHT, _time)
    y = _Decades([1.0, *(point[1] for point in points)], HEIGHT - BOTTOM, TOP, lambda share: f"{100 * share:g} %")
    caption = "time of one; upwards: the share that took longer"
    return _picture([*_frame(title, caption, x, y), *_lines(lines, x, y)])


def chart(title: str, caption: str, lines: Mapping[str, Sequence[Point]], *, bands: bool = False) -> str:
    """Something over a count that doubles: `lines` are of points (count, value), which with `bands` are (count, value,
    least, most). Names that end in "t" are drawn dashed."""
    points = [point for line in lines.values() for point in line]
    x = _Doublings([point[0] for point in points], LEFT, WIDTH - RIGHT)
    values = [value for point in points for value in point[1:]]
    y: _Axis = _Linear(max(values), HEIGHT - BOTTOM, TOP)
    if max(values) > WIDE * min(values):
        y = _Decades(values, HEIGHT - BOTTOM, TOP, _count)
    parts = [*_frame(title, caption, x, y), *(_bands(lines, x, y) if bands else ()), *_lines(lines, x, y)]
    return _picture(parts)


def _picture(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", background, *parts, "</svg>", ""])


class _Axis(Protocol):
    def at(self, value: float) -> float:
        """The pixel."""

    def marks(self) -> Sequence[tuple[float, str]]:
        """Values with a line across, and what is written there."""


class _Decades:
    """Whole decades around the values, from pixel `first` to `last`."""

    def __init__(self, values: Sequence[float], first: int, last: int, spell: Callable[[float], str]) -> None:
        self.low = math.floor(math.log10(min(values)) + 1e-9)
        self.high = max(self.low + 1, math.ceil(math.log10(max(values)) - 1e-9))
        self._first, self._last, self._spell = first, last, spell

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self._first + share * (self._last - self._first), 1)

    def marks(self) -> Sequence[tuple[float, str]]:
        return [(10.0**power, self._spell(10.0**power)) for power in range(self.low, self.high + 1)]


class _Doublings:
    """From the least value to the greatest, each doubling as wide as the next."""

    def __init__(self, values: Sequence[float], first: int, last: int) -> None:
        self._low, self._high = math.log2(min(values)), max(math.log2(max(values)), math.log2(min(values)) + 1)
        self._first, self._last = first, last

    def at(self, value: float) -> float:
        share = (math.log2(value) - self._low) / (self._high - self._low)
        return round(self._first + share * (self._last - self._first), 1)

    def marks(self) -> Sequence[tuple[float, str]]:
        powers = range(math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9) + 1)
        return [(2.0**power, f"{2.0**power:g}") for power in powers]


class _Linear:
    """From 0 to beyond `most`, in round steps."""

    def __init__(self, most: float, first: int, last: int) -> None:
        power = 10.0 ** math.floor(math.log10(most))
        self._step = next(step * power for step in (0.2, 0.5, 1.0, 2.0) if most <= 6 * step * power)
        self._count = math.ceil(most / self._step - 1e-9)
        self._first, self._last = first, last

    def at(self, value: float) -> float:
        return round(self._first + value / (self._count * self._step) * (self._last - self._first), 1)

    def marks(self) -> Sequence[tuple[float, str]]:
        values = [k * self._step for k in range(self._count + 1)]
        return [(value, _count(value)) for value in values]


def _frame(title: str, caption: str, x: _Axis, y: _Axis) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    yield f'<text class="t" x="{LEFT}" y="20">{escape(title)}</text>'
    for value, text in x.marks():
        yield f'<path class="g" d="M{x.at(value)} {TOP}V{bottom}"/>'
        yield f'<text x="{x.at(value)}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
    for value, text in y.marks():
        yield f'<path class="g" d="M{LEFT} {y.at(value)}H{right}"/>'
        yield f'<text x="{LEFT - 6}" y="{y.at(value) + 4}" text-anchor="end">{text}</text>'
    middle = (LEFT + right) // 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(caption)}</text>'


def _coloured(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names with their colours: lines that differ in the Python alone share one."""
    colours: dict[str, str] = {}
    for name in names:
        yield name, colours.setdefault(name.partition(", Python ")[0], COLOURS[len(colours) % len(COLOURS)])


def _lines(lines: Mapping[str, Sequence[Point]], x: _Axis, y: _Axis) -> Iterator[str]:
    for row, (name, colour) in enumerate(_coloured(lines)):
        style = f'stroke="{colour}"' + (' stroke-dasharray="6 3"' if name.endswith("t") else "")
        path = "L".join(f"{x.at(point[0])} {y.at(point[1])}" for point in lines[name])
        yield f'<path class="l" {style} d="M{path}"/>'
        at = TOP + 10 + 18 * row
        yield f'<path class="l" {style} d="M{WIDTH - RIGHT + 16} {at - 4}h26"/>'
        yield f'<text x="{WIDTH - RIGHT + 48}" y="{at}">{escape(name)}</text>'


def _bands(lines: Mapping[str, Sequence[Point]], x: _Axis, y: _Axis) -> Iterator[str]:
    for name, colour in _coloured(lines):
        low = [f"{x.at(point[0])} {y.at(point[2])}" for point in lines[name]]
        high = [f"{x.at(point[0])} {y.at(point[3])}" for point in lines[name]]
        yield f'<path fill="{colour}" fill-opacity="0.15" d="M{"L".join([*low, *reversed(high)])}Z"/>'


def _count(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e5 else f"{value:g}"


def _time(us: float) -> str:
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if us >= scale * (1 - 1e-9)), _UNITS[-1])
    return f"{us / scale:g} {unit}"
