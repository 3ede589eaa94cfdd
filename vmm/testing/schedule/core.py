"""One schedule: real code on real threads, of which one runs at a time, and a strategy that says which.

A `Scheduler` is a kit (`vmm.locks.Kit`): machines, devices and fakes that are made of it stop before each operation
that other threads can see (`operations`), and go on when the strategy says so. Whoever stops makes the choice itself
and hands its turn straight to the one chosen, so a step without a switch costs no hand-off, and a switch costs one.

Nothing that differs from process to process decides anything: not the clock, not idents, not the order of a set. The
same choices give the same steps on every build of Python.

Time is virtual. It stands still while any thread can run; when none can, the first of the timed waits ends. With
`early_timeouts` a timed wait may end at any moment, if the strategy says so.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock, get_ident
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Literal, Protocol

from vmm.bql import Policy
from vmm.errors import InternalError
from vmm.locks import Condition, DeviceLock, Kit, Locking, LockStatistics, Progress, Rank, Thread
from vmm.testing.schedule.crew import Crew, Hand
from vmm.testing.schedule.failures import Failed, Kind, describe, kind_of, stack_of
from vmm.testing.schedule.operations import BEGIN, GO_ON, Access, Operation, named

STEPS: Final = 20_000
"""After so many steps a schedule is said to make no progress."""
PATIENCE_S = 20.0
"""How long a thread may run, in real time, without coming to its next operation."""
SPIN: Final = 400
"""After so many steps in a row a thread is taken for one that spins until another has done something."""
_STUBBORN: Final = 1000
"""After so many refusals a thread that will not be torn from its work is left behind."""

Switch = tuple[int, int, int]
"""Where a schedule leaves the calm one: (thread, its steps so far, thread to go on with). Before there is a thread it
is -1. In the calm one a thread runs until it waits, ends or spins; then the first that can run follows."""


class Torn(BaseException):
    """Unwinds a thread whose schedule is over."""


class Blocker(Protocol):
    """What keeps a thread from running: as long as somebody owns it."""

    @property
    def owner(self) -> object: ...


class Strategy(Protocol):
    """Makes the choices of one schedule. It may keep `priority` on threads."""

    sees_all: bool
    """Whether it is asked also where there is no choice."""

    def started(self, thread: ScheduledThread) -> None: ...

    def choose(self, scheduler: Scheduler, me: ScheduledThread | None, able: list[ScheduledThread]) -> ScheduledThread:
        """One of `able`, in the order of their numbers. `me` has just stopped, and is among them unless it waits."""


class ScheduledThread:
    """A thread of one schedule, on an OS thread of the crew."""

    __slots__ = (
        *("args", "awaits", "blocker", "condition", "deadline", "done", "hand", "index", "name", "operation", "owner"),
        *("predicate", "priority", "refusals", "scheduler", "service", "steps", "target", "timed_out"),
    )

    def __init__(
        self, scheduler: Scheduler, name: str, target: Callable[..., object], args: tuple[Any, ...], service: bool
    ) -> None:
        self.scheduler: Final = scheduler
        self.name: Final = name
        self.target = target
        self.args = args
        self.service: Final = service
        """Whether a schedule may end while it waits for work."""
        self.index = -1
        self.hand: Hand | None = None
        self.operation: Operation = BEGIN
        """What it is about to do."""
        self.blocker: Blocker | None = None
        self.deadline: int | None = None
        self.timed_out = False
        self.condition: ScheduledCondition | None = None
        self.predicate: Callable[[], Any] | None = None
        self.awaits: list[ScheduledProgress] = []
        self.steps = 0
        self.priority = 0.0
        self.refusals = 0
        self.done = False
        self.owner: ScheduledThread | None = self
        """Itself until it has ended: whoever joins it is blocked by it."""

    def __repr__(self) -> str:
        return f"<ScheduledThread {self.name}: {'ended' if self.done else self.operation.label}>"

    @property
    def ident(self) -> int | None:
        return self.hand.ident if self.hand else None

    def start(self) -> None:
        self.scheduler._start(self)

    def join(self, timeout: float | None = None) -> None:
        if not self.done:
            self.scheduler.pause(Operation(f"join {self.name}", f"end of {self.name}"), self, timeout)

    def is_alive(self) -> bool:
        return self.hand is not None and not self.done


class ScheduledLock(DeviceLock):  # type: ignore[misc]
    """A lock by the scheduler's word alone: one thread runs at a time, so there is nothing else to exclude.

    To try it without waiting succeeds for its owner only, and sends everybody else to `contend`: that is how doors use
    it, and they stop there once, before the lock is taken.
    """

    __slots__ = ("_depth", "_scheduler", "_take", "owner")

    def __init__(self, scheduler: Scheduler, name: str, lock_class: str | None, rank: Rank) -> None:
        super().__init__(name, lock_class, rank)
        self._scheduler = scheduler
        self._take = Operation(f"take {name}", f"lock {name}")
        self.owner: ScheduledThread | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self.owner is self._scheduler.running:
            self._depth += 1
            return True
        return blocking and self.contend()

    def contend(self) -> Literal[True]:
        scheduler = self._scheduler
        me = scheduler.running
        scheduler.pause(self._take, self)
        self.owner = me
        self._depth = 1
        return True

    def release(self) -> None:
        scheduler = self._scheduler
        if self.owner is not scheduler.running:
            if scheduler.ending:
                return
            raise RuntimeError(f"{self.name} is released by {scheduler.running.name}, which does not hold it")
        self._depth -= 1
        if not self._depth:
            self.owner = None
            scheduler.pause(GO_ON)

    def __enter__(self) -> bool:  # type: ignore[override]
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def held(self) -> bool:
        return self.owner is self._scheduler.running

    def statistics(self) -> LockStatistics:
        owner = self.owner
        waiters = tuple(thread.name for thread in self._scheduler.threads if thread.blocker is self)
        return LockStatistics(
            self.name, self.lock_class, self.rank, owner.name if owner else None, self._depth, waiters, 0, 0, 0
        )


class ScheduledCondition:
    """A condition variable with a lock of its own, which is not reentrant: a thread that takes it twice hangs."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.name: Final = name
        self.owner: Final = self  # as a blocker it lets nobody pass: whoever waits is woken, and then wants the lock
        self._scheduler = scheduler
        self._lock = ScheduledLock(scheduler, name, None, Rank.LEAF)
        self._wait = Operation(f"wait for {name}", f"lock {name}")
        self._waiters: list[ScheduledThread] = []

    def __repr__(self) -> str:
        return f"<ScheduledCondition {self.name}, {len(self._waiters)} waiting>"

    def __enter__(self) -> bool:
        return self._lock.contend()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """As of `threading.Condition`; `timeout` is in seconds of virtual time."""
        scheduler, lock = self._scheduler, self._lock
        me = scheduler.running
        if me.hand is None:
            raise InternalError(f"{me.name} would wait for {self.name} where no thread of the schedule runs")
        if lock.owner is not me:
            raise RuntimeError(f"{me.name} waits for {self.name} without its lock")
        lock.owner = None
        self._waiters.append(me)
        me.condition = self
        scheduler.pause(self._wait, self, timeout)
        lock.owner = me
        lock._depth = 1
        return not me.timed_out

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        scheduler = self._scheduler
        me = scheduler.running
        until = None if timeout is None else scheduler.now + int(timeout * 1e9)
        while not (result := predicate()):
            left = None if until is None else (until - scheduler.now) / 1e9
            if left is not None and left <= 0:
                break
            me.predicate = predicate
            try:
                self.wait(left)
            finally:
                me.predicate = None
        return result

    def notify_all(self) -> None:
        if self._lock.owner is not self._scheduler.running:
            raise RuntimeError(f"{self._scheduler.running.name} notifies {self.name} without its lock")
        for thread in self._waiters:
            self._wakes(thread)
        self._waiters.clear()

    def ends_wait(self, thread: ScheduledThread) -> None:
        """The time of a timed wait is over."""
        self._waiters.remove(thread)
        self._wakes(thread)
        thread.timed_out = True

    def _wakes(self, thread: ScheduledThread) -> None:
        thread.condition = None
        thread.deadline = None
        thread.timed_out = False
        thread.blocker = self._lock
        thread.operation = self._lock._take


