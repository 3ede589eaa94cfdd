"""Locks, and the rules by which device models take them.

Every public method of a `Device` is a door: `@entry` takes the device's lock around it, `@lockfree(reason)` says why it
needs none, and a public method that is neither is refused when its class is made. A leading underscore means "the lock
is held". Timers, completions and other devices come in by the same doors, holding nothing.

Locks are taken in the order of `Rank`, outermost first. Two of one rank nest only where the outer device's class
declares it (`lock_children`). A device reaches another one, or a peer's callback, only by `_post`, from a door marked
`@entry(posts=True)`: the call goes out once the thread has left its outermost such door, before the access returns.

A class as written is the plain variant, with no test of any kind on its path. A machine is made of one `Kit`, which
picks the variant: the plain one, or the checked one (`vmm.lockcheck`), which reports whatever breaks these rules.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import re
import threading
import time
import weakref
from _thread import RLock
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from vmm import bql
from vmm.errors import InternalError
from vmm.state import DeviceState, field_types
from vmm.waitfor import Sighting

if TYPE_CHECKING:
    from vmm.lockcheck import Checker
    from vmm.lockstat import Meter

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
C = TypeVar("C")
D = TypeVar("D")


class Rank(IntEnum):
    """The order in which locks nest, outermost first."""

    LIFECYCLE = 0
    BQL = 1
    BUS = 2
    DEVICE = 3
    QUEUE = 4
    BLOCK = 5
    IRQCHIP = 6
    VCPU = 7
    LEAF = 8


# -- the lock ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LockStatistics:
    """One lock at one moment. Another thread may change it while this is being read."""

    name: str
    lock_class: str
    rank: Rank
    holder: str | None  # name of the thread that holds it
    depth: int  # how many times the holder has taken it
    waiters: tuple[str, ...]
    contended: int  # acquisitions that had to wait for another thread
    waited_ns: int  # sum of those waits
    longest_wait_ns: int


class DeviceLock(RLock):  # type: ignore[misc]  # final in the stubs only
    """A reentrant lock with a name, a class and a rank.

    The lock itself is CPython's, in C. Doors try it without waiting and fall back to `contend`, so waits are counted
    and waiters known at no cost to whoever finds it free: a door costs what a `with RLock` costs
    (`benchmarks/locks/entry.py`). A `with` on this lock counts in `__enter__`, for 70 ns more.
    """

    __slots__ = ("_contended", "_longest_wait_ns", "_waited_ns", "_waiting", "lock_class", "name", "rank")

    def __init__(self, name: str, lock_class: str | None = None, rank: Rank = Rank.DEVICE) -> None:
        self.name = name
        self.lock_class = lock_class or name
        self.rank = rank
        self._waiting: dict[int, int] = {}  # thread ident -> since when, ns; each adds and removes its own
        self._contended = self._waited_ns = self._longest_wait_ns = 0  # written by the holder only

    def contend(self) -> Literal[True]:
        """Wait for the lock; account for the wait.

        The caller has found the lock taken and releases it in a `finally`, so this ends with the lock held also when
        a signal handler raises meanwhile.
        """
        ident = threading.get_ident()
        started = time.perf_counter_ns()
        self._waiting[ident] = started
        try:
            self.acquire()
        except BaseException:
            self.acquire()
            raise
        finally:
            self._waiting.pop(ident, None)
        waited = time.perf_counter_ns() - started
        self._contended += 1
        self._waited_ns += waited
        self._longest_wait_ns = max(self._longest_wait_ns, waited)
        return True

    def __enter__(self) -> bool:  # type: ignore[override]
        try:
            return self.acquire(False) or self.contend()
        except BaseException:  # a signal handler raised with the lock taken: `with` would not release it
            self.release()
            raise

    def held(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(self._is_owned())  # type: ignore[attr-defined]

    @property
    def exclusion(self) -> DeviceLock:
        """The lock that keeps others out: itself, unless it was made `around` another."""
        return self

    @property
    def held_since(self) -> int:
        """When its holder took it, ns of CLOCK_MONOTONIC; 0 when it is free, or nobody takes notes."""
        return 0

    def tell(self, sighting: Sighting, since: int = 0) -> None:
        """Who holds it, if it is known since when, and who waits for it."""
        thing = f"the lock of {self.name} (class {self.lock_class})"
        owner, _ = self._owner()
        if owner:
            sighting.hold(owner, thing, since=since)
        for ident, since in self._waiting.copy().items():
            sighting.wait(ident, thing, since)
            sighting.stay(ident, f"waiting for {thing}", ("lock", self.name, since))

    def _owner(self) -> tuple[int, int]:
        """The holder's ident and depth, both 0 when free. CPython tells them in the repr alone."""
        match = re.search(r"owner=(\d+) count=(\d+)", super().__repr__())
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def statistics(self) -> LockStatistics:
        owner, depth = self._owner()
        return LockStatistics(
            name=self.name,
            lock_class=self.lock_class,
            rank=self.rank,
            holder=thread_name(owner) if depth else None,
            depth=depth,
            waiters=tuple(thread_name(ident) for ident in self._waiting.copy()),  # copy() is atomic, tuple() is not
            contended=self._contended,
            waited_ns=self._waited_ns,
            longest_wait_ns=self._longest_wait_ns,
        )

    def __repr__(self) -> str:
        now = self.statistics()
        held = f"held by {now.holder} (depth {now.depth})" if now.holder else "free"
        waiters = f", {', '.join(now.waiters)} waiting" if now.waiters else ""
        return f"<{type(self).__name__} {self.name!r} of class {self.lock_class}, {self.rank.name}: {held}{waiters}>"


