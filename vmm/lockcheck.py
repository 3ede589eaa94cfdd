"""The checked variant of `vmm.locks`: the same locks, devices and waits, made to report whoever breaks the rules.

It reports, with the stack of each party (`vmm.lockreport.Kind`):
- an order of locks and waits that closes a ring with what any thread did before (`vmm.lockgraph`), when it is first
  seen, not when it deadlocks;
- a lock taken against the order of ranks, or beside one of its own rank that does not declare it;
- a private method of a device, or the body of a public one, run by a thread that does not hold its lock;
- a device entered again from outside by a thread that is inside it already;
- a call-out that runs while a lock is held;
- work on another thread than its home;
- an access to what a device keeps without its lock (`vmm.racecheck`);
- a wait of a thread that holds something, outside any `Progress`: nobody could see for whom it waits.

A report is raised as `LockOrderError` in the thread at fault, or only kept, as the checker was told; it is in
`Checker.reports` either way, since what runs on a service thread may be nobody's to catch. Under the big-lock policy
each device keeps a checked lock of its own around the shared one, so that both policies are held to one order.
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import FrameType, FunctionType, TracebackType
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from vmm.errors import LockOrderError
from vmm.lockgraph import Edge, Node, OrderGraph
from vmm.lockreport import Kind, Raw, Report, Witness, frames, joined
from vmm.locks import (
    PLAIN,
    Condition,
    Device,
    DeviceLock,
    Door,
    Kit,
    LockStatistics,
    Progress,
    Rank,
    Thread,
    door_around,
    door_of,
)
from vmm.racecheck import OWN_FILES, Tenure, watched

C = TypeVar("C")

STACK_DEPTH: Final = 12

_uids: Final = itertools.count(1)


# -- what each thread holds --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Hold:
    """What is held by one thread, and since when. A lock has one hold for all its life, since it excludes."""

    what: Held
    frame: FrameType | None = None  # that took it; alive while the lock is held, as its callers are
    at: int = 0  # the instruction in it: to ask for the line costs more than all the rest
    depth: int = 0

    def raw(self) -> Raw:
        if self.frame is None:
            return []
        code = self.frame.f_code
        line = next((line for first, end, line in code.co_lines() if first <= self.at < end), None)
        return [(code, line or code.co_firstlineno), *_stack(self.frame.f_back)]


class _Context:
    """What one thread holds, serves and waits for."""

    __slots__ = ("constructing", "holds", "ident", "path", "refused", "waits")

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.holds: dict[int, _Hold] = {}  # by uid, outermost first
        self.path: tuple[int, ...] = ()  # the uids of `holds`
        self.waits = 0  # depth of `Progress.waiting`
        self.refused: Held | None = None  # reported and not taken, but its door's `finally` will release it
        self.constructing: list[Device] = []  # nobody else can see these yet


class _Thread(threading.local):
    def __init__(self) -> None:
        self.context = _Context()


_thread: Final = _Thread()


# -- what can be held --------------------------------------------------------------------------------------------------


class CheckedLock(DeviceLock):  # type: ignore[misc]
    """A lock that asks its checker. One made `around` another shares its exclusion but has its own rank."""

    __slots__ = ("_checker", "_inner", "around", "children", "hold", "node", "tenure", "uid")

    def __init__(
        self,
        checker: Checker,
        name: str,
        lock_class: str | None,
        rank: Rank,
        children: tuple[str, ...],
        inner: DeviceLock,
        around: CheckedLock | None,
    ) -> None:
        super().__init__(name, lock_class, rank)
        self.children = children
        self.around = around
        self.node = Node(self.lock_class, rank.name, checker.module_of(self.lock_class, rank))
        self.uid = next(_uids)
        self.hold = _Hold(self)
        self.tenure: Tenure | None = None
        self._checker = checker
        self._inner = inner

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._checker.wants(self)
        taken = self._inner.acquire(blocking, timeout)
        if taken:
            self._checker.took(self)
        return taken

    def contend(self) -> Literal[True]:
        try:
            return self._inner.contend()
        finally:  # it ends with the lock held even when it raises
            self._checker.took(self)

    def release(self) -> None:
        if self._checker.frees(self):
            self._inner.release()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def held(self) -> bool:
        tenure = self.tenure
        return tenure is not None and tenure[0] == threading.get_ident()

    @property
    def exclusion(self) -> DeviceLock:
        return self._inner.exclusion

    @property
    def held_since(self) -> int:
        return self._inner.held_since

    def statistics(self) -> LockStatistics:
        return replace(self._inner.statistics(), name=self.name, lock_class=self.lock_class, rank=self.rank)


class CheckedCondition:
    """A condition variable whose lock is checked as one of rank LEAF, and whose waits must have a name."""

    __slots__ = ("_checker", "_inner", "around", "children", "name", "node", "rank", "tenure", "uid")

    def __init__(self, checker: Checker, name: str, lock_class: str, inner: Condition) -> None:
        self.name: Final = name
        self.rank: Final = Rank.LEAF
        self.children: Final[tuple[str, ...]] = ()
        self.around: Final = None
        self.node: Final = Node(lock_class, Rank.LEAF.name, checker.module_of(lock_class, Rank.LEAF))
        self.uid: Final = next(_uids)
        self.tenure: Tenure | None = None
        self._checker = checker
        self._inner = inner

    def __repr__(self) -> str:
        return f"<CheckedCondition {self.name} of class {self.node.name}>"

    def __enter__(self) -> bool:
        self._checker.wants(self)
        entered = self._inner.__enter__()
        self._checker.took(self)
        return entered

    def __exit__(self, *exc_info: object) -> None:
        if self._checker.frees(self):
            self._inner.__exit__(*exc_info)

    def wait(self, timeout: float | None = None) -> bool:
        self._checker.sleeps(f"on the condition {self.name}", self.uid)
        return self._inner.wait(timeout)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        self._checker.sleeps(f"on the condition {self.name}", self.uid)
        return self._inner.wait_for(predicate, timeout)

    def notify_all(self) -> None:
        self._inner.notify_all()


class CheckedProgress(Progress):
    """Something to wait for. Whoever serves it holds it, and whoever waits for it wants it: the graph sees no
    difference to a lock."""

    __slots__ = ("_checker", "_inner", "node", "tenure", "uid")

    def __init__(self, checker: Checker, name: str, progress_class: str, inner: Progress) -> None:
        super().__init__(name)
        self._waiters = inner._waiters
        self.node: Final = Node(progress_class, "", checker.module_of(progress_class))
        self.uid: Final = next(_uids)
        self.tenure: Tenure | None = None
        self._checker = checker
        self._inner = inner

    def serving(self) -> AbstractContextManager[object]:
        return _Serving(self, self._checker, self._inner.serving())

    def waiting(self) -> AbstractContextManager[object]:
        return _Waiting(self, self._checker, self._inner.waiting())


Held: TypeAlias = CheckedLock | CheckedCondition | CheckedProgress


class _Serving:
    __slots__ = ("_checker", "_inner", "_progress")

    def __init__(self, progress: CheckedProgress, checker: Checker, inner: AbstractContextManager[object]) -> None:
        self._progress, self._checker, self._inner = progress, checker, inner

    def __enter__(self) -> object:
        entered = self._inner.__enter__()
        self._checker.took(self._progress)  # nobody waits in order to serve, so this is wanted inside nothing
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        self._checker.frees(self._progress)
        return self._inner.__exit__(kind, error, at)


class _Waiting(_Serving):
    __slots__ = ()

    def __enter__(self) -> object:
        self._checker.waits(self._progress)
        _thread.context.waits += 1
        return self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        _thread.context.waits -= 1
        return self._inner.__exit__(kind, error, at)


class _Joined:
    """A thread whose end is waited for under some Progress, or holding nothing."""

    __slots__ = ("_checker", "_inner", "_name")

    def __init__(self, checker: Checker, name: str, inner: Thread) -> None:
        self._checker, self._name, self._inner = checker, name, inner

    @property
    def ident(self) -> int | None:
        return self._inner.ident

    def start(self) -> None:
        self._inner.start()

    def join(self, timeout: float | None = None) -> None:
        self._checker.sleeps(f"for the end of the thread {self._name}")
        self._inner.join(timeout)

    def is_alive(self) -> bool:
        return self._inner.is_alive()


# -- the checker -------------------------------------------------------------------------------------------------------


class Checker(Kit):
    """What the checked locks, devices and waits of one machine are made by, and report to."""

    def __init__(self, base: Kit = PLAIN, *, raising: bool = True) -> None:
        """Kit `base` makes what does not concern the checker: the locks that do exclude, conditions, threads.

        Without `raising` reports are only kept, except where the thread could not go on.
        """
        self._base: Kit = base
        self._raising = raising
        self.graph: Final = OrderGraph()
        self.reports: Final[list[Report]] = []
        """One for each rule and set of classes, oldest first."""
        self._lock = threading.Lock()  # guards `reports`, except for readers
        # (what a thread holds, outermost first; what it wants), all by uid: combinations that are known to be right.
        self._known: set[tuple[tuple[int, ...], int]] = set()
        self._modules: dict[str, str] = {}  # where each device class is defined

    def __repr__(self) -> str:
        return f"<Checker: {len(self.reports)} reports, {self.graph!r}>"

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> CheckedLock:
        outer = around if isinstance(around, CheckedLock) else None
        inner = self._base.lock(name, lock_class, rank, children, outer._inner if outer else around)
        return CheckedLock(self, name, lock_class, rank, children, inner, outer)

    def progress(self, name: str, progress_class: str | None = None) -> Progress:
        return CheckedProgress(self, name, progress_class or name, self._base.progress(name, progress_class))

    def condition(self, name: str, lock_class: str | None = None) -> Condition:
        return CheckedCondition(self, name, lock_class or name, self._base.condition(name, lock_class))

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> Thread:
        return _Joined(self, name, self._base.thread(target, name, args))

    def point(self, what: str) -> None:
        self._base.point(what)

    def module_of(self, node: str, rank: Rank | None = None) -> str:
        """The module that defines a class of locks or waits: that of the device, or of the code that makes one."""
        if rank is Rank.BQL:
            return "vmm.bql"
        return self._modules.get(node) or str(_outside(sys._getframe(1)).f_globals.get("__name__", ""))

    # -- locks and waits: every change of who holds or wants what passes through these

    def wants(self, lock: CheckedLock | CheckedCondition) -> None:
        """The calling thread is about to take or wait for `lock`."""
        me = _thread.context
        me.refused = None
        if lock.uid in me.holds:
            if isinstance(lock, CheckedCondition):
                self.report(
                    Kind.SELF,
                    f"takes {_label(lock)}, which it holds",
                    [(lock, f"{lock.name} was taken at", me.holds[lock.uid].raw()), _here("it is wanted again at")],
                )
        elif me.path and (me.path, lock.uid) not in self._known:
            self._judge(me, lock, "takes")

    def took(self, what: Held) -> None:
        me = _thread.context
        uid = what.uid
        if hold := me.holds.get(uid):
            hold.depth += 1
            return
        frame = sys._getframe(2)
        if frame.f_code.co_filename in OWN_FILES:
            frame = _outside(frame)
        # Several threads may have a wait or a condition at a time: they serve the one, and sleep on the other.
        hold = what.hold if isinstance(what, CheckedLock) else _Hold(what)
        hold.frame, hold.at, hold.depth = frame, frame.f_lasti, 1
        me.holds[uid] = hold
        me.path = (*me.path, uid)
        what.tenure = (me.ident, id(frame))

    def frees(self, what: Held) -> bool:
        """Note a release; whether there is a lock to release."""
        me = _thread.context
        if me.refused is what:
            me.refused = None
            return False
        hold = me.holds.get(what.uid)
        if hold is None:
            self.report(Kind.RELEASE, f"releases {_label(what)}, which it does not hold", [_here("at", what)])
            return False
        hold.depth -= 1
        if not hold.depth:
            what.tenure = hold.frame = None
            del me.holds[what.uid]
            me.path = me.path[:-1] if me.path[-1] == what.uid else tuple(me.holds)
        return True

    def waits(self, progress: CheckedProgress) -> None:
        """The calling thread is about to wait for `progress`."""
        me = _thread.context
        if hold := me.holds.get(progress.uid):
            self.report(
                Kind.SELF,
                f"waits for {_label(progress)}, which it is to bring about itself",
                [(progress, "it began that at", hold.raw()), _here("it waits at")],
            )
        elif me.path and (me.path, progress.uid) not in self._known:
            self._judge(me, progress, "waits for")

    def sleeps(self, on: str, but: int = 0) -> None:
        """The calling thread is about to sleep, holding what it likes if it said for whom. `but` is given up."""
        me = _thread.context
        if me.waits or me.path in ((), (but,)):
            return
        holds = [hold for uid, hold in me.holds.items() if uid != but]
        self.report(
            Kind.WAIT,
            f"waits {on} while it has {', '.join(_label(hold.what) for hold in holds)}: say for whom, by a Progress",
            [*((h.what, _since(h.what), h.raw()) for h in holds), _here("it waits at")],
        )

    def _judge(self, me: _Context, wanted: Held, does: str) -> None:
        """Something is wanted in a place that is not known to be right."""
        found: list[Report] = []
        if not isinstance(wanted, CheckedProgress):
            for hold in me.holds.values():
                outer = hold.what
                if isinstance(outer, CheckedProgress) or outer.rank < wanted.rank:
                    continue
                same = outer.rank == wanted.rank
                if same and wanted.node.name in outer.children:
                    continue
                rule = "which does not declare it as a child" if same else f"against {_ORDER}"
                found.append(
                    self._report(
                        Kind.NESTING if same else Kind.RANK,
                        f"takes {_label(wanted)} while it holds {_label(outer)}, {rule}",
                        [
                            (outer, f"{outer.name} was taken at", hold.raw()),
                            (wanted, f"{wanted.name} is wanted at", _stack()),
                        ],
                    )
                )
        found += self._learn(me, wanted, does)
        if found:
            me.refused = wanted
            self._found(found)
            me.refused = None
        self._known.add((me.path, wanted.uid))

    def _learn(self, me: _Context, wanted: Held, does: str) -> Iterable[Report]:
        """Add the edges of what is held to what is wanted; reports of rings that they close.

        A lock around another is held, and wanted, together with that one.
        """
        held: dict[Held, _Hold] = {}
        for hold in me.holds.values():
            if not isinstance(hold.what, CheckedProgress) and hold.what.around:
                held.setdefault(hold.what.around, hold)
            held.setdefault(hold.what, hold)
        guards = frozenset(what.uid for what in held if not isinstance(what, CheckedProgress))
        around = None if isinstance(wanted, CheckedProgress) else wanted.around
        for inner in (around, wanted):
            if inner is None or inner in held:
                continue
            for outer, hold in held.items():
                if outer.node == inner.node:
                    if isinstance(inner, CheckedProgress):  # of locks the rank says it
                        yield self._ring(outer, inner, hold, (), does)
                    continue
                if not self.graph.knows(outer.node, inner.node, guards):
                    taken, here = frames(hold.raw()), frames(_stack())
                    thread = threading.current_thread().name
                    self.learned(Edge(outer.node, inner.node, outer.name, inner.name, thread, taken, here, guards))
                if way := self.graph.cycle(outer.node, inner.node, guards):
                    yield self._ring(outer, inner, hold, way, does)

    def learned(self, edge: Edge) -> None:
        """An edge was seen for the first time, or for the first time with these guards."""
        self.graph.add(edge)

    def _ring(self, outer: Held, inner: Held, hold: _Hold, way: tuple[Edge, ...], does: str) -> Report:
        names = [node.name for node in (inner.node, *(edge.inner for edge in way))]
        closing = f", but {' -> '.join(names)} was seen before" if way else ", another of its class"
        witnesses: list[_Seen] = [
            (outer, _since(outer), hold.raw()),
            (inner, f"{inner.name} is wanted at", _stack()),
        ]
        report = self._report(
            Kind.CYCLE, f"{does} {_label(inner)} while it {_has(outer)} {_label(outer)}{closing}", witnesses
        )
        for edge in way:
            report.witnesses += (
                Witness(f"{edge.outer_name} was taken at" if edge.outer.rank else f"{edge.outer_name}: begun at",
                        edge.outer_at, edge.thread),
                Witness(f"{edge.inner_name} was wanted at", edge.inner_at, edge.thread),
            )  # fmt: skip
        for edge in way[1:]:
            report.classes += (edge.outer.name,)
            report.instances += (edge.outer_name,)
        return report

    # -- devices

    def enters(self, device: Device, method: str, door: Door, caller: FrameType) -> None:
        """The calling thread runs the body of a public method of `device`, which `caller` called."""
        hold = _thread.context.holds.get(_lock(device).uid)
        if hold is None:
            self.report(
                Kind.BYPASS,
                f"runs the body of {type(device).__name__}.{method} of {device.name} without its lock, "
                f"{device._lock!r}: not by its door",
                [_here("at", _lock(device))],
            )
        elif hold.depth > 1 and not door.reentrant and caller.f_locals.get("self") is not device:
            self.report(
                Kind.RE_ENTRY,
                f"re-enters {device.name} by {method} from {caller.f_code.co_qualname} while it is inside",
                [(hold.what, "it is inside since", hold.raw()), _here("it came back at")],
            )

    def private(self, device: Device, method: str) -> None:
        """The calling thread runs a private method of `device`."""
        if _lock(device).held() or self.constructs(device):
            return
        self.report(
            Kind.PRIVATE,
            f"runs {type(device).__name__}.{method} of {device.name} without its lock, {device._lock!r}",
            [_here("at", _lock(device))],
        )

    def at_home(self, device: Any, method: str) -> None:
        """The calling thread runs a method of `device` that is for the device's home thread."""
        if not device._home.is_home:
            self.away_from_home(f"{type(device).__name__}.{method} of {device.name}", device._home.name)

    def away_from_home(self, work: str, home: str) -> None:
        self.report(Kind.HOME, f"runs {work}, whose home is the thread {home}", [_here("at")])

    def constructs(self, device: Device) -> bool:
        return any(device is young for young in _thread.context.constructing)

    def held(self) -> frozenset[object]:
        held = (hold.what for hold in _thread.context.holds.values())
        return frozenset(what for what in held if not isinstance(what, CheckedProgress) and what.rank > Rank.BQL)

    def race(self, device: Device, what: str, text: str, witnesses: tuple[Witness, ...]) -> None:
        """The calling thread makes an access to `what` of a device, which is kept under a lock that it does not hold"""
        thread, field = threading.current_thread().name, f".{what}"
        classes, instances = (device.lock_class + field,), (device.name + field,)
        self._found([Report(Kind.RACE, text, classes, instances, thread, witnesses)])

    def calls_out(self, device: Device, posted_at: Raw, call: Callable[..., object], *args: Any) -> None:
        """Run what a door of `device` posted; it must go out with no lock held but the machine-wide ones."""
        for hold in list(_thread.context.holds.values()):
            held = hold.what
            if not isinstance(held, CheckedProgress) and held.rank > Rank.BQL:
                self.report(
                    Kind.CALL_OUT,
                    f"runs {call!r}, posted by {device.name}, while it holds {_label(held)}:"
                    " the door that took it must be @entry(posts=True)",
                    [
                        (held, f"{held.name} was taken at", hold.raw()),
                        (_lock(device), "the call was posted at", posted_at),
                    ],
                )
        call(*args)

    def variant(self, cls: C) -> C:
        """The checked variant of a device class."""
        if not (isinstance(cls, type) and issubclass(cls, Device)):
            raise TypeError(f"{cls!r} is no Device")
        self._modules[cls.lock_class] = cls.__module__
        return cast(C, _variant(cast(Any, self._base.variant(cls))))

    # -- reports

    def report(self, kind: Kind, text: str, seen: Iterable[_Seen]) -> None:
        """Keep a report of the calling thread, and raise it if it is to be raised or the thread cannot go on."""
        self._found([self._report(kind, text, list(seen))])

    def _report(self, kind: Kind, text: str, seen: list[_Seen]) -> Report:
        thread = threading.current_thread().name
        about = [what for what, _, _ in seen if what is not None]
        return Report(
            kind,
            text,
            tuple(what.node.name for what in about),
            tuple(what.name for what in about),
            thread,
            tuple(Witness(title, frames(raw), thread) for _, title, raw in seen),
        )

    def _found(self, reports: list[Report]) -> None:
        with self._lock:
            kept = {report.key: report for report in self.reports}
            for report in reports:
                if known := kept.get(report.key):
                    known.count += 1
                else:
                    self.reports.append(report)
                    kept[report.key] = report
        if self._raising or any(report.kind in _HOPELESS for report in reports):
            raise LockOrderError(joined(reports))


