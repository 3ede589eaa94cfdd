"""The 16550A UART ("PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs", National Semiconductor, 1995).

Transmission takes no time: a byte leaves the moment it is written, unless the host's side is congested. Then bytes wait
in the transmit FIFO and THR stays not empty, as if the line were slow, so the guest waits and the VCPU does not.
Reception is never faster than the guest: the host's side keeps what the FIFO has no room for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from vmm.devices.registers import Register, RegisterDevice
from vmm.fabric.clock import Clock
from vmm.fabric.irq import Wire
from vmm.locks import Locking, entry
from vmm.state import DeviceState

FIFO_DEPTH: Final = 16
RECEIVE_TIMEOUT_CHARACTERS: Final = 4
_TRIGGERS: Final = (1, 4, 8, 14)

# Interrupt enable
IER_RECEIVED, IER_THR_EMPTY, IER_LINE_STATUS, IER_MODEM_STATUS = 0x01, 0x02, 0x04, 0x08
# Interrupt identification, in falling priority
IIR_LINE_STATUS, IIR_TIMEOUT, IIR_RECEIVED, IIR_THR_EMPTY, IIR_MODEM_STATUS, IIR_NONE = 6, 12, 4, 2, 0, 1
IIR_FIFOS_ENABLED = 0xC0
# FIFO control
FCR_ENABLE, FCR_CLEAR_RECEIVER, FCR_CLEAR_TRANSMITTER = 0x01, 0x02, 0x04
# Line control
LCR_STOP_BITS, LCR_PARITY, LCR_DLAB = 0x04, 0x08, 0x80
# Modem control
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
# Line status
LSR_DATA_READY, LSR_OVERRUN, LSR_BREAK, LSR_THR_EMPTY, LSR_IDLE, LSR_FIFO_ERROR = 0x01, 0x02, 0x10, 0x20, 0x40, 0x80
# Modem status
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD

_BREAK: Final = 0x100
"""Marks a received character as a break until the guest has read line status."""
_NEVER: Final = -1


class Line(Protocol):
    """The host's end of the serial line (`vmm.host.chardev`). Its methods may be called with a device's lock held: they
    queue, wake and count, and neither block nor call back."""

    @property
    def congested(self) -> bool:
        """Whether to put nothing more for now. `output_ready` is called after this has become false."""

    def put(self, data: bytes) -> None:
        """Send `data`."""

    def lost(self, count: int) -> None:
        """The guest sent `count` bytes although it was told to wait, and they are gone."""

    def input_ready(self) -> None:
        """There is room again after `receive` took less than it was offered."""


@dataclass(slots=True)
class UartState(DeviceState):
    divisor: int = 12
    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    msr: int = MSR_CONNECTED
    scr: int = 0
    errors: int = 0
    """Line status bits that stay until line status is read."""
    thr_empty: bool = False
    """The transmitter-empty interrupt is pending: reading IIR or writing THR acknowledges it."""
    timed_out: bool = False
    """Characters have been waiting in the FIFO for longer than four character times."""
    timeout_at: int = _NEVER
    """Guest time, ns, at which that will be so."""
    received: list[int] = field(default_factory=list)
    sending: bytearray = field(default_factory=bytearray)

    def broken(self) -> str | None:
        deep = FIFO_DEPTH if self.fcr & FCR_ENABLE else 1
        registers = (self.ier, self.fcr, self.lcr, self.mcr, self.msr, self.scr, self.errors)
        if not all(0 <= value <= 0xFF for value in registers) or not 0 <= self.divisor <= 0xFFFF:
            return "a register is wider than it is"
        if not all(isinstance(c, int) and 0 <= c < 2 * _BREAK for c in self.received):
            return "a received character is none"
        if len(self.received) > deep or len(self.sending) > deep:
            return f"a FIFO holds more than {deep}"
        if self.timed_out and not self.received:
            return "a receive timeout without a character"
        return None


class Uart16550(RegisterDevice[UartState]):
    """16550A serial port with 16-byte FIFOs.

    Register addresses are bytes apart. Wider accesses reach the one register at their address.
    """

    kind = "uart16550"
    State = UartState
    span = 8
    sizes = frozenset((1, 2, 4, 8))

    def __init__(self, name: str, locking: Locking, *, wire: Wire, clock: Clock, line: Line, input_hz: int) -> None:
        super().__init__(name, locking)
        # -- fixed configuration
        self._input_hz = input_hz
        # -- wiring
        self._wire = wire
        self._line = line
        self._clock = clock
        self._timer = clock.timer(self.receive_timeout, f"{name} receive timeout")
        self._turned_away = False  # the host's side is waiting for `input_ready`
        # -- outputs of _sync()
        self._plain, self._latched = self._decoder(), self._decoder("DLAB = 1")
        self._lsr = self._iir = 0
        self._armed = _NEVER
        self._sync()

    # -- doors for the host's side ------------------------------------------------------------------------------------

    @entry
    def receive(self, data: bytes) -> int:
        """Characters arrive. Returns how many there was room for; `Line.input_ready` is called when there is more."""
        s = self._state
        taken = 0 if s.mcr & MCR_LOOP else min(len(data), self._depth() - len(s.received))
        for character in data[:taken]:
            self._arrive(character)
        self._turned_away = taken < len(data)
        self._sync()
        return taken

    @entry
    def line_break(self) -> None:
        """The line is held low for longer than a character: it is received as a null character with a mark."""
        if not self._state.mcr & MCR_LOOP:
            self._arrive(_BREAK)
            self._sync()

    @entry
    def output_ready(self) -> None:
        """The host's side is not congested any more."""
        self._sync()

    @entry
    def receive_timeout(self) -> None:
        """The timer's door."""
        self._armed = _NEVER
        s = self._state
        if s.timeout_at != _NEVER and s.timeout_at <= self._clock.now():
            s.timeout_at = _NEVER
            s.timed_out = True
        self._sync()

    # -- doors for firmware that is no guest code ---------------------------------------------------------------------

    @entry
    def transmit(self, data: bytes) -> int:
        """Send `data`, all of it or, when there is no room now, nothing; returns how many bytes."""
        s = self._state
        if s.sending or s.mcr & MCR_LOOP or self._line.congested:
            return 0
        self._line.put(data)
        s.thr_empty = True
        self._sync()
        return len(data)

    @entry
    def fetch(self, limit: int) -> bytes:
        """Up to `limit` of the characters that have arrived."""
        return bytes(self._read_rbr() for _ in range(min(limit, len(self._state.received))))

    # -- outputs ------------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        s = self._state
        if s.sending and not self._line.congested:
            self._line.put(bytes(s.sending))
            s.sending.clear()
            s.thr_empty = True
        if self._turned_away and not s.received and not s.mcr & MCR_LOOP:
            # Not before the FIFO is empty: one wake-up of the host's side for each FIFO-full, not for each byte.
            self._turned_away = False
            self._line.input_ready()

        lsr = s.errors
        if s.received:
            lsr |= LSR_DATA_READY
            if s.fcr & FCR_ENABLE and max(s.received) >= _BREAK:
                lsr |= LSR_FIFO_ERROR
        if not s.sending:
            lsr |= LSR_THR_EMPTY | LSR_IDLE
        self._lsr = lsr
        decoder = self._latched if s.lcr & LCR_DLAB else self._plain
        self._reads, self._writes = decoder.reads, decoder.writes

        self._iir = iir = self._pending()
        self._wire.set(iir != IIR_NONE)
        if s.timeout_at != self._armed:
            self._armed = s.timeout_at
            if s.timeout_at == _NEVER:
                self._timer.cancel()
            else:
                self._timer.arm(s.timeout_at)

    def _pending(self) -> int:
        """The interrupt of highest priority that is enabled and pending (table 4)."""
        s = self._state
        if s.ier & IER_LINE_STATUS and s.errors:
            return IIR_LINE_STATUS
        if s.ier & IER_RECEIVED:
            if s.timed_out:
                return IIR_TIMEOUT
            if len(s.received) >= (_TRIGGERS[s.fcr >> 6] if s.fcr & FCR_ENABLE else 1):
                return IIR_RECEIVED
        if s.ier & IER_THR_EMPTY and s.thr_empty:
            return IIR_THR_EMPTY
        if s.ier & IER_MODEM_STATUS and s.msr & 0x0F:
            return IIR_MODEM_STATUS
        return IIR_NONE

    # -- the receiver -------------------------------------------------------------------------------------------------

    def _depth(self) -> int:
        return FIFO_DEPTH if self._state.fcr & FCR_ENABLE else 1

    def _arrive(self, character: int) -> None:
        s = self._state
        if len(s.received) < self._depth():
            s.received.append(character)
        else:
            s.errors |= LSR_OVERRUN
            if not s.fcr & FCR_ENABLE:  # the FIFO keeps what it has, the holding register does not (8.6.2)
                s.received[0] = character
        self._reveal()
        self._restart_timeout()

    def _reveal(self) -> None:
        """A break shows in line status once its character is the next to be read (8.6.3, bit 4)."""
        s = self._state
        if s.received and s.received[0] & _BREAK:
            s.errors |= LSR_BREAK

    def _restart_timeout(self) -> None:
        s = self._state
        s.timed_out = False
        if not s.received or not s.fcr & FCR_ENABLE:
            s.timeout_at = _NEVER
            return
        bits = 1 + 5 + (s.lcr & 3) + bool(s.lcr & LCR_PARITY) + 1 + bool(s.lcr & LCR_STOP_BITS)
        # A divisor of 0 stops a real chip's clock; here it counts as 1, so that input cannot be stuck for ever.
        cycles = RECEIVE_TIMEOUT_CHARACTERS * bits * 16 * max(1, s.divisor)
        s.timeout_at = self._clock.now() + cycles * 1_000_000_000 // self._input_hz

    # -- registers ----------------------------------------------------------------------------------------------------

    def _read_rbr(self) -> int:
        s = self._state
        if not s.received:
            return 0
        character = s.received.pop(0) & 0xFF
        self._reveal()
        self._restart_timeout()
        self._sync()
        return character

    def _write_thr(self, value: int) -> None:
        s = self._state
        value &= 0xFF
        s.thr_empty = False
        if s.mcr & MCR_LOOP:
            self._arrive(value)
            s.thr_empty = True
        elif len(s.sending) < self._depth():
            s.sending.append(value)
        else:
            self._line.lost(1)
        self._sync()

    def _read_ier(self) -> int:
        return self._state.ier

    def _write_ier(self, value: int) -> None:
        s = self._state
        changed = (s.ier ^ value) & 0x0F
        s.ier = value & 0x0F
        if changed & IER_THR_EMPTY:  # enabling it while THR is empty interrupts at once
            s.thr_empty = bool(s.ier & IER_THR_EMPTY) and not s.sending
        self._sync()

    def _read_iir(self) -> int:
        s = self._state
        iir = self._iir
        if iir == IIR_THR_EMPTY:
            s.thr_empty = False
            self._sync()
        return iir | (IIR_FIFOS_ENABLED if s.fcr & FCR_ENABLE else 0)

    def _write_fcr(self, value: int) -> None:
        s = self._state
        if (s.fcr ^ value) & FCR_ENABLE:
            value |= FCR_CLEAR_RECEIVER | FCR_CLEAR_TRANSMITTER
        s.fcr = value & 0xC9
        if value & FCR_CLEAR_RECEIVER:
            s.received.clear()
            s.errors &= ~LSR_BREAK
            self._restart_timeout()
        if value & FCR_CLEAR_TRANSMITTER:
            s.sending.clear()
            s.thr_empty = True
        self._sync()

    def _read_lcr(self) -> int:
        return self._state.lcr

    def _write_lcr(self, value: int) -> None:
        self._state.lcr = value & 0xFF
        self._sync()

    def _read_mcr(self) -> int:
        return self._state.mcr

    def _write_mcr(self, value: int) -> None:
        s = self._state
        s.mcr = value & 0x1F
        lines = MSR_CONNECTED
        if s.mcr & MCR_LOOP:  # the four outputs come back as the four inputs (8.7, bit 4)
            lines = (s.mcr & MCR_RTS) << 3 | (s.mcr & MCR_DTR) << 5 | (s.mcr & (MCR_OUT1 | MCR_OUT2)) << 4
        changed = (s.msr ^ lines) & 0xF0
        if lines & MSR_RI:  # only the end of a ring counts as a change
            changed &= ~MSR_RI
        s.msr = lines | (s.msr & 0x0F) | changed >> 4
        self._sync()

    def _read_lsr(self) -> int:
        lsr = self._lsr
        s = self._state
        if s.errors:
            s.errors = 0
            if s.received:
                s.received[0] &= 0xFF
            self._sync()
        return lsr

    def _read_msr(self) -> int:
        s = self._state
        msr = s.msr
        if msr & 0x0F:
            s.msr = msr & 0xF0
            self._sync()
        return msr

    def _read_scr(self) -> int:
        return self._state.scr

    def _write_scr(self, value: int) -> None:
        self._state.scr = value & 0xFF

    def _read_dll(self) -> int:
        return self._state.divisor & 0xFF

    def _write_dll(self, value: int) -> None:
        s = self._state
        s.divisor = s.divisor & 0xFF00 | value & 0xFF

    def _read_dlm(self) -> int:
        return self._state.divisor >> 8

    def _write_dlm(self, value: int) -> None:
        s = self._state
        s.divisor = s.divisor & 0xFF | (value & 0xFF) << 8

    registers = (
        Register(0, 1, "ro", "RBR", "Receiver buffer", read=_read_rbr),
        Register(0, 1, "wo", "THR", "Transmitter holding", write=_write_thr),
        Register(1, 1, "rw", "IER", "Interrupt enable", _read_ier, _write_ier),
        Register(2, 1, "ro", "IIR", "Interrupt identification; acknowledges THR empty", read=_read_iir),
        Register(2, 1, "wo", "FCR", "FIFO control", write=_write_fcr),
        Register(3, 1, "rw", "LCR", "Line control", _read_lcr, _write_lcr),
        Register(4, 1, "rw", "MCR", "Modem control", _read_mcr, _write_mcr),
        Register(5, 1, "ro", "LSR", "Line status; reading clears the error bits", read=_read_lsr),
        Register(6, 1, "ro", "MSR", "Modem status; reading clears the change bits", read=_read_msr),
        Register(7, 1, "rw", "SCR", "Scratch", _read_scr, _write_scr),
        Register(0, 1, "rw", "DLL", "Divisor latch, low byte", _read_dll, _write_dll, bank="DLAB = 1"),
        Register(1, 1, "rw", "DLM", "Divisor latch, high byte", _read_dlm, _write_dlm, bank="DLAB = 1"),
    )
