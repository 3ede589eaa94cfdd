"""VCPU threads that measure how long, and on account of what, they are outside the guest."""

from __future__ import annotations

from typing import Any

from vmm.lockstat import Meter, now
from vmm.vcpu.layout import Exit, Mmio
from vmm.vcpu.thread import VcpuThread

_CAUSES = [f"exit {Exit(number).name}" for number in range(len(Exit))]
_MMIO = (Exit.MMIO_READ, Exit.MMIO_WRITE)


class MeteredVcpuThread(VcpuThread):
    """A VCPU thread between whose exits and entries a meter looks at the clock.

    From one exit to the next entry is a stall. Locks taken meanwhile are taken on account of the exit.
    """

    def __init__(self, *args: Any, meter: Meter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._meter = meter
        self._stalls = meter.stalls(self.name)
        self._guest, self._enter = self._enter, self._enter_measured
        self._left = self._locked = self._paused = 0  # when it left the guest, and what it had waited until then
        self._reason = 0

    def _enter_measured(self) -> int:
        activity = self._meter.here.activity
        words, track = self.vcpu.words, activity.track
        entered = now()
        if self._left:
            cause, total = _CAUSES[self._reason], entered - self._left
            self._stalls.add(cause, total, activity.locked_ns - self._locked, activity.paused_ns - self._paused)
            if track is not None:
                track.span(f"{cause}{self._place()}", "exit", self._left, entered)
        idle = words["idle_ns"]
        self._reason = reason = self._guest()
        activity.cause = _CAUSES[reason]
        self._locked, self._paused = activity.locked_ns, activity.paused_ns
        self._left = left = now()
        if track is not None:
            track.span("guest", "guest", entered, left, {"idle_us": (words["idle_ns"] - idle) / 1e3})
        return reason

    def _place(self) -> str:
        """What the last exit was about, for one that is an access."""
        if self._reason not in _MMIO:
            return ""
        vcpu = self.vcpu
        window = self._snapshot.find(vcpu.mmio_addr[0])
        faulted = " faults" if vcpu.mmio_state[0] == Mmio.FAULT else ""
        return f" {window.name if window else hex(vcpu.mmio_addr[0])}{faulted}"


def metered(kind: type[VcpuThread]) -> type[MeteredVcpuThread]:
    """The measuring variant of a kind of VCPU thread."""
    return MeteredVcpuThread if kind is VcpuThread else type(f"Metered{kind.__name__}", (MeteredVcpuThread, kind), {})
