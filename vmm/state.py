"""What a device's volatile state is made from: all that a guest can observe of it, in one dataclass.

Fields hold values that cannot change, so that to set a field is the only way to change the state, and to read one the
only way to look at it: whoever watches the fields (`vmm.racecheck`) misses nothing. The containers of `CONTAINERS` are
the exception, since they can be watched too. What else a field might be is refused when the device's class is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import Enum
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

_SCALARS: Final = frozenset({bool, int, float, str, bytes, NoneType})

_MUTATORS: Final = frozenset(
    (
        *("__delitem__", "__iadd__", "__imul__", "__setitem__"),
        *("append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"),
    )
)

#: Containers that a field may hold, with the methods that change them. Their elements are immutable.
CONTAINERS: Final[Mapping[type, frozenset[str]]] = MappingProxyType({list: _MUTATORS, bytearray: _MUTATORS})


class DeviceState:
    """The volatile state of a device. A model derives a `dataclass(slots=True)` whose defaults are the reset values,
    and makes it by `self.State()`, never by the class's own name: the variant of the device says what that makes."""

    __slots__ = ()

    def broken(self) -> str | None:
        """Which invariant does not hold, in words; None when all do."""
        return None


def field_types(cls: type[DeviceState]) -> Mapping[str, frozenset[type]]:
    """For each field of a state class the types of the values that it may have.

    Raises TypeError when one of them could change unnoticed, or the class is no `dataclass(slots=True)`.
    """
    known = _known.get(cls)
    if known is None:
        known = _known[cls] = MappingProxyType(dict(_field_types(cls)))
    return known


_known: Final[dict[type, Mapping[str, frozenset[type]]]] = {}


def _field_types(cls: type[DeviceState]) -> Iterator[tuple[str, frozenset[type]]]:
    if "__dataclass_fields__" not in vars(cls) or cls.__dictoffset__:
        raise TypeError(f"{cls.__qualname__} is no dataclass(slots=True): it could have fields that nobody declared")
    try:
        hints = get_type_hints(cls)
    except NameError as error:
        raise TypeError(f"{cls.__qualname__}: {error} in its module, where its fields' types must be") from error
    for name in (field.name for field in fields(cls)):  # type: ignore[arg-type]
        hint = hints[name]
        container = get_origin(hint)
        if hint is bytearray or (container in CONTAINERS and all(map(_immutable, get_args(hint)))):
            yield name, frozenset((container or bytearray,))
        elif immutable := _immutable(hint):
            yield name, immutable
        else:
            raise TypeError(
                f"{cls.__qualname__}.{name} is {hint}: state is of immutable scalars, tuples of them, or"
                f" {' or '.join(kind.__name__ for kind in CONTAINERS)} of either"
            )


def _immutable(hint: Any) -> frozenset[type] | None:
    """The types of the values that a type stands for; None if some of them can change."""
    if hint is None:
        return frozenset((NoneType,))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return frozenset(type(value) for value in arguments)
    if origin in (Union, UnionType):
        parts = [_immutable(part) for part in arguments]
        return frozenset(kind for part in parts for kind in part or ()) if all(parts) else None
    if origin is tuple:
        return frozenset((tuple,)) if all(_immutable(part) for part in arguments if part is not Ellipsis) else None
    if isinstance(hint, type) and (hint in _SCALARS or issubclass(hint, Enum)):
        return frozenset((hint,))
    return None
