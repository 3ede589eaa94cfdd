"""The test finisher of SiFive's boards: a guest writes to it to end, with a status, or to start again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vmm.devices.registers import Register, RegisterDevice
from vmm.locks import Locking
from vmm.state import DeviceState

FAIL: Final = 0x3333
PASS: Final = 0x5555
RESET: Final = 0x7777


@dataclass(slots=True)
class FinisherState(DeviceState):
    """It remembers nothing: what it was told has been passed on before the access returns."""


class Finisher(RegisterDevice[FinisherState]):
    """Test finisher: power off with a status, or reset.

    The low half of what is written says what to do: 0x5555 power off, 0x3333 power off with the high half as exit
    status, 0x7777 reset. Anything else is ignored.
    """

    kind = "finisher"
    State = FinisherState
    span = 4
    sizes = frozenset((2, 4))

    def __init__(
        self, name: str, locking: Locking, *, power_off: Callable[[int], None], restart: Callable[[], None]
    ) -> None:
        super().__init__(name, locking)
        # -- wiring: both only post to the lifecycle
        self._power_off = power_off
        self._restart = restart

    def _sync(self) -> None:
        """There is nothing to drive."""

    def _write_finish(self, value: int) -> None:
        if value & 0xFFFF == PASS:
            self._post(self._power_off, 0)
        elif value & 0xFFFF == FAIL:
            self._post(self._power_off, value >> 16 & 0xFFFF)
        elif value & 0xFFFF == RESET:
            self._post(self._restart)

    def _read_finish(self) -> int:
        return 0

    registers = (
        Register(0, 4, "rw", "FINISH", "Low half: what to do, high half: status", _read_finish, _write_finish),
    )
