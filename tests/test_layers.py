"""Imports point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vmm"

# top first; what stands in one row does not import its neighbours
ROWS = (
    ("cli", "testing"),
    ("monitor", "gdb", "web", "guests"),
    ("migration",),
    ("machine",),
    ("devices", "vcpu"),
    ("host", "watchdog"),
    ("fabric",),
    ("isa",),
    ("codegen",),
    ("lockstat",),
    ("lockcheck",),
    ("racecheck",),
    ("lockgraph",),
    ("lockreport",),
    ("locks",),
    ("bql", "cachedir", "stacks", "state", "timeline", "waitfor"),
    ("errors",),
    ("vmm",),  # vmm/__init__.py
)
HEIGHT = {name: len(ROWS) - row for row, names in enumerate(ROWS) for name in names}

# (from, to) -> why this arrow may point up
EXCEPTIONS = {
    ("bql", "locks"): "its listing reads the doors of devices",
    ("locks", "lockcheck"): "Locking picks the checked variant, which is built from the plain one",
    ("locks", "lockstat"): "the type of what measures a kit, which is one itself",
}

# devices get clocks, timers, memory and host services by constructor
HOST_MODULES = {"ctypes", "os", "select", "selectors", "signal", "socket", "subprocess", "threading", "time", "_thread"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules that a file imports anywhere in it, as absolute names, with the line."""
    package = ["vmm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "vmm":
                yield from ((f"vmm.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield base, node.lineno


def part(module: str) -> str:
    """The layer's name in `vmm.part.more`; "vmm" for the package itself and what it defines."""
    name = module.removeprefix("vmm").lstrip(".").split(".")[0]
    return name if name in HEIGHT or (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists() else "vmm"


def arrows() -> Iterator[tuple[str, str, str]]:
    """(from, to, where) of each import between parts of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        source = "vmm" if relative == Path("__init__.py") else relative.parts[0].removesuffix(".py")
        for module, line in imports(path):
            if module == "vmm" or module.startswith("vmm."):
                target = part(module)
                if target != source:
                    yield source, target, f"vmm/{relative}:{line} imports {module}"


def test_every_part_of_the_package_has_a_row() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__init__", "__pycache__", "py"} <= set(HEIGHT)


def test_no_import_points_up_or_sideways() -> None:
    wrong = [
        where
        for source, target, where in arrows()
        if HEIGHT[target] >= HEIGHT[source] and (source, target) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_still_needed() -> None:
    assert set(EXCEPTIONS) <= {(source, target) for source, target, _ in arrows()}


def test_nothing_imports_the_shipped_test_helpers() -> None:
    wrong = [where for _, target, where in arrows() if target == "testing"]
    assert not wrong, "\n".join(wrong)


def test_only_the_machine_names_concrete_devices() -> None:
    wrong = [
        where for source, target, where in arrows() if target == "devices" and source not in ("machine", "testing")
    ]
    assert not wrong, "\n".join(wrong)


def test_guests_need_nothing_of_the_machine() -> None:
    wrong = [
        where
        for source, target, where in arrows()
        if source == "guests" and target not in ("cachedir", "errors", "vmm")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted(PACKAGE.joinpath("devices").rglob("*.py")), ids=lambda path: path.stem)
def test_a_device_reaches_the_host_by_its_constructor_alone(path: Path) -> None:
    wrong = [f"line {line} imports {module}" for module, line in imports(path) if module.split(".")[0] in HOST_MODULES]
    assert not wrong, "\n".join(wrong)