def thread_name(ident: int) -> str:
    return next((thread.name for thread in threading.enumerate() if thread.ident == ident), f"thread {ident}")


# -- call-outs ---------------------------------------------------------------------------------------------------------


class _Outbox:
    """What one thread's doors have queued to run once it is out of the outermost of them.

    Per thread, not per device: when one device calls down into another, the inner one's call-outs must wait until the
    outer lock is free too.
    """

    __slots__ = ("calls", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self.calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def drain(self) -> None:
        """Run the queued calls and those they queue in turn, in order, on a flat stack."""
        self.depth = 1
        try:
            while self.calls:
                call, args = self.calls.popleft()
                call(*args)
        finally:
            self.depth = 0
            if self.calls:  # one that raised does not swallow those behind it
                self.drain()


class _Thread(threading.local):
    def __init__(self) -> None:
        self.outbox = _Outbox()


_thread: Final = _Thread()


# -- doors -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Door:
    """How a public method may be entered."""

    posts: bool = False
    reentrant: str | None = None  # why a thread that is inside the device may come in again from outside it
    lockfree: str | None = None  # why it takes no lock
    home: bool = False  # whether only the device's home thread, `_home`, comes in by it


_ENTRY: Final = """\
def {name}{parameters}:
    __lock = {self}._lock
    try:
        __lock.acquire(False) or __lock.contend()
        return __body({arguments})
    finally:
        __lock.release()
"""

_POSTING_ENTRY: Final = """\
def {name}{parameters}:
    __outbox = __thread.outbox
    __outbox.depth += 1
    try:
        __lock = {self}._lock
        try:
            __lock.acquire(False) or __lock.contend()
            return __body({arguments})
        finally:
            __lock.release()
    finally:
        __outbox.depth -= 1
        if __outbox.calls and not __outbox.depth:
            __outbox.drain()
"""


@overload
def entry(method: F, /) -> F: ...
@overload
def entry(*, posts: bool = False, reentrant: str | None = None, home: bool = False) -> Callable[[F], F]: ...
def entry(
    method: F | None = None, /, *, posts: bool = False, reentrant: str | None = None, home: bool = False
) -> F | Callable[[F], F]:
    """Make a public method take its device's lock. With `posts=True` its body may queue calls by `_post`; with
    `home=True` it is for the device's home thread alone, which checked variants assert.

    The wrapper is compiled with the method's own signature: one that takes `*args` costs half as much again.
    """

    def make_door(body: F) -> F:
        if inspect.isgeneratorfunction(body) or inspect.iscoroutinefunction(body):
            raise TypeError(f"{body.__qualname__}: its body would run after @entry had released the lock")
        return cast(F, door_around(body, Door(posts=posts, reentrant=reentrant, home=home)))

    return make_door if method is None else make_door(method)


def door_around(body: Callable[..., Any], door: Door) -> Callable[..., Any]:
    """What `@entry` makes of a method: a function that takes the lock and calls `body`, its `__wrapped__`."""
    return _compile(_POSTING_ENTRY if door.posts else _ENTRY, body, door)


def lockfree(reason: str, *, home: bool = False) -> Callable[[F], F]:
    """Say why a public method takes no lock. Below `@property` and `@staticmethod`, above nothing else.

    With `home=True` it is for the device's home thread alone.
    """
    if not isinstance(reason, str) or not reason:
        raise TypeError("@lockfree needs its reason")

    def mark(method: F) -> F:
        method.__door__ = Door(lockfree=reason, home=home)  # type: ignore[attr-defined]
        return method

    return mark


def _compile(template: str, method: Callable[..., Any], door: Door) -> Callable[..., Any]:
    signature = inspect.signature(method)
    bare = [item.replace(default=item.empty, annotation=item.empty) for item in signature.parameters.values()]
    if not bare:
        raise TypeError(f"{method.__qualname__}: @entry is for methods")
    source = template.format(
        name=method.__name__,
        self=bare[0].name,
        parameters=str(signature.replace(parameters=bare, return_annotation=signature.empty)),
        arguments=", ".join(
            f"{item.name}={item.name}" if item.kind is item.KEYWORD_ONLY else str(item) for item in bare
        ),
    )
    filename = f"<@entry {method.__module__}.{method.__qualname__}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)  # for tracebacks
    namespace: dict[str, Any] = {"__body": method, "__thread": _thread}
    exec(compile(source, filename, "exec"), namespace)
    door_function: Any = functools.wraps(method)(namespace[method.__name__])
    written: Any = inspect.unwrap(method)  # the one that `signature` tells of
    door_function.__defaults__ = written.__defaults__
    door_function.__kwdefaults__ = written.__kwdefaults__
    door_function.__door__ = door
    return cast(Callable[..., Any], door_function)


# -- devices -----------------------------------------------------------------------------------------------------------


class Device:
    """What every device model is made from: a name, a lock, and doors that were checked when the class was made."""

    lock_rank: ClassVar[Rank] = Rank.DEVICE
    lock_class: ClassVar[str]  # device type and role; by default the name of the class
    lock_children: ClassVar[tuple[str, ...]] = ()  # lock classes of the same rank that this one's may be held around
    lockfree_fields: ClassVar[Mapping[str, str]] = {}  # of state, or private attributes -> why no lock guards them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "lock_class" not in cls.__dict__:
            cls.lock_class = cls.__name__
        for name, value in vars(cls).items():
            if not isinstance(value, type):
                continue
            if issubclass(value, DeviceState):
                field_types(value)
            elif name == "State":
                raise TypeError(f"{cls.__qualname__}.State is {value.__qualname__}, which is no DeviceState")
        for owner in cls.__mro__:
            if owner in (Device, object, Generic, Protocol):
                continue
            for name, value in vars(owner).items():
                if name.startswith("_") or isinstance(value, type) or not callable(_function(value)):
                    continue
                if door_of(value) is None:
                    raise TypeError(f"{owner.__qualname__}.{name} is public: mark it @entry or @lockfree(reason)")

    def __init__(self, name: str, locking: Locking) -> None:
        self.name = name
        self._lock = locking.device_lock(name, type(self))

    def _post(self, call: Callable[..., object], *args: Any) -> None:
        """Queue a call for when this thread is out of its outermost `@entry(posts=True)` door."""
        outbox = _thread.outbox
        if not outbox.depth:
            raise InternalError(f"{self.name}: _post({call!r}) outside a door marked @entry(posts=True)")
        outbox.calls.append((call, args))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._lock!r}>"