class ScheduledProgress(Progress):
    """Remembers who waits for whom, for reports of what hangs."""

    __slots__ = ("_scheduler", "serve")

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        super().__init__(name)
        self._scheduler = scheduler
        self.serve: list[ScheduledThread] = []

    def serving(self) -> AbstractContextManager[object]:
        return self._listed(self.serve, self._scheduler.running)

    def waiting(self) -> AbstractContextManager[object]:
        return self._listed(self._scheduler.running.awaits, self)

    @staticmethod
    @contextmanager
    def _listed(where: list[Any], what: object) -> Iterator[None]:
        where.append(what)
        try:
            yield
        finally:
            where.remove(what)


class Scheduler(Kit):
    """Runs one program once. The program builds devices of this kit and spawns threads; then they run."""

    def __init__(self, strategy: Strategy, crew: Crew, *, limit: int = STEPS) -> None:
        self.now = 1_000_000_000_000
        """Virtual time, ns."""
        self.early_timeouts = False
        """Whether timed waits may end although other threads can run: for programs that claim to be right then."""
        self.trace: list[tuple[int, Operation]] = []
        """Each step: the thread's number and what it did."""
        self.switches: list[Switch] = []
        self.threads: list[ScheduledThread] = []
        """Those that have started and not ended, by number."""
        self.ending = False
        self.result: object = None
        """What the program wants to have said of how it ended, for searches that compare ends."""
        self.blocked: list[tuple[int, Operation]] = []
        """What those were about to do that could not go on at the end."""
        self._strategy = strategy
        self._crew = crew
        self._limit = limit
        self.row = 0
        """Steps that the running thread has taken in a row although others could run."""
        self._started = 0
        self._main = ScheduledThread(self, "main", _nothing, (), False)
        self.running = self._main
        self._ident = get_ident()
        self._turn = allocate_lock()  # released when no thread has its turn any more
        self._turn.acquire()
        self._out_of_steps = False
        self._stray: ScheduledThread | None = None  # it has its turn and does not give it back
        self._failed: Failed | None = None
        self._checks: list[Callable[[], object]] = []
        self._cleanups: list[Callable[[], object]] = []
        self._lockings: list[Locking] = []

    # -- for programs -------------------------------------------------------------------------------------------------

    def spawn(self, name: str, target: Callable[..., object], *args: Any, service: bool = False) -> ScheduledThread:
        """A thread that runs `target(*args)`. One in `service` may still wait for work when all others have ended."""
        thread = ScheduledThread(self, name, target, args, service)
        thread.start()
        return thread

    def check(self, invariant: Callable[[], object]) -> None:
        """Call `invariant` when all threads have ended: the schedule fails if it raises, or returns False."""
        self._checks.append(invariant)

    def cleanup(self, give_back: Callable[[], object]) -> None:
        """Call `give_back` when the schedule is over, however it ended: the last that was asked for, first."""
        self._cleanups.append(give_back)

    def locking(self, policy: Policy = "device", checked: bool = True) -> Locking:
        """Locks of this kit. What the checker of checked ones reports fails the schedule."""
        locking = Locking(policy, checked, self)
        self._lockings.append(locking)
        return locking

    # -- the kit ------------------------------------------------------------------------------------------------------

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> DeviceLock:
        return ScheduledLock(self, name, lock_class, rank) if around is None else around

    def condition(self, name: str, lock_class: str | None = None) -> Condition:
        return ScheduledCondition(self, name)

    def progress(self, name: str, progress_class: str | None = None) -> Progress:
        return ScheduledProgress(self, name)

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> Thread:
        """A thread in service, as those of machines are: a schedule may end while it waits."""
        return ScheduledThread(self, name, target, args, True)

    def away_from_home(self, work: str, home: str) -> None:
        raise InternalError(f"{work} ran on {self.running.name}: its home is {home}")

    def point(self, what: str) -> None:
        """See `operations.named` for what it understands of `what`."""
        self.pause(named(what))

    # -- steps --------------------------------------------------------------------------------------------------------

    def pause(self, operation: Operation, blocker: Blocker | None = None, timeout: float | None = None) -> None:
        """The running thread stops before `operation`, and returns when it is its turn and nobody owns `blocker`."""
        me = self.running
        hand = me.hand
        if hand is None or self.ending:
            self._pass_by(me, operation, blocker)
            return
        if hand.ident != get_ident():
            raise InternalError(f"{threading.current_thread().name} is no thread of this schedule")
        me.operation = operation
        me.blocker = blocker
        if timeout is not None:
            me.deadline = self.now + int(timeout * 1e9)
        following = self._choice(me)
        if following is not me:
            if following is None:
                self._turn.release()
            else:
                self.running = following
                following.hand.baton.release()  # type: ignore[union-attr]
            hand.baton.acquire()
            if self.ending:
                raise Torn
        me.blocker = None

    def _pass_by(self, me: ScheduledThread, operation: Operation, blocker: Blocker | None) -> None:
        """The program's own code, before threads run and after; or a thread on its way out."""
        if me.hand is None:
            if get_ident() != self._ident:
                raise InternalError(f"{threading.current_thread().name} is no thread of this schedule")
            if blocker is not None and blocker.owner is not None:
                raise InternalError(f"{me.name} would wait to {operation.label} where no thread of the schedule runs")
        elif operation is not GO_ON:
            me.refusals += 1
            if me.refusals > _STUBBORN:
                self._turn.release()
                while True:  # its frames may hold anything; nobody releases this again
                    me.hand.baton.acquire()
            raise Torn

    def _choice(self, me: ScheduledThread | None) -> ScheduledThread | None:
        """The thread whose step comes next, with the step noted; None when there is none."""
        able = [t for t in self.threads if (b := t.blocker) is None or b.owner is None]
        if self.early_timeouts:
            able = sorted(able + self._timed_out_early(), key=_index)
        if not able:
            able = self._let_time_pass()
            if not able:
                return None
        if len(self.trace) >= self._limit:
            self._out_of_steps = True
            return None
        if len(able) == 1 and not self._strategy.sees_all:
            chosen = able[0]
        else:
            chosen = self._strategy.choose(self, me, able)
            if chosen is not (me if self.row < SPIN else None) and chosen is not self.calm(me, able):
                self.switches.append((me.index, me.steps, chosen.index) if me else (-1, 0, chosen.index))
            self.row = self.row + 1 if chosen is me else 0
        if chosen.deadline is not None:
            self._end_wait(chosen)
        chosen.steps += 1
        self.trace.append((chosen.index, chosen.operation))
        return chosen

    def calm(self, me: ScheduledThread | None, able: list[ScheduledThread]) -> ScheduledThread:
        """Who runs next in the schedule without switches."""
        if me is None or me not in able:
            return able[0]
        if self.row < SPIN:
            return me
        return next((thread for thread in able if thread.index > me.index), able[0])

    def _timed_out_early(self) -> list[ScheduledThread]:
        """Those whose timed wait may end now."""
        return [
            t
            for t in self.threads
            if t.deadline is not None
            and t.blocker is not None
            and t.blocker.owner is not None
            and (t.condition is None or t.condition._lock.owner is None)
        ]

    def _let_time_pass(self) -> list[ScheduledThread]:
        """Nobody can run: end timed waits, the first deadline first, until somebody can."""
        while any(not t.service for t in self.threads):
            waiting = [t for t in self.threads if t.deadline is not None]
            if not waiting:
                break
            first = min(waiting, key=_deadline)
            self._end_wait(first)
            first.operation = Operation(f"time out of {first.operation.label}", "", Access.EVERYTHING)
            if first.blocker is None or first.blocker.owner is None:
                return [first]
        return []

    def _end_wait(self, thread: ScheduledThread) -> None:
        """A timed wait ends because its time is over, unless what it waits for has come."""
        deadline, thread.deadline = thread.deadline, None
        if thread.blocker is None or thread.blocker.owner is None:
            return
        self.now = max(self.now, deadline or 0)
        if thread.condition is not None:
            thread.condition.ends_wait(thread)
        else:
            thread.blocker = None
            thread.timed_out = True

    # -- life of a thread ---------------------------------------------------------------------------------------------

    def _start(self, thread: ScheduledThread) -> None:
        if thread.hand is not None:
            raise InternalError(f"{thread.name} was started before")
        hand = thread.hand = self._crew.hire()
        thread.index = self._started
        self._started += 1
        self.threads.append(thread)
        hand.named(thread.name)
        hand.job = lambda: self._live(thread, hand)
        self._strategy.started(thread)
        if self.running is not self._main:
            self.pause(GO_ON)

    def _live(self, thread: ScheduledThread, hand: Hand) -> None:
        """On the thread: all of its life."""
        if not self.ending:
            thread.blocker = None
            try:
                thread.target(*thread.args)
            except Torn:
                pass
            except BaseException as error:
                if not self.ending and self._failed is None:
                    self._failed = Failed(kind_of(error), type(error).__name__, describe(error, thread.name))
            thread.target, thread.args = _nothing, ()
        thread.done = True
        thread.owner = None
        if self.ending or self._failed:
            self._turn.release()
            return
        self.threads.remove(thread)
        self._crew.back(hand)
        following = self._choice(thread)
        if following is None:
            self._turn.release()
        else:
            self.running = following
            following.hand.baton.release()  # type: ignore[union-attr]

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, program: Callable[[Scheduler], object]) -> Failed | None:
        """Build, run, check. How it failed, or None."""
        try:
            program(self)
        except Exception as error:
            self._failed = Failed(kind_of(error), type(error).__name__, describe(error, "the program's own code"))
        else:
            self._go()
            if self._failed is None:
                self._failed = self._verdict() or self._checked()
            if self._failed is None or self._failed.kind is Kind.LOCK_RULE:
                self._failed = self._reported() or self._failed
        self._tear()
        for give_back in reversed(self._cleanups):
            give_back()
        return self._failed

    def _go(self) -> None:
        first = self._choice(None)
        if first is None:
            raise InternalError("the program spawns no thread")
        self.running = first
        first.hand.baton.release()  # type: ignore[union-attr]
        if not self._turn.acquire(timeout=PATIENCE_S):
            busy = self._stray = self.running
            self.ending = True
            where = "\n".join(stack_of(busy.ident or 0))
            what = f"{busy.name} has run for {PATIENCE_S:g} s without coming to an operation, or waits for a real lock"
            self._failed = Failed(Kind.NO_PROGRESS, "", f"{what}:\n{where}")
        self.running = self._main
        self.blocked = [(thread.index, thread.operation) for thread in self.threads if not thread.done]

    def _verdict(self) -> Failed | None:
        """What stands in the way of threads that have not ended."""
        if self._out_of_steps:
            lines = [f"after {len(self.trace)} steps the schedule has not come to an end; its last steps:"]
            names = {thread.index: thread.name for thread in self.threads}
            lines += [f"  {names.get(index, index)}: {operation.label}" for index, operation in self.trace[-12:]]
            return Failed(Kind.NO_PROGRESS, "", "\n".join([*lines, *self._whereabouts(self.threads)]))
        stuck = [t for t in self.threads if not t.service or isinstance(t.blocker, ScheduledLock)]
        if not stuck:
            return None
        cycle = self._cycle(stuck)
        waiters = [t for t in stuck if t.condition is not None]
        if cycle or not waiters:
            ring = " -> ".join(t.name for t in (*cycle, *cycle[:1]))
            lines = [f"deadlock: {ring}" if cycle else "deadlock: nobody can go on"]
            kind = Kind.DEADLOCK
        else:
            lines = ["lost wake-up: " + ", ".join(map(_asleep, waiters))]
            kind = Kind.LOST_WAKE_UP
        return Failed(kind, "", "\n".join([*lines, *map(_waits, self.threads), *self._whereabouts(stuck)]))

    @staticmethod
    def _cycle(stuck: list[ScheduledThread]) -> list[ScheduledThread]:
        """Threads each of which waits for a lock of, or for the end of, the next."""
        for start in stuck:
            path: list[ScheduledThread] = []
            at: object = start
            while isinstance(at, ScheduledThread) and at not in path:
                path.append(at)
                at = at.blocker.owner if at.blocker else None
            if isinstance(at, ScheduledThread):
                return path[path.index(at) :]
        return []

    def _whereabouts(self, threads: list[ScheduledThread]) -> list[str]:
        lines = []
        for thread in threads:
            lines += [f"{thread.name} is at:", *stack_of(thread.ident or 0)]
        return lines

    def _checked(self) -> Failed | None:
        """The program's own claims about the end."""
        for invariant in self._checks:
            try:
                if invariant() is False:
                    return Failed(Kind.ASSERTION, "", f"{_where(invariant)} does not hold at the end")
            except Exception as error:
                return Failed(kind_of(error), type(error).__name__, describe(error, "a check at the end"))
        return None

    def _reported(self) -> Failed | None:
        """What checkers have found, raised or not."""
        reports = [report for one in self._lockings if one.checker for report in one.checker.reports]
        if not reports:
            return None
        race = any(report.kind == "race" for report in reports)
        return Failed(Kind.RACE if race else Kind.LOCK_RULE, str(reports[0].kind), "\n\n".join(map(str, reports)))

    def _tear(self) -> None:
        """End the threads that are left; each unwinds alone."""
        clean = self._failed is None
        self.ending = True
        for thread in self.threads:
            hand = thread.hand
            if hand is None or thread is self._stray:
                continue
            if thread.done:
                hand.dismiss()
                continue
            self.running = thread
            hand.baton.release()
            if not self._turn.acquire(timeout=PATIENCE_S) or not thread.done:
                continue  # left behind
            if clean:
                self._crew.back(hand)
            else:
                hand.dismiss()
        self.running = self._main
        self.threads.clear()


