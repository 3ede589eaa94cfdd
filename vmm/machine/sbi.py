"""The built-in supervisor binary interface: what firmware would do for a kernel that is booted without any.

RISC-V SBI Specification 2.0. Served: base, timer, IPI, remote fence, hart state, system reset, debug console, and of
the legacy extensions console and shutdown. Everything else, PMU and steal-time accounting included, is answered "not
supported", and probes say so.

`Sbi.call` is sans-I/O: registers in, an `Answer` out. What it does to harts goes through `HartControl`, console and
power through two more narrow doors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Any, Protocol

from vmm.devices.saved import load_state, save_state
from vmm.errors import SnapshotError
from vmm.locks import Device, Locking, Rank, entry
from vmm.machine.boot import GuestRam
from vmm.state import DeviceState

SPEC_VERSION = 2 << 24
IMPLEMENTATION_ID = 0x76_6D6D
"""Not one of the assigned numbers (0 to 11 as of SBI 2.0): the letters of this project's name."""

_CONSOLE_CHUNK = 4096

IN_THE_VCPU = frozenset({0x5449_4D45, 0x73_5049, 0x5246_4E43})
"""Timer, IPI and remote fences (chapters 6 to 8): generated code answers these calls, and none of them gets here."""


class Error(IntEnum):
    """SBI 2.0, table 1."""

    SUCCESS = 0
    FAILED = -1
    NOT_SUPPORTED = -2
    INVALID_PARAM = -3
    DENIED = -4
    INVALID_ADDRESS = -5
    ALREADY_AVAILABLE = -6


class HartStatus(IntEnum):
    """SBI 2.0, table 8, but for the pending states: here a change of state is one step under a lock."""

    STARTED = 0
    STOPPED = 1
    SUSPENDED = 4


class Power(Enum):
    """What a guest can ask of the machine as a whole."""

    OFF = auto()
    RESET = auto()


class HartControl(Protocol):
    """What the calls need of the harts. It may be called from any hart's thread."""

    def start_hart(self, hart: int, pc: int, opaque: int) -> None:
        """Lets a parked hart run in S-mode at `pc`, a0 its number, a1 `opaque`, satp and sstatus.SIE zero.

        The hart may still be on its way to being parked: the request is kept until it gets there.
        """
        ...


