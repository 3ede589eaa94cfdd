"""Registers as data. One row says where a register is, who may touch it, what the datasheet calls it and which method
answers; access decoding and the register pages of the documentation are made from the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from vmm.devices.saved import load_state, save_state
from vmm.fabric.bus import BusFault
from vmm.locks import Device, Locking, entry, lockfree
from vmm.state import DeviceState

Access = Literal["ro", "wo", "rw"]
S = TypeVar("S", bound=DeviceState)


@dataclass(frozen=True, slots=True)
class Register:
    """One register: `offset` and `width` in bytes, and the private methods that answer reads and take writes.

    `bank` names the condition under which the row replaces those without one at its offset.
    """

    offset: int
    width: int
    access: Access
    name: str
    meaning: str
    read: Callable[[Any], int] | None = None
    write: Callable[[Any, int], None] | None = None
    bank: str = ""

    def __post_init__(self) -> None:
        if (self.read is not None, self.write is not None) != ("r" in self.access, "w" in self.access):
            raise TypeError(f"register {self.name} is {self.access}, which is not what its methods say")


@dataclass(frozen=True, slots=True)
class Decoder:
    """For each offset, who answers a read and who takes a write, as methods bound to one device."""

    reads: tuple[Callable[[], int], ...]
    writes: tuple[Callable[[int], None], ...]


class RegisterDevice(Device, Generic[S]):
    """A device that is programmed through registers in one window.

    A model gives its rows, its state and `_sync`; this gives the doors. An access to an offset without a register is
    refused: it reads 0 or is ignored, and is counted. One beyond `span`, or of a size not in `sizes`, is a bus fault.
    """

    lockfree_fields: ClassVar = {"_refusals": "a counter that only grows; whoever shows it may be one access behind"}

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    registers: ClassVar[tuple[Register, ...]]
    span: ClassVar[int]
    """Bytes of the window that are decoded."""
    sizes: ClassVar[frozenset[int]]
    """Access sizes that the device answers, bytes."""
    State: ClassVar[type[Any]]
    """The volatile state, all that a guest can observe. Its defaults are the reset values."""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._refusals = 0
        decoder = self._decoder()
        self._reads, self._writes = decoder.reads, decoder.writes
        self._state: S = self.State()

    # -- doors --------------------------------------------------------------------------------------------------------

    @entry
    def read(self, offset: int, size: int) -> int:
        """The register at `offset`. Raises BusFault where the window has none of this size."""
        if size not in self.sizes or offset >= self.span:
            raise BusFault(f"{self.name}: no {size}-byte register at {offset:#x}")
        return self._reads[offset]()

    @entry(posts=True)
    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register at `offset`. Raises BusFault where the window has none of this size."""
        if size not in self.sizes or offset >= self.span:
            raise BusFault(f"{self.name}: no {size}-byte register at {offset:#x}")
        self._writes[offset](value)

    @entry
    def reset(self) -> None:
        """Go back to the reset values."""
        self._state = self.State()
        self._sync()

    @entry
    def save(self) -> dict[str, Any]:
        """The state as (kind, version, fields)."""
        return save_state(self.kind, self.version, self._state)

    @entry
    def restore(self, payload: Mapping[str, Any]) -> None:
        """Take over a saved state. Raises SnapshotError, and changes nothing, when it is not one of this device."""
        self._state = load_state(self.kind, self.version, self.State(), payload)
        self._sync()

    @property
    @lockfree("a counter that only grows; whoever shows it may be one access behind")
    def refused(self) -> int:
        """Accesses to offsets without a register, or in a direction that it does not have."""
        return self._refusals

    # -- for the model ------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Drive every output from state."""
        raise NotImplementedError

    def _decoder(self, bank: str = "") -> Decoder:
        """The rows without a bank, replaced by those of `bank` where they share an offset."""
        reads: list[Callable[[], int]] = [self._refuse_read] * self.span
        writes: list[Callable[[int], None]] = [self._refuse_write] * self.span
        chosen = sorted((row for row in self.registers if row.bank in ("", bank)), key=lambda row: row.bank)
        for row in chosen:
            if row.read:
                reads[row.offset] = getattr(self, row.read.__name__)
            if row.write:
                writes[row.offset] = getattr(self, row.write.__name__)
        return Decoder(tuple(reads), tuple(writes))

    def _refuse_read(self) -> int:
        self._refusals += 1
        return 0

    def _refuse_write(self, value: int) -> None:
        self._refusals += 1


class Programmed(Protocol):
    """A class whose instances are programmed through registers in one window."""

    __name__: str
    registers: tuple[Register, ...]
    span: int
    sizes: frozenset[int]


def register_page(device: Programmed) -> str:
    """The documentation of one device's registers, Markdown."""
    lines = [f"## {device.__name__}", "", inspect.cleandoc(device.__doc__ or ""), ""]
    lines += ["| offset | bytes | access | name | meaning |", "| ---: | ---: | --- | --- | --- |"]
    for row in device.registers:
        meaning = f"{row.meaning} ({row.bank})" if row.bank else row.meaning
        lines.append(f"| {row.offset:#04x} | {row.width} | {row.access} | {row.name} | {meaning} |")
    sizes = ", ".join(str(size) for size in sorted(device.sizes))
    lines += ["", f"Window of {device.span:#x} bytes; accesses of {sizes} bytes.", ""]
    return "\n".join(lines)
