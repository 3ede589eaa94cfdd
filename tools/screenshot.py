"""Draw what a command prints as an SVG of a terminal, for the README.

python -m tools.screenshot docs/pictures/demo.svg vmm-run demo
"""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

_LINE, _CHAR, _MARGIN, _BAR = 17, 7.85, 16, 30
_COLOURS = {"  ok ": "#7ee787", "PASS": "#7ee787", "FAIL": "#ff7b72", "$ ": "#79c0ff"}


def draw(command: str, output: str) -> str:
    """The SVG of a terminal in which `command` printed `output`."""
    lines = [f"$ {command}", *output.replace("\r", "").strip("\n").split("\n")]
    width = int(max(map(len, lines)) * _CHAR) + 2 * _MARGIN
    height = len(lines) * _LINE + _BAR + 2 * _MARGIN
    rows = []
    for i, line in enumerate(lines):
        colour = next((c for start, c in _COLOURS.items() if line.startswith(start)), "#e6edf3")
        y = _BAR + _MARGIN + (i + 1) * _LINE - 5
        rows.append(f'<text x="{_MARGIN}" y="{y}" fill="{colour}" xml:space="preserve">{html.escape(line)}</text>')
    dots = "".join(
        f'<circle cx="{18 + 20 * i}" cy="15" r="6" fill="{colour}"/>'
        for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}">',
            f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
            f'<rect width="{width}" height="{_BAR}" rx="8" fill="#21262d"/>{dots}',
            '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13">',
            *rows,
            "</g></svg>",
            "",
        ]
    )


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    target, *command = sys.argv[1:]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    Path(target).write_text(draw(" ".join([Path(command[0]).name, *command[1:]]), run.stdout))
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
