"""What a machine is made of, as the user says it. The names are those of the options of `vmm-run`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from vmm.bql import Policy
from vmm.errors import ConfigError

MAX_HARTS = 32
MIN_MEM = 32 << 20
VIRTIO_SLOTS = 8

Jit: TypeAlias = Literal["off", "baseline"]
JITS: Final[Mapping[Jit, str]] = MappingProxyType(
    {"off": "interpret every instruction", "baseline": "translate warm code to machine code, piece by piece"}
)
"""Tiers of the software VCPU, each with those before it."""


@dataclass(frozen=True)
class Drive:
    """One virtio disk. `snapshot` keeps writes in memory or scratch space and drops them at the end."""

    file: Path
    format: str = "raw"
    readonly: bool = False
    snapshot: bool = False
    id: str = ""
    """What the guest reads as the disk's serial number, at most 20 bytes; empty for none."""

    def problem(self, ids: Collection[str]) -> str | None:
        """Why it cannot be, beside disks that have such `ids`; None when it can."""
        if self.format != "raw":
            return f"format={self.format} is not known: convert {self.file} to raw and give format=raw"
        if len(self.id.encode()) > 20:
            return f"id={self.id} is longer than 20 bytes: shorten it"
        if self.id and self.id in ids:
            return f"id={self.id} is used twice: give each drive its own"
        return None


@dataclass(frozen=True)
class Console:
    """A virtio console. `other_end` is what `vmm.host.consoles.open_chardev` takes."""

    other_end: str


@dataclass(frozen=True)
class Rng:
    """A virtio random number generator."""


@dataclass(frozen=True)
class Balloon:
    """A virtio memory balloon."""


Pluggable = Drive | Console | Rng | Balloon
"""What a virtio slot can hold."""


@dataclass(frozen=True)
class Config:
    """A machine to be. `mem` is in bytes; `serial` and `console` are what `vmm.host.consoles.open_chardev` takes."""

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    bios: Path | None = None
    smp: int = 1
    mem: int = 256 << 20
    drive: tuple[Drive, ...] = ()
    serial: str = "null"
    console: str = ""
    """A virtio console's other end; empty for no such device."""
    rng: bool = True
    balloon: bool = False
    svadu: bool = True
    jit: Jit = "baseline"
    locking: Policy = "device"
    check_locks: bool = False
    lock_stat: bool = False
    """Measure locks and harts: `Machine.lock_statistics`."""
    trace: Path | None = None
    """A file for the timeline of all threads (`vmm.timeline`)."""
    watchdog: float = 0.0
    """Seconds without progress after which a hang is reported; 0 for no watchdog."""
    hang_report: str = ""
    """The file for reports of hangs; empty for standard error."""
    no_reboot: bool = False
    trace_exits: str = ""
    trace_exec: str = ""
    """Files to write the traces to; "-" is standard error, empty is no trace."""
    rng_seed: bytes = b""
    """32 bytes for the guest's random number generator; empty to draw them from the host."""

    def check(self) -> None:
        """Raises ConfigError for what cannot be, before anything is opened or allocated."""
        if not 1 <= self.smp <= MAX_HARTS:
            raise ConfigError(f"--smp: {self.smp} harts cannot be: give 1 to {MAX_HARTS}")
        if self.mem < MIN_MEM:
            raise ConfigError(f"--mem: {self.mem} bytes are too little: give at least {MIN_MEM >> 20}M")
        slots = len(self.drive) + sum((self.rng, self.balloon, bool(self.console)))
        if slots > VIRTIO_SLOTS:
            raise ConfigError(f"--drive: {slots} virtio devices, and there are {VIRTIO_SLOTS} slots: give fewer")
        if self.serial == self.console == "stdio":
            raise ConfigError("--console: the terminal is the serial port's already: give --serial null too")
        for number, drive in enumerate(self.drive):
            if problem := drive.problem({other.id for other in self.drive[:number]}):
                raise ConfigError(f"--drive: {problem}")
