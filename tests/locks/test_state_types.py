"""What state may be made from is settled when the class of a device is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest

from vmm.devices.saved import load_state, save_state
from vmm.errors import SnapshotError
from vmm.locks import Device
from vmm.state import DeviceState, field_types


class Mode(Enum):
    IDLE = "idle"


@dataclass(slots=True)
class Sound(DeviceState):
    number: int = 0
    flag: bool = False
    name: str = ""
    raw: bytes = b""
    mode: Mode = Mode.IDLE
    which: Literal[1, 2] = 1
    maybe: int | None = None
    pair: tuple[int, str] = (0, "")
    fifo: tuple[int, ...] = ()
    queue: list[tuple[int, int]] = field(default_factory=list)
    space: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class Derived(Sound):
    more: int = 0


class Mutable:
    pass


BAD: dict[str, Any] = {
    "dict": dict[int, int],
    "set": set[int],
    "list of lists": list[list[int]],
    "list of anything": list,
    "tuple of anything": tuple,
    "tuple of lists": tuple[list[int], ...],
    "object": Mutable,
    "list or nothing": list[int] | None,
    "anything": Any,
}


def state_with(hint: object) -> type[DeviceState]:
    return dataclass(slots=True)(type("Odd", (DeviceState,), {"__annotations__": {"odd": hint}}))


def test_scalars_tuples_and_approved_containers_are_fine() -> None:
    assert type("Fine", (Device,), {"State": Sound, "Other": Derived})
    assert field_types(Derived)["maybe"] == {int, type(None)}


@pytest.mark.parametrize("hint", BAD.values(), ids=BAD)
def test_a_field_that_could_change_unnoticed_is_refused_when_the_device_class_is_made(hint: object) -> None:
    with pytest.raises(TypeError, match=r"Odd\.odd is .*: state is of immutable scalars, tuples of them, or list or"):
        type("Model", (Device,), {"State": state_with(hint)})


def test_every_state_class_of_a_device_is_held_to_it() -> None:
    with pytest.raises(TypeError, match=r"Odd\.odd is"):
        type("Model", (Device,), {"State": Sound, "StateOfQueue": state_with(dict[int, int])})


def test_a_state_that_can_get_fields_that_nobody_declared_is_refused() -> None:
    class Undecorated(Sound):
        pass

    for cls in (Undecorated, dataclass(type("Loose", (DeviceState,), {}))):
        with pytest.raises(TypeError, match=r"is no dataclass\(slots=True\)"):
            type("Model", (Device,), {"State": cls})


def test_state_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="State is Mutable, which is no DeviceState"):
        type("Model", (Device,), {"State": Mutable})


def test_what_is_saved_shares_nothing_with_the_state_and_comes_back_as_it_was() -> None:
    state = Derived(number=7, maybe=3, queue=[(1, 2)], space=bytearray(b"x"), more=1)
    payload = save_state("sound", 1, state)
    state.queue.append((3, 4))
    state.space += b"y"
    again = load_state("sound", 1, Derived(), payload)
    assert again == Derived(number=7, maybe=3, queue=[(1, 2)], space=bytearray(b"x"), more=1)
    again.queue.clear()
    assert payload["fields"]["queue"] == [(1, 2)]


def test_a_saved_field_has_one_of_its_declared_types() -> None:
    payload = save_state("sound", 1, Sound())
    payload["fields"]["maybe"] = "3"
    with pytest.raises(SnapshotError, match="maybe is str, not NoneType or int"):
        load_state("sound", 1, Sound(), payload)
