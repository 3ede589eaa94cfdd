"""Write docs/cli.md and docs/lifecycle.md from the tables that the program runs by; --check: are they up to date?"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from tools.pages import publish
from vmm.cli.options import DESCRIPTION, EXAMPLES, GUESTS, KEYS, Guest, Option, groups
from vmm.cli.status import MEANINGS
from vmm.machine import lifecycle, slots

HEAD = f"""\
# vmm-run

{DESCRIPTION} Generated from the tables in `vmm/cli` by `make docs`.

"""
CONFIG = """\
## Configuration file

`--config FILE.toml` reads options from a file. Keys are the names of options; switches are `true` or `false`
(`rng = false` is `--no-rng`); relative paths are meant from the file's folder; options on the command line go before
those in the file. A key that is not an option is refused.

```toml
kernel = "Image"
append = "console=ttyS0 root=/dev/vda"
smp = 2
mem = "1G"

[[drive]]
file = "disk.img"
format = "raw"
snapshot = true
```
"""


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def options(guest: Guest | None) -> Iterator[str]:
    for title, found in groups(guest):
        yield f"### {title}\n\n" + table(("option", "meaning"), (row(option) for option in found))


def row(option: Option) -> tuple[str, str]:
    return f"`{option.usage}`", option.help


def cli_page() -> str:
    parts = [
        HEAD + "".join(f"- `{command}`: {text}\n" for command, text in EXAMPLES),
        "## Options\n",
        *options(None),
    ]
    for guest in GUESTS:
        without = ", ".join(f"`--{name}`" for name in sorted(guest.fixed))
        parts.append(f"## vmm-run {guest.name}\n\n{guest.description} Takes the options above but for {without}.\n")
        if guest.options:
            parts.append(table(("option", "meaning"), map(row, guest.options)))
    parts += [
        CONFIG,
        "## Exit status\n\n" + table(("status", "meaning"), MEANINGS),
        "## Keys at the terminal\n\n" + table(("keys", "what they do"), ((f"`{key}`", text) for key, text in KEYS)),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(publish(__doc__, {"cli.md": cli_page, "lifecycle.md": lambda: lifecycle.page() + "\n" + slots.page()}))
