"""The goldfish real-time clock ("Goldfish Timer", Android emulator's GOLDFISH-VIRTUAL-HARDWARE.TXT).

It counts nanoseconds since the Unix epoch, in two 32-bit halves: reading the low one keeps the high one that belongs to
it. The alarm has one deadline; it fires at once when that has gone by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmm.devices.registers import Register, RegisterDevice
from vmm.fabric.clock import Clock
from vmm.fabric.irq import Wire
from vmm.locks import Locking, entry
from vmm.state import DeviceState

_LOW: Final = 0xFFFF_FFFF
_TIME: Final = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class RtcState(DeviceState):
    adjustment: int = 0
    """What the guest has added to the clock by setting the time, ns, modulo 2**64."""
    time_high: int = 0
    """The half that the last read of TIME_LOW kept."""
    alarm: int = 0
    """The alarm registers, the guest's time, ns."""
    due: int = 0
    """What they held when ALARM_LOW was last written: the deadline, if the alarm is running. A half-written alarm that
    has gone by must not fire."""
    alarm_running: bool = False
    irq_enabled: bool = False
    irq_pending: bool = False

    def broken(self) -> str | None:
        if not all(0 <= time <= _TIME for time in (self.adjustment, self.alarm, self.due)) or self.time_high >> 32:
            return "a register is wider than it is"
        return None


class GoldfishRtc(RegisterDevice[RtcState]):
    """Goldfish real-time clock: nanoseconds since the Unix epoch, with one alarm.

    Writing ALARM_LOW arms the alarm, so ALARM_HIGH is written first.
    """

    kind = "rtc_goldfish"
    State = RtcState
    span = 0x20
    sizes = frozenset((4,))

    def __init__(self, name: str, locking: Locking, *, wire: Wire, clock: Clock) -> None:
        """`clock` counts from the Unix epoch."""
        super().__init__(name, locking)
        # -- wiring
        self._wire = wire
        self._clock = clock
        self._timer = clock.timer(self.alarm_due, f"{name} alarm")
        self._sync()

    @entry
    def alarm_due(self) -> None:
        """The timer's door."""
        self._sync()

    def _sync(self) -> None:
        s = self._state
        if s.alarm_running and s.due <= self._now():
            s.alarm_running = False
            s.irq_pending = True
        self._wire.set(s.irq_pending and s.irq_enabled)
        if s.alarm_running:
            self._timer.arm(self._clock.now() + s.due - self._now())
        else:
            self._timer.cancel()

    def _now(self) -> int:
        return (self._clock.now() + self._state.adjustment) & _TIME

    def _set_time(self, time: int) -> None:
        s = self._state
        s.adjustment = (s.adjustment + time - self._now()) & _TIME
        self._sync()

    # -- registers ----------------------------------------------------------------------------------------------------

    def _read_time_low(self) -> int:
        now = self._now()
        self._state.time_high = now >> 32
        return now & _LOW

    def _write_time_low(self, value: int) -> None:
        self._set_time(self._now() & ~_LOW | value)

    def _read_time_high(self) -> int:
        return self._state.time_high

    def _write_time_high(self, value: int) -> None:
        self._set_time(value << 32 | self._now() & _LOW)

    def _read_alarm_low(self) -> int:
        return self._state.alarm & _LOW

    def _write_alarm_low(self, value: int) -> None:
        s = self._state
        s.due = s.alarm = s.alarm & ~_LOW | value
        s.alarm_running = True
        self._sync()

    def _read_alarm_high(self) -> int:
        return self._state.alarm >> 32

    def _write_alarm_high(self, value: int) -> None:
        s = self._state
        s.alarm = value << 32 | s.alarm & _LOW

    def _read_irq_enabled(self) -> int:
        return int(self._state.irq_enabled)

    def _write_irq_enabled(self, value: int) -> None:
        self._state.irq_enabled = bool(value & 1)
        self._sync()

    def _write_clear_alarm(self, value: int) -> None:
        self._state.alarm_running = False
        self._sync()

    def _read_alarm_status(self) -> int:
        return int(self._state.alarm_running)

    def _write_clear_interrupt(self, value: int) -> None:
        self._state.irq_pending = False
        self._sync()

    registers = (
        Register(0x00, 4, "rw", "TIME_LOW", "Low half of the time; latches the high", _read_time_low, _write_time_low),
        Register(0x04, 4, "rw", "TIME_HIGH", "High half of the time", _read_time_high, _write_time_high),
        Register(0x08, 4, "rw", "ALARM_LOW", "Low half of the alarm; writes arm it", _read_alarm_low, _write_alarm_low),
        Register(0x0C, 4, "rw", "ALARM_HIGH", "High half of the alarm", _read_alarm_high, _write_alarm_high),
        Register(0x10, 4, "rw", "IRQ_ENABLED", "Bit 0 lets the interrupt out", _read_irq_enabled, _write_irq_enabled),
        Register(0x14, 4, "wo", "CLEAR_ALARM", "Disarms the alarm", write=_write_clear_alarm),
        Register(0x18, 4, "ro", "ALARM_STATUS", "Whether the alarm is armed", read=_read_alarm_status),
        Register(0x1C, 4, "wo", "CLEAR_INTERRUPT", "Lowers the interrupt", write=_write_clear_interrupt),
    )