def door_of(value: object) -> Door | None:
    """The door that a class attribute was marked to be."""
    door = getattr(_function(value), "__door__", None)
    return door if isinstance(door, Door) else None


def _function(value: object) -> object:
    """The function inside a property or a static or class method; other attributes as they are."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value.func if isinstance(value, functools.cached_property) else value


# -- what a machine is made of ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProgressStatistics:
    """Who waits for what at one moment."""

    name: str
    waiters: tuple[str, ...]


class Progress:
    """Something that threads wait for and others bring about: a turn of the I/O thread, harts that reach the gate.

    This one is of the plain kind: it knows who waits, for reports of what hangs, and asks nobody. Another kit's may
    note who waits for whom, as an edge of the order graph: waiting for a thread that takes a lock is much like taking
    it.
    """

    __slots__ = ("_waiters", "name")

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self._waiters = _Waiters()

    def statistics(self) -> ProgressStatistics:
        return ProgressStatistics(self.name, tuple(thread_name(ident) for ident in self._waiters.since.copy()))

    def __repr__(self) -> str:
        waiters = self.statistics().waiters
        return (
            f"<{type(self).__name__} {self.name}{': ' * bool(waiters)}{', '.join(waiters)}{' waiting' * bool(waiters)}>"
        )

    def serving(self) -> AbstractContextManager[object]:
        """While the calling thread does what others may be waiting for."""
        return _NOTHING

    def waiting(self) -> AbstractContextManager[object]:
        """While the calling thread waits for it."""
        return self._waiters

    def tell(self, sighting: Sighting, thing: str = "") -> None:
        """Who waits for it, by the name `thing` or its own."""
        for ident, since in self._waiters.since.copy().items():
            sighting.wait(ident, thing or self.name, since)


_NOTHING: Final = nullcontext()


class _Waiters:
    """Which threads are inside of it, and since when. A wait may take 150 ns more; what others serve may not, so that
    is left to those who know it."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: dict[int, int] = {}  # thread ident -> ns of CLOCK_MONOTONIC; each adds and removes its own

    def __enter__(self) -> None:
        self.since[threading.get_ident()] = time.perf_counter_ns()

    def __exit__(self, *exc_info: object) -> None:
        self.since.pop(threading.get_ident(), None)


