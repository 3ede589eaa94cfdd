"""What devices are wired to, under the scheduler: each of the fakes of `vmm.testing`, with the points at which a
schedule may switch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from vmm.bql import Policy
from vmm.errors import HostError
from vmm.fabric.bus import Bus, Snapshot
from vmm.fabric.clock import Clock, Timer
from vmm.fabric.dma import Dma
from vmm.fabric.ram import Ram
from vmm.fabric.workers import Done, Posts
from vmm.locks import Kit
from vmm.testing.fakes import FakeIoThread, FakeLine, FakeWire
from vmm.testing.schedule.core import ScheduledThread, Scheduler
from vmm.testing.schedule.operations import Access, Operation
from vmm.testing.virtio_driver import FakeWorkers, VirtioBench


class ScheduledWire(FakeWire):
    """An interrupt wire: to drive it is a step."""

    def __init__(self, scheduler: Scheduler, name: str = "wire") -> None:
        super().__init__()
        self._scheduler = scheduler
        self._drive = f"{name} write"

    def set(self, level: bool) -> None:
        self._scheduler.point(self._drive)
        super().set(level)


class ScheduledLine(FakeLine):
    """The host's end of a serial line, in the hand of whichever thread calls."""

    def __init__(self, scheduler: Scheduler, name: str = "line") -> None:
        super().__init__()
        self._scheduler = scheduler
        self._name = name

    def put(self, data: bytes) -> None:
        self._scheduler.point(f"{self._name} output write")
        super().put(data)

    def input_ready(self) -> None:
        self._scheduler.point(f"{self._name} input write")
        super().input_ready()


class ScheduledHome(FakeIoThread):
    """An I/O thread of a schedule's own: it sleeps until something is posted, readable, writable or due.

    Descriptors are real, and looked at whenever somebody asks who can run. When nobody else can, time passes until the
    first timer is due.
    """

    def __init__(self, scheduler: Scheduler, name: str = "io", kit: Kit | None = None) -> None:
        """`kit` is the scheduler, or a checker around it."""
        super().__init__(name)
        self.progress = (kit or scheduler).progress(f"callbacks of {name}", "I/O callbacks")
        self._scheduler = scheduler
        self._look = Operation(f"{name} looks", name, Access.EVERYTHING)
        self._post = f"calls of {name} write"
        self._stopping = False
        self._thread = ScheduledThread(scheduler, name, self._main, (), True)
        self._thread.start()

    @property
    def owner(self) -> object:
        """As a blocker: itself as long as there is nothing to do."""
        return None if self._has_work() else self

    def stop(self, timeout: float = 10.0) -> None:
        """Serve what has been posted so far and end the thread."""
        self._stopping = True
        with self.progress.waiting():
            self._thread.join(timeout)
        if self._thread.is_alive():
            raise HostError(f"{self.name} did not stop within {timeout:g} s")

    def _main(self) -> None:
        while not (self._stopping and not self._soon):
            self._scheduler.pause(self._look, self, self._patience())
            with self.progress.serving():
                self._turn()

    def _patience(self) -> float | None:
        """Seconds until the first timer is due."""
        deadlines = [at for timers in self._timers if (at := timers.next_deadline()) is not None]
        return max(0, min(deadlines) - self._scheduler.now) / 1e9 if deadlines else None

    def _has_work(self) -> bool:
        now = self._scheduler.now
        return (
            self._stopping
            or bool(self._soon)
            or any((at := timers.next_deadline()) is not None and at <= now for timers in self._timers)
            or bool(self._ready())
        )

    @property
    def is_home(self) -> bool:
        # Before threads run, and after, the program's own code does everybody's work.
        running = self._scheduler.running
        return running is self._thread or running.hand is None

    def assert_home(self) -> None:
        if not self.is_home:
            self._scheduler.away_from_home(f"work of {self.name}", self.name)

    def call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        self._scheduler.point(self._post)
        super().call_soon(function, *arguments)

    def wake(self) -> None:
        """A timer may be due earlier than it was."""
        thread = self._thread
        if thread.blocker is self:
            patience = self._patience()
            thread.deadline = None if patience is None else self._scheduler.now + int(patience * 1e9)


