"""`vmm-run` from this tree with the seams of the lock checkers taken out while its classes are made.

Without them a door takes its lock by a plain `with`, a lock's `with` is CPython's own, and nothing is said to any
`Progress`. The first argument chooses: `without`, or `with` for the tree as it is. Only `benchmarks.locks.seams` has a
use for this.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import CodeType, ModuleType
from typing import Any, Final

_PROGRESS: Final = ("serving", "waiting")
_DOOR: Final = """\
def {name}{parameters}:
    with {self}._lock:
        return __body({arguments})
"""
_POSTING_DOOR: Final = """\
def {name}{parameters}:
    __outbox = __thread.outbox
    __outbox.depth += 1
    try:
        with {self}._lock:
            return __body({arguments})
    finally:
        __outbox.depth -= 1
        if __outbox.calls and not __outbox.depth:
            __outbox.drain()
"""


class Seams(ast.NodeTransformer):
    """Takes `with progress.serving()` and `with progress.waiting()` out; what stood inside stays."""

    def __init__(self) -> None:
        self.found = 0

    def visit_With(self, node: ast.With) -> ast.With | list[ast.stmt]:
        self.generic_visit(node)
        kept = [item for item in node.items if not _is_seam(item.context_expr)]
        self.found += len(node.items) - len(kept)
        if not kept:
            return node.body
        node.items = kept
        return node


def _is_seam(expression: ast.expr) -> bool:
    return (
        isinstance(expression, ast.Call)
        and isinstance(expression.func, ast.Attribute)
        and expression.func.attr in _PROGRESS
        and not expression.args
    )


def without_seams(source: bytes | str, path: str) -> tuple[ast.Module, int]:
    """A module without its seams, and how many there were."""
    seams = Seams()
    tree = seams.visit(ast.parse(source, path))
    return ast.fix_missing_locations(tree), seams.found


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        code: CodeType = compile(without_seams(data, path)[0], path, "exec", dont_inherit=True, optimize=_optimize)
        return code


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "vmm":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def take_out() -> None:
    """Before anything of `vmm` is imported. What is compiled differently is cached elsewhere: see `pycache_prefix`."""
    if "vmm" in sys.modules:
        raise SystemExit("vmm is imported already, with its seams")
    if sys.pycache_prefix is None:
        raise SystemExit("set PYTHONPYCACHEPREFIX: code without seams must not be cached in the place of the other")
    sys.meta_path.insert(0, _Finder())
    locks: Any = importlib.import_module("vmm.locks")
    locks._ENTRY, locks._POSTING_ENTRY = _DOOR, _POSTING_DOOR
    del locks.DeviceLock.__enter__


def main() -> int:
    which = sys.argv.pop(1)
    if which == "without":
        take_out()
    return int(importlib.import_module("vmm.cli").main())


if __name__ == "__main__":
    sys.exit(main())