_Seen: TypeAlias = tuple["Held | None", str, Raw]
"""What a stack is about, if it is a lock or a wait; what the thread did there; the stack."""

_HOPELESS: Final = frozenset({Kind.SELF, Kind.RELEASE})
"""After these a thread cannot go on: it would wait for ever, or release another one's lock."""


# -- variants of device classes ----------------------------------------------------------------------------------------


@functools.cache
def _variant(cls: type[Device]) -> type[Device]:
    """A subclass of `cls` whose doors, private methods, constructor and call-outs go through the checker."""

    def construct(self: Device, *args: Any, **kwargs: Any) -> None:
        me = _thread.context
        me.constructing.append(self)
        try:
            cls.__init__(self, *args, **kwargs)
        finally:
            me.constructing.remove(self)

    def post(self: Device, call: Callable[..., object], *args: Any) -> None:
        cls._post(self, _checker(self).calls_out, self, _stack(), call, *args)

    body: dict[str, Any] = {"__init__": construct, "_post": post}
    for owner in reversed(cls.__mro__[: cls.__mro__.index(Device)]):
        for name, value in vars(owner).items():
            door = door_of(value)
            if not isinstance(value, FunctionType) or (door and door.lockfree and not door.home):
                body.pop(name, None)
            elif door:
                body[name] = _checked_lockfree(value) if door.lockfree else _checked_door(value, door)
            elif name.startswith("_") and not name.endswith("__"):
                body[name] = _checked_private(value)
    body |= watched(cls, _checker)
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "lock_class": cls.lock_class}
    return type(cls.__name__, (cls,), body)


