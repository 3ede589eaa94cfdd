"""The checked variant of `vmm.locks`: the same locks and devices, made to report whoever breaks the rules.

It reports, with the stack of each party:
- a lock taken against the order of ranks, or beside one of its own rank that does not declare it;
- a private method of a device called by a thread that does not hold its lock;
- a device entered again from outside by a thread that is inside it already;
- a call-out that runs while a lock is held.

A report is raised as `LockOrderError` in the thread at fault, and kept in `Checker.reports`, since what runs on a
service thread may be nobody's to catch. Under the big-lock policy each device keeps a checked lock of its own around
the shared one, so that both policies are held to one order.
"""

from __future__ import annotations

import functools
import linecache
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, Literal, NoReturn, TypeAlias, TypeVar, cast

from vmm.errors import LockOrderError
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
    door_of,
)

C = TypeVar("C")
Stack: TypeAlias = list[tuple[CodeType, int]]  # innermost first; frames would keep their locals alive

STACK_DEPTH: Final = 12


@dataclass(slots=True)
class _Hold:
    lock: CheckedLock
    frame: FrameType  # that took it; alive while the lock is held, as its callers are
    line: int
    depth: int = 1

    def stack(self) -> Stack:
        return [(self.frame.f_code, self.line), *_stack(self.frame.f_back)]


class _Thread(threading.local):
    def __init__(self) -> None:
        self.holds: list[_Hold] = []  # outermost first
        self.refused: CheckedLock | None = None  # reported and not taken, but its door's `finally` will release it
        self.constructing: list[Device] = []  # nobody else can see these yet

    def hold_of(self, lock: DeviceLock) -> _Hold | None:
        return next((hold for hold in self.holds if hold.lock is lock), None)


_thread: Final = _Thread()


class CheckedLock(DeviceLock):  # type: ignore[misc]
    """A lock that asks its checker. One made `around` another shares its exclusion but has its own rank."""

    __slots__ = ("_checker", "_inner", "children")

    def __init__(
        self,
        checker: Checker,
        name: str,
        lock_class: str | None,
        rank: Rank,
        children: tuple[str, ...],
        inner: DeviceLock,
    ) -> None:
        super().__init__(name, lock_class, rank)
        self.children = children
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
        return _thread.hold_of(self) is not None

    def statistics(self) -> LockStatistics:
        return replace(self._inner.statistics(), name=self.name, lock_class=self.lock_class, rank=self.rank)


