"""One OS thread per VCPU, and the gate through which they are paused, stopped and parked.

Whether a VCPU may run is a predicate under one condition variable (`Gate`), never an edge: a thread that is asked to
leave looks at the predicate before it goes back in, so no wake-up can be lost between a check and a wait.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from vmm.errors import DeadlineError, InternalError
from vmm.fabric.bus import Bus, BusDoorbell, BusFault, Mapping, Snapshot
from vmm.fabric.threads import name_os_thread, wait_exactly
from vmm.locks import PLAIN, DeviceLock, Kit
from vmm.vcpu import layout
from vmm.vcpu.layout import Exit, Mmio
from vmm.vcpu.software import SignalStack, SoftwareBackend, SoftwareVcpu, catch_host_faults
from vmm.waitfor import Sighting

# As plain integers: to look up and compare a member of an enumeration costs 80 ns, a tenth of what Python does an exit.
_MMIO_READ, _MMIO_WRITE, _MMIO_DONE, _MMIO_FAULT = map(int, (Exit.MMIO_READ, Exit.MMIO_WRITE, Mmio.DONE, Mmio.FAULT))

SWITCH_INTERVAL_S = 50e-6
"""How long a thread that waits for the GIL lets another one run Python before it asks for it: an exit beside a busy I/O
thread waits that long and 40 us of hand-off. CPython's own 5 ms are made for programs that only compute
(docs/adr/0001-first-measurement.md)."""


_NO_SNAPSHOT = Snapshot(-1, (), ())


class SbiCalls(Protocol):
    """What answers the calls that generated code leaves to Python: `vmm.machine.sbi`, through the machine."""

    def __call__(self, vcpu: VcpuThread) -> None: ...


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """A gate at one moment: names of threads."""

    state: str
    inside: tuple[str, ...]
    parked: tuple[str, ...]
    waiters: tuple[str, ...]
    """Who waits for the gate to open, or for harts to come to it."""


class Gate:
    """Which VCPU threads may be in guest code.

    All threads hold at the gate while it is closed; one that is parked (a hart that is stopped) holds until it is
    started. `closed()` is the safepoint: inside it, no VCPU is in guest code or in a device on behalf of one.
    """

    def __init__(self, kit: Kit = PLAIN) -> None:
        self.kit = kit
        self.arrival = kit.progress("harts at the gate")
        self.departure = kit.progress("a stopping hart leaves")
        """Apart from `arrival`: a hart that has said it is stopped takes no more lock on its way to the gate, so one
        inside may wait for it."""
        self.opening = kit.progress("the gate opens")
        # Guards all below; notified when a thread arrives at the gate, and when one may go on.
        self._changed = kit.condition("gate")
        self._threads: list[VcpuThread] = []
        self._inside = 0
        self._closers = 0
        self._ended = False

    def statistics(self) -> GateStatistics:
        threads = list(self._threads)
        return GateStatistics(
            state="ended" if self._ended else f"closed {self._closers} times" if self._closers else "open",
            inside=tuple(thread.name for thread in threads if thread.inside),
            parked=tuple(thread.name for thread in threads if thread.parked),
            waiters=tuple(
                name
                for progress in (self.arrival, self.departure, self.opening)
                for name in progress.statistics().waiters
            ),
        )

    def __repr__(self) -> str:
        now = self.statistics()
        waiters = f", {', '.join(now.waiters)} waiting" if now.waiters else ""
        return f"<Gate {now.state}: {', '.join(now.inside) or 'no VCPU'} inside{waiters}>"

    def add(self, thread: VcpuThread) -> None:
        with self._changed:
            self._threads.append(thread)

    def enter(self, thread: VcpuThread) -> bool:
        """Wait until this thread may run; False when it is to end."""
        with self.opening.waiting(), self._changed:
            self._changed.wait_for(lambda: self._ended or not (self._closers or thread.parked))
            if self._ended:
                return False
            self._inside += 1
            return True

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def tell(self, sighting: Sighting) -> None:
        """Who waits at the gate and for it, and what its VCPUs are doing."""
        self.arrival.tell(sighting)
        self.opening.tell(sighting)
        for thread in self._threads:
            thread.tell(sighting)

    def must_hold(self, thread: VcpuThread) -> bool:
        return bool(self._closers or self._ended or thread.parked)

    def close(self, deadline: float = 10.0) -> None:
        """Wait until no VCPU is inside. Not from a VCPU's own thread while it is inside.

        Raises DeadlineError with the culprits if one does not arrive within `deadline` seconds.
        """
        with self.arrival.waiting(), self._changed:
            self._closers += 1
            for thread in self._threads:
                thread.vcpu.kick()
            if not self._changed.wait_for(lambda: not self._inside, deadline):
                culprits = "; ".join(f"{t.name} {t.doing()}" for t in self._threads if t.inside)
                raise DeadlineError(f"VCPUs did not come to a safepoint within {deadline:g} s: {culprits or self}")

    def open(self) -> None:
        with self._changed:
            self._closers -= 1
            self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        self.close()
        try:
            with self.opening.serving():
                yield
        finally:
            self.open()

    def end(self) -> None:
        """All threads end once they are at the gate."""
        with self._changed:
            self._ended = True
            for thread in self._threads:
                thread.vcpu.kick()
            self._changed.notify_all()

    def park(self, thread: VcpuThread) -> None:
        """Have `thread`, the caller, hold at the gate until `unpark`. It goes there next, and takes no lock before."""
        with self.departure.serving(), self._changed:
            thread.parked = True

    def unpark(self, thread: VcpuThread, prepare: Callable[[], None]) -> None:
        """Let a parked thread run. `prepare` sets its registers; it runs once the thread is surely out."""
        with self.departure.waiting(), self._changed:
            self._changed.wait_for(lambda: not thread.inside)
            prepare()
            thread.parked = False
            self._changed.notify_all()


class VcpuThread:
    """Runs one VCPU: exits go to the bus, to the SBI, or back in.

    `on_death(thread, report)` is told, on this thread, when it dies of an error.
    """

    def __init__(
        self,
        vcpu: SoftwareVcpu,
        backend: SoftwareBackend,
        bus: Bus,
        gate: Gate,
        *,
        sbi: SbiCalls,
        outside_guest: DeviceLock | None,
        on_death: Callable[[VcpuThread, str], None],
    ) -> None:
        self.vcpu = vcpu
        self.index = vcpu.index
        self.name = f"vcpu{vcpu.index}"
        self.parked = False
        self.inside = False
        self.exits = [0] * len(Exit)
        self._enter: Callable[[], int] = vcpu.run
        self._code_full = False
        self._backend = backend
        self._gate = gate
        self._sbi = sbi
        self._outside_guest = outside_guest
        self._on_death = on_death
        self._bus = bus
        self._reader = bus.reader(self.name, vcpu.kick)
        # Held by `_reader` while this thread is inside, with the windows found in it.
        self._snapshot = _NO_SNAPSHOT
        # Those that native code knows of.
        self._doorbells: tuple[BusDoorbell, ...] = ()
        self._windows: dict[int, Mapping] = {}
        self._thread = gate.kit.thread(self._main, self.name)
        gate.add(self)

    def __repr__(self) -> str:
        where = "parked" if self.parked else "running" if self.inside else "at the gate"
        return f"<VcpuThread {self.name} {where}>"

    def start(self) -> None:
        catch_host_faults()
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; False if it has not ended in time. One that never started has ended."""
        if self._thread.ident is not None:
            with self._gate.arrival.waiting():
                self._thread.join(timeout)
        return not self._thread.is_alive()

    def tell(self, sighting: Sighting) -> None:
        """What it is doing, for those who wait for it at the gate."""
        words, ident = self.vcpu.words, self._thread.ident
        # Counted up to the exit it is in: another exit, or a turn in WFI, is another stay.
        stay = (*self.exits, words["retired"], words["wfi_count"])
        if self.inside:
            doing = self.doing()
            sighting.hold(ident, self._gate.arrival.name, f"it is {doing}")
            if self.outside:
                sighting.stay(ident, doing, stay)

    @property
    def outside(self) -> bool:
        """Whether it serves an exit. Any thread may ask, and the answer may be old."""
        words = self.vcpu.words
        return self.inside and not (words["in_guest"] or words["waiting"])

    def doing(self) -> str:
        """What it is doing, in a few words. Any thread may ask, and the answer may be old."""
        words = self.vcpu.words
        if self.parked:
            return "parked"
        if not self.inside:
            return "at the gate"
        if not self.outside:
            return "in WFI" if words["waiting"] else "in the guest"
        reason = words["exit_reason"]
        if reason in (_MMIO_READ, _MMIO_WRITE):
            address = words["mmio_addr"]
            window = self._bus.snapshot.find(address)
            way = "read" if reason == _MMIO_READ else "write"
            return f"in an exit: {way} of {words['mmio_size']} bytes at {address:#x} ({window.name if window else '-'})"
        if reason == Exit.SBI:
            return f"in an exit: SBI call {self.vcpu.x[17]:#x}.{self.vcpu.x[16]}"
        return f"in an exit: {Exit(reason).name}"

    def standing(self) -> str:
        """Privilege, pc and what it is doing. In guest code the pc is that of the last exit."""
        vcpu = self.vcpu
        mode = {layout.PRV_U: "U", layout.PRV_S: "S", layout.PRV_M: "M"}.get(vcpu.privilege, "?")
        known = "" if self.outside or not self.inside else " when it last came out"
        return f"hart {self.index}: {mode}-mode, pc {vcpu.pc:#018x}{known}; {self.name} is {self.doing()}"

    def _main(self) -> None:
        name_os_thread(self.name)
        wait_exactly()  # the wait for the GIL is a timed one, and so is WFI
        signals = SignalStack(self.vcpu.address)
        try:
            while self._gate.enter(self):
                self.inside = True
                try:
                    with self._gate.arrival.serving():
                        self._refresh()
                        self._run()
                finally:
                    self._let_go()
                    self.inside = False
                    self._gate.leave()
                if self._code_full:
                    self._code_full = False
                    with self._gate.closed():
                        self._backend.forget_code()
        except BaseException:
            self._on_death(self, self.report(traceback.format_exc()))
        finally:
            signals.close()
            self._reader.leave()

    def _run(self) -> None:
        """Guest code and exits, until the gate wants this thread."""
        if self._outside_guest is None:
            self._run_free()
        else:
            self._run_under(self._outside_guest)

    # Both loop by `while True`: CPython 3.11 specializes a loop at that jump back, and at no conditional one.

    def _run_free(self) -> None:
        run, exits = self._enter, self.exits
        while True:
            reason = run()
            exits[reason] += 1
            if not self._handle(reason):
                return

    def _run_under(self, lock: DeviceLock) -> None:
        """The lock is taken as a door takes it, and for its reason: `with` costs more."""
        run, exits = self._enter, self.exits
        acquire, contend, release = lock.acquire, lock.contend, lock.release
        while True:
            reason = run()
            exits[reason] += 1
            try:
                acquire(False) or contend()
                if not self._handle(reason):
                    return
            finally:
                release()

    def _handle(self, reason: int) -> bool:
        """Serve one exit; False to go to the gate."""
        if reason == _MMIO_READ:
            self._mmio_read()
            return True
        if reason == _MMIO_WRITE:
            self._mmio_write()
            return True
        if reason == Exit.KICK:
            if self._reader.stale:
                self._refresh()
            return not self._gate.must_hold(self)
        if reason == Exit.SBI:
            self._sbi(self)
            return not self.parked
        if reason == Exit.CODE_FULL:
            self._code_full = True
            return False
        if reason == Exit.EMULATE:
            from vmm.vcpu.emulate import emulate  # here, since the tables are slow to import and few guests ask for it

            emulate(self.vcpu)
            return True
        if reason == Exit.HOST_FAULT:
            raise InternalError(self.vcpu.crash())
        raise InternalError(f"{self.name} left guest code: {Exit(reason).name}")

    def _window(self, address: int, size: int) -> Mapping | None:
        """The window of an access; None where there is none."""
        if self._reader.stale:
            self._refresh()
        window = self._windows.get(address >> 12)
        if window is None or not window.base <= address < window.end:
            window = self._snapshot.find(address)
            if window is None:
                return None
            self._windows[address >> 12] = window
        return window if address + size <= window.end else None

    def _refresh(self) -> None:
        """Take up the map as it is now; out of guest code, and of any device."""
        self._snapshot = fresh = self._reader.refresh()
        self._windows.clear()
        if fresh.doorbells is not self._doorbells:
            self._doorbells = fresh.doorbells
            self.vcpu.set_doorbells(fresh.doorbells)

    def _let_go(self) -> None:
        """Keep nothing of the map: what was removed from it does not wait for a thread at the gate."""
        self._snapshot = _NO_SNAPSHOT
        self._windows.clear()
        self._reader.rest()

    def _mmio_read(self) -> None:
        vcpu = self.vcpu
        address, size = vcpu.mmio_addr[0], vcpu.mmio_size[0]
        window = self._window(address, size)
        if window is None:
            vcpu.mmio_state[0] = _MMIO_FAULT
            return
        try:
            vcpu.mmio_value[0] = window.read(address - window.base, size)
            vcpu.mmio_state[0] = _MMIO_DONE
        except BusFault:
            vcpu.mmio_state[0] = _MMIO_FAULT

    def _mmio_write(self) -> None:
        vcpu = self.vcpu
        address, size = vcpu.mmio_addr[0], vcpu.mmio_size[0]
        window = self._window(address, size)
        if window is None:
            vcpu.mmio_state[0] = _MMIO_FAULT
            return
        try:
            window.write(address - window.base, size, vcpu.mmio_value[0])
            vcpu.mmio_state[0] = _MMIO_DONE
        except BusFault:
            vcpu.mmio_state[0] = _MMIO_FAULT

    def report(self, cause: str) -> str:
        """Hart, pc, registers and stack, for a machine that died."""
        vcpu = self.vcpu
        rows = [f"{self.name}: pc {vcpu.pc:#018x} privilege {vcpu.privilege}, {vcpu.instructions} instructions"]
        rows += ["  ".join(f"x{i + k:<2} {vcpu.x[i + k]:016x}" for k in range(4)) for i in range(0, 32, 4)]
        return "\n".join([*rows, cause])
