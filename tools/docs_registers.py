"""Write docs/registers.md from the register tables of the device models; with --check, say whether it is up to date."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import vmm.devices
from vmm.devices.registers import Programmed, Register, register_page

PAGE = Path(__file__).parents[1] / "docs" / "registers.md"
HEAD = """\
# Registers

What a guest finds behind each device's window. Generated from the tables in `vmm/devices` by `make docs`.

"""


def programmed() -> Iterator[Programmed]:
    """Every device class that has a table of registers, by module."""
    for found in pkgutil.walk_packages(vmm.devices.__path__, "vmm.devices."):
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == found.name:
                rows = getattr(value, "registers", ())
                if rows and all(isinstance(row, Register) for row in rows):
                    yield value  # type: ignore[misc]  # a class with such rows has the rest, or register_page says so


def page() -> str:
    return HEAD + "\n".join(register_page(device) for device in programmed())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is out of date")
    if parser.parse_args().check:
        if PAGE.exists() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE.relative_to(PAGE.parents[1])} is out of date: run `make docs`", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
