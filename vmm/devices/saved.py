"""Saved device state: (kind, version, fields), made from and checked against the state dataclass.

The fields are walked, never listed, so a field that is added later is saved and demanded without further work.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from vmm.errors import SnapshotError


class Checked(Protocol):
    """A state dataclass. Its fields are ints, bools, strings, bytearrays or lists of them, and its defaults are the
    reset values."""

    def broken(self) -> str | None:
        """Which invariant does not hold, in words; None when all do."""


S = TypeVar("S", bound=Checked)


def save_state(kind: str, version: int, state: Checked) -> dict[str, Any]:
    """`state` as a payload that shares nothing with it."""
    values = {f.name: copy.deepcopy(getattr(state, f.name)) for f in fields(state)}  # type: ignore[arg-type]
    return {"kind": kind, "version": version, "fields": values}


def load_state(kind: str, version: int, blank: S, payload: Mapping[str, Any]) -> S:
    """Fill `blank`, a state at its reset values, from `payload` and return it.

    Raises SnapshotError for another kind or version, missing or unknown fields, wrong types, broken invariants.
    """
    if payload.get("kind") != kind or payload.get("version") != version:
        raise SnapshotError(
            f"saved state of {payload.get('kind')!r} version {payload.get('version')!r} is not {kind} version {version}"
        )
    saved = payload.get("fields")
    names = {f.name for f in fields(blank)}  # type: ignore[arg-type]
    if not isinstance(saved, Mapping) or saved.keys() != names:
        raise SnapshotError(f"saved {kind} does not have the fields {', '.join(sorted(names))}")
    for name, value in saved.items():
        expected = type(getattr(blank, name))
        if type(value) is not expected:
            raise SnapshotError(f"saved {kind}: {name} is {type(value).__name__}, not {expected.__name__}")
        setattr(blank, name, copy.deepcopy(value))
    if why := blank.broken():
        raise SnapshotError(f"saved {kind}: {why}")
    return blank