class ScheduledBus(Bus):
    """The bus map: to take its lock, and to look at the map without, are steps."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        super().__init__()
        self._writer = scheduler.lock("bus map")  # type: ignore[assignment]

    @property
    def snapshot(self) -> Snapshot:
        if not self._writer.held():  # type: ignore[attr-defined]
            self._scheduler.point("bus map read")
        return self._now

    @snapshot.setter
    def snapshot(self, now: Snapshot) -> None:
        self._now = now


class ScheduledClock(Clock):
    """A clock of virtual time. It runs, from `start` ns."""

    def __init__(self, scheduler: Scheduler, home: ScheduledHome, start: int = 0, name: str = "clock") -> None:
        self._scheduler = scheduler
        self._change = f"{name} write"
        super().__init__(home, start=start, name=name, host_ns=lambda: scheduler.now)
        self.resume()

    def advance(self, ns: int) -> None:
        """Let time pass, whoever can run."""
        self._scheduler.point(self._change)
        self._scheduler.now += ns

    def pause(self) -> None:
        self._scheduler.point(self._change)
        super().pause()

    def resume(self) -> None:
        self._scheduler.point(self._change)
        super().resume()

    def _arm(self, timer: Timer, deadline: int) -> None:
        self._scheduler.point(self._change)
        super()._arm(timer, deadline)

    def _cancel(self, timer: Timer) -> None:
        self._scheduler.point(self._change)
        super()._cancel(timer)


class ScheduledWorkers(FakeWorkers):
    """Workers on threads of the schedule."""

    def __init__(self, scheduler: Scheduler, size: int = 2, name: str = "worker", kit: Kit | None = None) -> None:
        """`kit` is the scheduler, or a checker around it."""
        super().__init__()
        self.progress = (kit or scheduler).progress(f"calls of {name}", "worker calls")
        self._scheduler = scheduler
        self._submit = f"jobs of {name} write"
        self._take = Operation(f"jobs of {name} taken", f"jobs of {name}")
        self._stopping = False
        self._threads = [ScheduledThread(scheduler, f"{name}{i}", self._main, (), True) for i in range(size)]
        for thread in self._threads:
            thread.start()

    @property
    def owner(self) -> object:
        """As a blocker: itself as long as there is nothing to do."""
        return None if self.waiting or self._stopping else self

    def stop(self, timeout: float = 10.0) -> None:
        """Finish what was submitted and end the threads."""
        self._stopping = True
        with self.progress.waiting():
            for thread in self._threads:
                thread.join(timeout)

    def submit(self, function: Callable[..., Any], *arguments: Any, done: Done, home: Posts) -> None:
        self._scheduler.point(self._submit)
        super().submit(self._served, function, *arguments, done=done, home=home)

    def _served(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.progress.serving():
            return function(*arguments)

    def _main(self) -> None:
        while True:
            self._scheduler.pause(self._take, self)
            if not self.waiting:
                return  # it is to stop
            self.run()


@lru_cache(4096)
def _memory(gpa: int, access: Access) -> Operation:
    # Accesses overlap in too many ways to tell which commute: they are to one thing, all of memory.
    return Operation(f"ram {gpa:#x} {'read' if access is Access.READS else 'write'}", "ram", access)


class ScheduledDma(Dma):
    """Guest memory: each access is a step, on either side of a ring."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler, ram: Ram) -> None:
        super().__init__(ram)
        self._scheduler = scheduler

    def read(self, gpa: int, length: int) -> bytes:
        self._scheduler.pause(_memory(gpa, Access.READS))
        return super().read(gpa, length)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        self._scheduler.pause(_memory(gpa, Access.CHANGES))
        super().write(gpa, data)

    def view(self, gpa: int, length: int) -> memoryview:
        self._scheduler.pause(_memory(gpa, Access.CHANGES))  # whoever asks for a window is about to use it
        return super().view(gpa, length)

    def u16(self, gpa: int) -> int:
        self._scheduler.pause(_memory(gpa, Access.READS))
        return super().u16(gpa)

    def u32(self, gpa: int) -> int:
        self._scheduler.pause(_memory(gpa, Access.READS))
        return super().u32(gpa)

    def u64(self, gpa: int) -> int:
        self._scheduler.pause(_memory(gpa, Access.READS))
        return super().u64(gpa)

    def put_u16(self, gpa: int, value: int) -> None:
        self._scheduler.pause(_memory(gpa, Access.CHANGES))
        super().put_u16(gpa, value)

    def put_u32(self, gpa: int, value: int) -> None:
        self._scheduler.pause(_memory(gpa, Access.CHANGES))
        super().put_u32(gpa, value)

    def put_u64(self, gpa: int, value: int) -> None:
        self._scheduler.pause(_memory(gpa, Access.CHANGES))
        super().put_u64(gpa, value)


class ScheduledVirtioBench(VirtioBench):
    """A `VirtioBench` whose home and workers are threads of the schedule. It is closed when that is over."""

    home: ScheduledHome

    def __init__(self, scheduler: Scheduler, *, size: int = 1 << 20, policy: Policy = "device", checked: bool = True):
        self.scheduler: Final = scheduler
        super().__init__(size=size, policy=policy, checked=checked)
        scheduler.cleanup(self._close)

    def _wire_up(self, policy: Policy, checked: bool) -> None:
        scheduler = self.scheduler
        self.dma = ScheduledDma(scheduler, self.ram)
        self.wire = ScheduledWire(scheduler)
        self.locking = scheduler.locking(policy, checked)
        self.home = ScheduledHome(scheduler, kit=self.locking.kit)
        self.clock = ScheduledClock(scheduler, self.home)  # type: ignore[assignment]
        self.workers = ScheduledWorkers(scheduler, kit=self.locking.kit)

    def run(self) -> None:
        """What there is to do, its threads do when the schedule begins. (The program's own code would be another thread
        in the place of the home, and the race checker would say so.)"""

    def _close(self) -> None:
        for device in self._devices:
            for doorbell in device.doorbells:
                doorbell.close()
        self.ram.close()