def _nothing() -> None:
    """What a thread that has ended still keeps alive."""


def _index(thread: ScheduledThread) -> int:
    return thread.index


def _deadline(thread: ScheduledThread) -> tuple[int, int]:
    return thread.deadline or 0, thread.index


def _asleep(thread: ScheduledThread) -> str:
    """A thread that waits for a condition when nobody is left who could signal it."""
    if thread.predicate is None:
        state = ""
    else:
        try:
            state = " although what it waits for is so" if thread.predicate() else ", and nobody is left to make it so"
        except Exception as error:
            state = f", and to ask what it waits for raises {error!r}"
    condition = thread.condition.name if thread.condition else ""
    return f"{thread.name} sleeps on {condition}{state}"


def _waits(thread: ScheduledThread) -> str:
    """One line of the wait-for graph."""
    blocker = thread.blocker
    if isinstance(blocker, ScheduledLock):
        owner = blocker.owner
        state = ", which has ended" if owner and owner.done else ""
        what = f"waits for {blocker.name}, held by {owner.name}{state}" if owner else f"may take {blocker.name}"
    elif isinstance(blocker, ScheduledThread):
        what = f"waits for the end of {blocker.name}"
    else:
        what = f"is about to {thread.operation.label}"
    for progress in thread.awaits:
        served = ", ".join(server.name for server in progress.serve) or "nobody now"
        what += f"; it needs {progress.name}, served by {served}"
    return f"  {thread.name} {what}"


def _where(invariant: Callable[..., object]) -> str:
    code = getattr(invariant, "__code__", None)
    return f"the check of line {code.co_firstlineno}, {code.co_qualname}," if code else f"the check {invariant!r}"
