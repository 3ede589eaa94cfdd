"""Write docs/registers.md from the register tables of the device models; with --check, say whether it is up to date."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

import vmm.devices
from tools.pages import publish
from vmm.devices.registers import Programmed, Register, register_page

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


if __name__ == "__main__":
    sys.exit(publish(__doc__, {"registers.md": page}))
