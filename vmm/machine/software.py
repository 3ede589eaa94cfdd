"""Fits the software VCPUs (`vmm.vcpu`) to what a board needs of its harts."""

from __future__ import annotations

from typing import Any

from vmm.errors import DeadlineError
from vmm.fabric.irq import Wire
from vmm.locks import DeviceLock
from vmm.machine import virt
from vmm.machine.boot import Entry
from vmm.machine.harts import Surroundings
from vmm.machine.lifecycle import Outcome, Reason
from vmm.machine.sbi import Park, Return, Suspend
from vmm.vcpu.software import JitStatistics, SoftwareBackend
from vmm.vcpu.thread import Gate, VcpuThread
from vmm.waitfor import Sighting

_A0, _A1 = 10, 11
_WORD = (1 << 64) - 1
_ADUE = 1 << 61
"""menvcfg: page walks set accessed and dirty bits (priv. spec 3.1.18)."""


class SoftwareHarts:
    """All harts of a machine, one thread each. Generated code serves timer, IPI and fence calls by itself."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._backend = self._new_backend()
        self._gate = Gate(around.locking.kit)
        kind: type[VcpuThread] = VcpuThread
        more: dict[str, Any] = {}
        if around.trace_exits is not None or around.trace_exec is not None:
            from vmm.vcpu.trace import TracedVcpuThread  # here, since the disassembler is slow to import

            kind, more = TracedVcpuThread, {"exits": around.trace_exits, "instructions": around.trace_exec}
        if (meter := around.locking.kit.meter) is not None:
            from vmm.vcpu.metered import metered

            kind, more = metered(kind), {**more, "meter": meter}
        outside = around.locking.outside_guest
        self._threads = [
            kind(
                vcpu,
                self._backend,
                around.bus,
                self._gate,
                sbi=self._call,
                outside_guest=outside if isinstance(outside, DeviceLock) else None,
                on_death=self._died,
                **more,
            )
            for vcpu in self._backend.vcpus
        ]

    def _new_backend(self) -> SoftwareBackend:
        around = self._around
        return SoftwareBackend(
            around.ram,
            around.clock,
            around.count,
            plic_base=virt.PLIC.base,
            clint_base=virt.CLINT.base,
            sbi=not around.firmware,
            jit=around.jit,
        )

    def line(self, source: int) -> Wire:
        return self._backend.wire(source)

    def reset(self, entry: Entry) -> None:
        self._backend.reset()
        for thread in self._threads:
            self._enter(thread, entry.pc, entry.a1, entry.a2)
            thread.parked = not entry.machine_mode and thread.index != 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def pause(self, timeout: float) -> None:
        self._gate.close(timeout)

    def resume(self) -> None:
        self._gate.open()

    def stop(self, timeout: float) -> None:
        self._gate.end()
        stuck = [f"{thread.name} {thread.doing()}" for thread in self._threads if not thread.join(timeout)]
        if stuck:
            raise DeadlineError(f"VCPUs did not end within {timeout:g} s: {'; '.join(stuck)}")

    def tell(self, sighting: Sighting) -> None:
        self._gate.tell(sighting)

    def standing(self) -> list[str]:
        return [thread.standing() for thread in self._threads]

    def interrupts(self) -> list[str]:
        return self._backend.interrupts()

    def statistics(self) -> dict[str, object]:
        return {thread.name: {**thread.vcpu.statistics(), "exits": sum(thread.exits)} for thread in self._threads}

    def jit_statistics(self) -> JitStatistics:
        return self._backend.jit_statistics()

    # -- HartControl --------------------------------------------------------------------------------------------------

    def start_hart(self, hart: int, pc: int, opaque: int) -> None:
        thread = self._threads[hart]
        self._gate.unpark(thread, lambda: self._restart(thread, pc, opaque))

    # -- on a hart's thread -------------------------------------------------------------------------------------------

    def _call(self, vcpu: VcpuThread) -> None:
        x = vcpu.vcpu.x
        answer = self._around.call(vcpu.index, list(x[_A0 : _A0 + 8]))
        match answer:
            case Return(error, value):
                x[_A0] = error & _WORD
                if value is not None:
                    x[_A1] = value & _WORD
            case Park():
                self._gate.park(vcpu)
            case Suspend(restart):
                # The wait may end early for any reason, as WFI's may: here it ends at once.
                if restart is None:
                    x[_A0] = 0
                else:
                    self._restart(vcpu, *restart)
                self._around.resumed(vcpu.index)

    def _restart(self, thread: VcpuThread, pc: int, opaque: int) -> None:
        thread.vcpu.reset()
        self._enter(thread, pc, opaque)

    def _enter(self, thread: VcpuThread, pc: int, a1: int, a2: int = 0) -> None:
        """Goes on from the reset state at `pc`, a0 the hart's number."""
        thread.vcpu.start_at(pc, thread.index, a1, a2)
        if not self._around.svadu:
            thread.vcpu.words["menvcfg"] &= ~_ADUE

    def _died(self, thread: VcpuThread, report: str) -> None:
        self._around.ended(Outcome(Reason.FAILED, report=report))