class Checker(Kit):
    """What the checked locks and devices of one machine are made by, and report to."""

    def __init__(self, base: Kit = PLAIN) -> None:
        """Kit `base` makes what does not concern the checker: the locks that do exclude, conditions, threads."""
        self._base: Kit = base
        self.reports: list[str] = []

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> CheckedLock:
        inner = self._base.lock(
            name, lock_class, rank, children, around._inner if isinstance(around, CheckedLock) else around
        )
        return CheckedLock(self, name, lock_class, rank, children, inner)

    def progress(self, name: str) -> Progress:
        return self._base.progress(name)

    def condition(self, name: str) -> Condition:
        return self._base.condition(name)

    def thread(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> Thread:
        return self._base.thread(target, name, args)

    def point(self, what: str) -> None:
        self._base.point(what)

    # -- locks: every change of who holds what passes through these three

    def wants(self, lock: CheckedLock) -> None:
        """The calling thread is about to take or wait for `lock`."""
        _thread.refused = None
        if _thread.hold_of(lock):
            return
        for hold in _thread.holds:
            outer = hold.lock
            if outer.rank < lock.rank or (outer.rank == lock.rank and lock.lock_class in outer.children):
                continue
            _thread.refused = lock
            rule = "which does not declare it as a child" if outer.rank == lock.rank else f"against {_ORDER}"
            self.report(
                f"takes {_label(lock)} while it holds {_label(outer)}, {rule}",
                {f"{outer.name} was taken at": hold.stack(), f"{lock.name} is wanted at": _stack()},
            )

    def took(self, lock: CheckedLock) -> None:
        hold = _thread.hold_of(lock)
        if hold:
            hold.depth += 1
        else:
            frame = sys._getframe(1)
            while frame.f_code.co_filename in _OWN_FILES and frame.f_back:
                frame = frame.f_back
            _thread.holds.append(_Hold(lock, frame, frame.f_lineno))

    def frees(self, lock: CheckedLock) -> bool:
        """Note a release; whether there is a lock to release."""
        if _thread.refused is lock:
            _thread.refused = None
            return False
        hold = _thread.hold_of(lock)
        if hold is None:
            self.report(f"releases {_label(lock)}, which it does not hold", {"at": _stack()})
        hold.depth -= 1
        if not hold.depth:
            _thread.holds.remove(hold)
        return True

    # -- devices

    def enters(self, device: Device, method: str, door: Door, caller: FrameType) -> None:
        """The calling thread comes in by a door of `device`."""
        hold = _thread.hold_of(device._lock)
        if hold is None or door.reentrant or caller.f_locals.get("self") is device:
            return
        self.report(
            f"re-enters {device.name} by {method} from {caller.f_code.co_qualname} while it is inside",
            {"it is inside since": hold.stack(), "it came back at": _stack()},
        )

    def private(self, device: Device, method: str) -> None:
        """The calling thread runs a private method of `device`."""
        if any(device is young for young in _thread.constructing) or device._lock.held():
            return
        self.report(
            f"runs {type(device).__name__}.{method} of {device.name} without its lock, {device._lock!r}",
            {"at": _stack()},
        )

    def calls_out(self, device: Device, posted_at: Stack, call: Callable[..., object], *args: Any) -> None:
        """Run what a door of `device` posted; it must go out with no lock held but the machine-wide ones."""
        for hold in _thread.holds:
            if hold.lock.rank > Rank.BQL:
                self.report(
                    f"runs {call!r}, posted by {device.name}, while it holds {_label(hold.lock)}:"
                    " the door that took it must be @entry(posts=True)",
                    {f"{hold.lock.name} was taken at": hold.stack(), "the call was posted at": posted_at},
                )
        call(*args)

    def variant(self, cls: C) -> C:
        """The checked variant of a device class."""
        if not (isinstance(cls, type) and issubclass(cls, Device)):
            raise TypeError(f"{cls!r} is no Device")
        return cast(C, _variant(cast(Any, self._base.variant(cls))))

    def report(self, what: str, stacks: dict[str, Stack]) -> NoReturn:
        lines = [f"thread {threading.current_thread().name} {what}"]
        for title, stack in stacks.items():
            lines += [f"  {title}:", *_formatted(stack)]
        report = "\n".join(lines)
        self.reports.append(report)
        raise LockOrderError(report)


@functools.cache
def _variant(cls: type[Device]) -> type[Device]:
    """A subclass of `cls` whose doors, private methods, constructor and call-outs go through the checker."""

    def construct(self: Device, *args: Any, **kwargs: Any) -> None:
        _thread.constructing.append(self)
        try:
            cls.__init__(self, *args, **kwargs)
        finally:
            _thread.constructing.remove(self)

    def post(self: Device, call: Callable[..., object], *args: Any) -> None:
        cls._post(self, _checker(self).calls_out, self, _stack(), call, *args)

    body: dict[str, Any] = {"__module__": cls.__module__, "__init__": construct, "_post": post}
    body["__qualname__"] = cls.__qualname__
    body["lock_class"] = cls.lock_class
    for owner in reversed(cls.__mro__[: cls.__mro__.index(Device)]):
        for name, value in vars(owner).items():
            door = door_of(value)
            if not isinstance(value, FunctionType) or (door and door.lockfree):
                body.pop(name, None)
            elif door:
                body[name] = _checked_door(value, door)
            elif name.startswith("_") and not name.endswith("__"):
                body[name] = _checked_private(value)
    return type(cls.__name__, (cls,), body)


def _checked_door(method: FunctionType, door: Door) -> Callable[..., Any]:
    @functools.wraps(method)
    def enter(self: Device, *args: Any, **kwargs: Any) -> Any:
        _checker(self).enters(self, method.__name__, door, sys._getframe(1))
        return method(self, *args, **kwargs)

    return enter


def _checked_private(method: FunctionType) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: Device, *args: Any, **kwargs: Any) -> Any:
        if self not in _thread.constructing:
            _checker(self).private(self, method.__name__)
        return method(self, *args, **kwargs)

    return run


def _checker(device: Device) -> Checker:
    return cast(CheckedLock, device._lock)._checker


_OWN_FILES: Final = {code.co_filename for code in (Checker.took.__code__, DeviceLock.contend.__code__)}
_ORDER: Final = " < ".join(rank.name for rank in Rank)


def _label(lock: DeviceLock) -> str:
    return f"{lock.name} (class {lock.lock_class}, rank {lock.rank.name})"


def _stack(frame: FrameType | None = None) -> Stack:
    """Where a frame, or else the calling thread, is; without the frames of the locks themselves."""
    frame = frame or sys._getframe(1)
    stack: Stack = []
    while frame and len(stack) < STACK_DEPTH:
        if frame.f_code.co_filename not in _OWN_FILES:
            stack.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return stack


def _formatted(stack: Stack) -> list[str]:
    return [
        f"    {code.co_filename}:{line} {code.co_qualname}: {linecache.getline(code.co_filename, line).strip()}"
        for code, line in stack
    ]