def _checked_door(method: FunctionType, door: Door) -> Callable[..., Any]:
    """The same door around a body that looks whether it was come to by the door."""
    inside: Callable[..., Any] = method.__wrapped__  # type: ignore[attr-defined]
    name = method.__name__

    @functools.wraps(inside)
    def body(self: Device, *args: Any, **kwargs: Any) -> Any:
        if self._lock.hold.depth != 1 or not self._lock.held():  # type: ignore[attr-defined]
            _checker(self).enters(self, name, door, sys._getframe(2))
        if door.home:
            _checker(self).at_home(self, name)
        return inside(self, *args, **kwargs)

    return door_around(body, door)


def _checked_lockfree(method: FunctionType) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: Device, *args: Any, **kwargs: Any) -> Any:
        _checker(self).at_home(self, method.__name__)
        return method(self, *args, **kwargs)

    return run


def _checked_private(method: FunctionType) -> Callable[..., Any]:
    name = method.__name__

    @functools.wraps(method)
    def run(self: Device, *args: Any, **kwargs: Any) -> Any:
        # A device that is being made has no lock yet.
        if self not in _thread.context.constructing:
            _checker(self).private(self, name)
        return method(self, *args, **kwargs)

    return run


def _lock(device: Device) -> CheckedLock:
    return device._lock  # type: ignore[return-value]  # a checked variant has a checked lock