class Console(Protocol):
    """Where the debug console's bytes go; both calls return at once."""

    def write(self, data: bytes) -> int:
        """How many of the bytes were taken, 0 when there is no room now."""
        ...

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes that have arrived, possibly none."""
        ...


@dataclass(frozen=True)
class Return:
    """The hart goes on behind its ecall with a0 = `error` and, unless the call is a legacy one, a1 = `value`."""

    error: int
    value: int | None = 0


@dataclass(frozen=True)
class Park:
    """The call does not return: the hart rests until `HartControl.start_hart` or a reset of the machine."""


@dataclass(frozen=True)
class Suspend:
    """The hart waits for an interrupt as by WFI, then the thread tells `Sbi.resumed`.

    With `restart` (pc, opaque) it goes on there as if started; without, behind its ecall with a0 = 0.
    """

    restart: tuple[int, int] | None


Answer = Return | Park | Suspend

NOT_SUPPORTED = Return(Error.NOT_SUPPORTED)


@dataclass(slots=True)
class HartStatesState(DeviceState):
    """`status` has a `HartStatus` for each hart; a board fills it when it is made and at each reset."""

    status: list[int] = field(default_factory=list)

    def broken(self) -> str | None:
        known = set(HartStatus)
        return next((f"hart status {status} is none" for status in self.status if status not in known), None)


class HartStates(Device):
    """Which harts run, by the hart state management extension (SBI 2.0, chapter 9).

    The lock makes "is it stopped? then start it" one step when two harts start a third.
    """

    kind = "sbi-harts"
    State = HartStatesState
    lock_rank = Rank.VCPU

    def __init__(self, name: str, locking: Locking, *, harts: int, control: HartControl) -> None:
        super().__init__(name, locking)
        # -- fixed configuration
        self._harts = harts
        # -- wiring
        self._control = control
        # -- volatile state
        self._state = self._at_reset()

    @entry(posts=True)
    def start(self, hart: int, pc: int, opaque: int) -> Error:
        if self._state.status[hart] != HartStatus.STOPPED:
            return Error.ALREADY_AVAILABLE
        self._state.status[hart] = HartStatus.STARTED
        self._post(self._control.start_hart, hart, pc, opaque)
        return Error.SUCCESS

    @entry
    def set(self, hart: int, status: HartStatus) -> None:
        """What hart `hart` has just done by itself."""
        self._state.status[hart] = int(status)

    @entry
    def status(self, hart: int) -> HartStatus:
        return HartStatus(self._state.status[hart])

    @entry
    def reset(self) -> None:
        self._state = self._at_reset()

    @entry
    def save(self) -> dict[str, Any]:
        return save_state(self.kind, 1, self._state)

    @entry
    def restore(self, payload: Mapping[str, Any]) -> None:
        """Raises SnapshotError for what `save` of a board with as many harts did not make."""
        state = load_state(self.kind, 1, self.State(), payload)
        if len(state.status) != self._harts:
            raise SnapshotError(f"saved {self.kind} has {len(state.status)} harts, and the board {self._harts}")
        self._state = state

    def _at_reset(self) -> HartStatesState:
        return self.State([int(HartStatus.STARTED)] + [int(HartStatus.STOPPED)] * (self._harts - 1))


class Sbi:
    """Answers the calls of all harts. It holds no state of its own but the harts'; harts call at the same time."""

    def __init__(
        self,
        *,
        harts: int,
        states: HartStates,
        memory: GuestRam,
        console: Console,
        power: Callable[[Power, int], None],
    ) -> None:
        """`power(what, code)` posts to the lifecycle and returns at once; `code` is 0, or 1 for a failed system."""
        self._harts = harts
        self._states = states
        self._memory = memory
        self._console = console
        self._power = power
        self._extensions: dict[int, Callable[[int, int, Sequence[int]], Answer]] = {
            0x01: self._legacy_putchar,
            0x02: self._legacy_getchar,
            0x08: self._legacy_shutdown,
            0x10: self._base,
            0x48_534D: self._hsm,
            0x5352_5354: self._srst,
            0x4442_434E: self._dbcn,
        }

    def call(self, hart: int, a: Sequence[int]) -> Answer:
        """Serves an ecall from S-mode on `hart`; `a` holds a0 to a7 as unsigned 64-bit numbers."""
        extension = self._extensions.get(a[7])
        if extension is None:
            return Return(Error.NOT_SUPPORTED, None) if a[7] < 0x10 else NOT_SUPPORTED
        return extension(hart, a[6], a)

    def resumed(self, hart: int) -> None:
        """The hart's wait after `Suspend` is over."""
        self._states.set(hart, HartStatus.STARTED)

    # -- chapters 4 and 5: base, legacy

    def _base(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        match function:
            case 0:
                return Return(Error.SUCCESS, SPEC_VERSION)
            case 1:
                return Return(Error.SUCCESS, IMPLEMENTATION_ID)
            case 2:
                return Return(Error.SUCCESS, 1)
            case 3:
                return Return(Error.SUCCESS, int(a[0] in self._extensions or a[0] in IN_THE_VCPU))
            case 4 | 5 | 6:  # mvendorid, marchid, mimpid
                return Return(Error.SUCCESS, 0)
            case _:
                return NOT_SUPPORTED

    def _legacy_putchar(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        self._console.write(bytes([a[0] & 0xFF]))
        return Return(Error.SUCCESS, None)

    def _legacy_getchar(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        data = self._console.read(1)
        return Return(data[0] if data else -1, None)

    def _legacy_shutdown(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        self._power(Power.OFF, 0)
        return Park()

    # -- chapters 9 and 10: harts and the system

    def _hsm(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        match function:
            case 0:
                if a[0] >= self._harts:
                    return Return(Error.INVALID_PARAM)
                if not self._executable(a[1]):
                    return Return(Error.INVALID_ADDRESS)
                return Return(self._states.start(a[0], a[1], a[2]))
            case 1:
                self._states.set(hart, HartStatus.STOPPED)
                return Park()
            case 2:
                if a[0] >= self._harts:
                    return Return(Error.INVALID_PARAM)
                return Return(Error.SUCCESS, self._states.status(a[0]))
            case 3:
                return self._suspend(hart, a[0], a[1], a[2])
            case _:
                return NOT_SUPPORTED

    def _suspend(self, hart: int, kind: int, resume_address: int, opaque: int) -> Answer:
        match kind & 0xFFFF_FFFF:
            case 0:
                self._states.set(hart, HartStatus.SUSPENDED)
                return Suspend(None)
            case 0x8000_0000:
                if not self._executable(resume_address):
                    return Return(Error.INVALID_ADDRESS)
                self._states.set(hart, HartStatus.SUSPENDED)
                return Suspend((resume_address, opaque))
            case code if code & 0x7FFF_FFFF >= 0x1000_0000:  # platform specific, and this platform has none
                return NOT_SUPPORTED
            case _:  # reserved
                return Return(Error.INVALID_PARAM)

    def _srst(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        if function != 0:
            return NOT_SUPPORTED
        kind, reason = a[0] & 0xFFFF_FFFF, a[1] & 0xFFFF_FFFF
        if kind >= 0xF000_0000 or reason >= 0xE000_0000:  # vendor and platform specific
            return NOT_SUPPORTED
        if kind > 2 or reason > 1:
            return Return(Error.INVALID_PARAM)
        self._power(Power.OFF if kind == 0 else Power.RESET, reason)
        return Park()

    def _executable(self, address: int) -> bool:
        return self._memory.base <= address < self._memory.base + self._memory.size and address % 2 == 0

    # -- chapter 12: debug console

    def _dbcn(self, hart: int, function: int, a: Sequence[int]) -> Answer:
        if function == 2:
            taken = self._console.write(bytes([a[0] & 0xFF]))
            return Return(Error.SUCCESS if taken else Error.FAILED)
        if function > 2:
            return NOT_SUPPORTED
        length, low, high = a[0], a[1], a[2]
        offset = low - self._memory.base
        if length == 0:
            return Return(Error.SUCCESS, 0)
        if high or offset < 0 or offset + length > self._memory.size:
            return Return(Error.INVALID_PARAM)
        # A call may move fewer bytes than asked for: a guest cannot make one hart print all of RAM in one call.
        length = min(length, _CONSOLE_CHUNK)
        if function == 0:
            return Return(Error.SUCCESS, self._console.write(bytes(self._memory.view[offset : offset + length])))
        data = self._console.read(length)
        self._memory.view[offset : offset + len(data)] = data
        self._memory.written(low, len(data))
        return Return(Error.SUCCESS, len(data))