class Condition(Protocol):
    """What code that waits needs of a `threading.Condition`."""

    def __enter__(self) -> bool: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any: ...
    def notify_all(self) -> None: ...


class Thread(Protocol):
    """What whoever starts a thread needs of a `threading.Thread`."""

    @property
    def ident(self) -> int | None: ...
    def start(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Kit:
    """What the locks, devices, waits and threads of one machine are made of: here the plain kind of each.

    Other kits are `vmm.lockcheck.Checker`, which reports whoever breaks the rules, and those that measure and schedule.
    They are made around one another, so that a checked machine may be a measured one.
    """

    _base: Kit | None = None
    """The kit that this one is made around."""

    @property
    def meter(self) -> Meter | None:
        """What measures, if this kit or one of those it is made around does: it picks variants of what is no device."""
        return None if self._base is None else self._base.meter

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> DeviceLock:
        """A lock. One made `around` another shares that one's exclusion, and may have a name and statistics of its
        own; the plain kind is simply that other one. `children` are lock classes that it may be held around."""
        return DeviceLock(name, lock_class, rank) if around is None else around

    def variant(self, cls: C) -> C:
        """The variant of a device class."""
        return cls

    def progress(self, name: str, progress_class: str | None = None) -> Progress:
        """Something to wait for. Its class, as a lock's, is what the order graph goes by."""
        return Progress(name)

    def condition(self, name: str, lock_class: str | None = None) -> Condition:
        """A condition variable with a lock of its own, which is of rank LEAF."""
        return cast(Condition, threading.Condition(threading.Lock()))

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> Thread:
        """A thread that is not started yet, and that no process waits for at its end."""
        return threading.Thread(target=target, name=name, args=args, daemon=True)

    def away_from_home(self, work: str, home: str) -> None:
        """The calling thread does work that belongs on the thread `home`."""
        raise InternalError(f"{work} ran on {threading.current_thread().name}: its home is {home}")

    def point(self, what: str) -> None:
        """The calling thread is about to do something that other threads can see. A kit that schedules switches here;
        only variants of devices and test fakes call it, never what runs on a plain path."""


PLAIN: Final = Kit()


# -- the policy --------------------------------------------------------------------------------------------------------


class Locking:
    """Which locks one machine uses: one a device or one for all, of which kit. Makes the machine's devices."""

    def __init__(
        self, policy: bql.Policy = "device", checked: bool = False, kit: Kit = PLAIN, *, raising: bool = True
    ) -> None:
        """`checked` puts a checker around `kit`. It raises its reports in the thread at fault, or with `raising=False`
        only keeps those that the thread can go on after."""
        if policy not in bql.POLICIES:
            raise InternalError(f"locking policy {policy!r} is none of {', '.join(bql.POLICIES)}")
        self.policy: Final = policy
        self.checker: Final = _new_checker(kit, raising) if checked else None
        self.kit: Final[Kit] = self.checker or kit
        self._registry = threading.Lock()  # guards _locks
        self._locks: weakref.WeakSet[DeviceLock] = weakref.WeakSet()
        self.big: Final = self.lock("bql", rank=Rank.BQL)
        # what VCPU threads hold while out of the guest, I/O threads in callbacks, the lifecycle when it changes things
        self.outside_guest: Final[AbstractContextManager[object]] = self.big if policy == "bql" else _NOTHING

    def lock(self, name: str, lock_class: str | None = None, rank: Rank = Rank.LEAF) -> DeviceLock:
        """A lock for something that is no device. It is a lock of its own under every policy."""
        return self._register(self.kit.lock(name, lock_class, rank))

    def device_lock(self, name: str, cls: type[Device]) -> DeviceLock:
        """The lock of a device of this class: its own, or the big one."""
        around = self.big if self.policy == "bql" or cls.lock_class in bql.COVERED else None
        return self._register(self.kit.lock(name, cls.lock_class, cls.lock_rank, cls.lock_children, around))

    def _register(self, lock: DeviceLock) -> DeviceLock:
        with self._registry:
            self._locks.add(lock)
        return lock

    def make(self, cls: Callable[Concatenate[str, Locking, P], D], name: str, *args: P.args, **kwargs: P.kwargs) -> D:
        """A device of class `cls`, in the variant this machine uses."""
        return self.kit.variant(cls)(name, self, *args, **kwargs)

    def statistics(self) -> list[LockStatistics]:
        """Every lock of the machine that is alive, by rank and name."""
        with self._registry:
            locks = list(self._locks)
        return sorted((lock.statistics() for lock in locks), key=lambda now: (now.rank, now.name))

    def tell(self, sighting: Sighting) -> None:
        """Who holds the machine's locks, and who waits for them."""
        with self._registry:
            locks = [(lock.exclusion, lock.held_since) for lock in self._locks]
        for lock in {lock for lock, _ in locks}:
            lock.tell(sighting, min((since for other, since in locks if other is lock and since), default=0))

    def __repr__(self) -> str:
        taken = [now for now in self.statistics() if now.holder]
        held = ", ".join(f"{now.name} held by {now.holder}" for now in taken) or "all free"
        return f"<Locking {self.policy}{', checked' if self.checker else ''}: {held}>"


def _new_checker(kit: Kit, raising: bool) -> Checker:
    from vmm.lockcheck import Checker  # here, since it is built from this module, and a plain run has no use for it

    return Checker(kit, raising=raising)