def _checker(device: Device) -> Checker:
    return _lock(device)._checker


# -- stacks and words --------------------------------------------------------------------------------------------------

_ORDER: Final = " < ".join(rank.name for rank in Rank)


def _label(what: Held) -> str:
    rank = f", rank {what.node.rank}" if what.node.rank else ""
    return f"{what.name} (class {what.node.name}{rank})"


def _has(what: Held) -> str:
    return "serves" if isinstance(what, CheckedProgress) else "holds"


def _since(what: Held) -> str:
    return f"{what.name}: begun at" if isinstance(what, CheckedProgress) else f"{what.name} was taken at"


def _here(title: str, what: Held | None = None) -> _Seen:
    return what, title, _stack()


def _outside(frame: FrameType) -> FrameType:
    """The innermost frame, from `frame` outwards, that is not of the locks themselves."""
    while frame.f_code.co_filename in OWN_FILES and frame.f_back:
        frame = frame.f_back
    return frame


def _stack(frame: FrameType | None = None) -> Raw:
    """Where a frame, or else the calling thread, is; without the frames of the locks themselves."""
    frame = frame or sys._getframe(1)
    stack: Raw = []
    while frame and len(stack) < STACK_DEPTH:
        if frame.f_code.co_filename not in OWN_FILES:
            stack.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return stack
