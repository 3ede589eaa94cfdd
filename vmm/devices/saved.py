"""Saved device state: (kind, version, fields), made from and checked against the state dataclass.

The fields are walked, never listed, so a field that is added later is saved and demanded without further work.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from vmm.errors import SnapshotError
from vmm.state import DeviceState, field_types

S = TypeVar("S", bound=DeviceState)


def save_state(kind: str, version: int, state: DeviceState) -> dict[str, Any]:
    """`state` as a payload that shares nothing with it."""
    values = {name: copy.deepcopy(getattr(state, name)) for name in field_types(type(state))}
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
    types = field_types(type(blank))
    if not isinstance(saved, Mapping) or saved.keys() != types.keys():
        raise SnapshotError(f"saved {kind} does not have the fields {', '.join(sorted(types))}")
    for name, value in saved.items():
        if type(value) not in types[name]:
            expected = " or ".join(sorted(kind.__name__ for kind in types[name]))
            raise SnapshotError(f"saved {kind}: {name} is {type(value).__name__}, not {expected}")
        setattr(blank, name, copy.deepcopy(value))
    if why := blank.broken():
        raise SnapshotError(f"saved {kind}: {why}")
    return blank
