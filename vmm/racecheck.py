"""The race checker: who touches what a device keeps, without the lock that it is kept under.

It is Eraser's lockset method (Savage et al., "Eraser: A Dynamic Data Race Detector", 1997), in two strengths.

- *State* (`vmm.state.DeviceState`). Which lock guards it is known, so the candidate set is that one lock from the
  start: the constructor is the exclusive phase, and after it one access without the lock is a finding, at once and
  whether or not a second thread ever meets it. A reference kept across a reset, to state that is the device's no more,
  is one too.
- *Wiring* that changes: the private attributes that methods set. These may belong to one thread instead, so they pass
  through Eraser's phases: exclusive to the first thread after the constructor; from the second thread on the candidate
  set shrinks to the locks that every access held; empty, and written by anybody, it is a finding.

What a class names in `lockfree_fields`, with the reason, is exempt. Not seen are wiring that is only ever changed in
place (a deque that no method replaces), iterators and buffers of a container that are used after the lock is free.

Under the big-lock policy a device's own lock is still the one asked for: the device has to be right under both.
Each access is a point of the kit, before it happens: a schedule may switch there.
"""

from __future__ import annotations

import dis
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from functools import cache, partial
from threading import get_ident
from types import CodeType, FrameType, FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from vmm.errors import InternalError
from vmm.lockreport import Stack, Witness, frames
from vmm.locks import Device
from vmm.state import CONTAINERS, DeviceState, field_types

_Frame: TypeAlias = tuple[CodeType, int]
"""Code and last instruction: to look up the line takes time, and frames would keep their locals alive."""

STACK_DEPTH: Final = 16  # of frames kept; the checker's own are left out when they are shown

OWN_FILES: Final = frozenset(
    __file__.replace("racecheck.py", name) for name in ("locks.py", "lockcheck.py", "racecheck.py")
)
"""Whose frames are no part of a stack that a report shows."""

READ: Final = 0
WRITE: Final = 1
_VERBS: Final = ("reads", "writes")
_IN_PLACE: Final = (list, dict, set, deque, bytearray)


Tenure: TypeAlias = tuple[int, int]
"""The ident of a thread that holds a lock, and the id of the frame that took it: a new one each time it is taken."""


class GuardLock(Protocol):
    """What this needs of a checked lock."""

    tenure: Tenure | None
    """Who holds it."""


class Finder(Protocol):
    """Who hears of races: the checker."""

    def point(self, what: str) -> None: ...

    def constructs(self, device: Device) -> bool:
        """Whether the calling thread is in the constructor of `device`."""

    def held(self) -> frozenset[object]:
        """The locks that the calling thread holds, without the machine-wide ones."""

    def race(self, device: Device, what: str, text: str, witnesses: tuple[Witness, ...]) -> None:
        """The calling thread makes an access to `what` of a device, and should not."""


class _Mark(NamedTuple):
    """An access that was made."""

    order: int
    thread: str
    locked: bool
    inner: Sequence[_Frame]
    outer: Sequence[_Frame]


class Guard:
    """Watches what one device keeps. Fields and attributes are numbered by class; an access is `2 * number + kind`."""

    def __init__(self, device: Device, finder: Finder, lock: GuardLock, names: tuple[str, ...]) -> None:
        self.device = device
        self.lock = lock
        self.labels = [f"{device.name}.{name} {verb}" for name in names for verb in ("read", "write")]
        self.point = finder.point
        self._finder = finder
        # The tenure in which each access was last marked: once in each is enough to tell who it was.
        self.seen: list[Tenure | None] = [None] * len(self.labels)
        self._marks: list[_Mark | None] = [None] * len(self.labels)
        self._order = itertools.count()
        # What all marks of one tenure have in common.
        self._tenure: Tenure | None = None
        self._thread = ""
        self._outer: Sequence[_Frame] = ()
        # Eraser's, by attribute: the thread it is exclusive to, then the candidate set; those written while shared.
        self._first: dict[int, int] = {}
        self._candidates: dict[int, frozenset[object]] = {}
        self._written: set[int] = set()
        self._alone = frozenset((lock,))
        # Whether the candidate set is this device's lock alone: who holds it can do no wrong.
        self._settled = [False] * len(names)

    def state(self, access: int) -> None:
        """The calling thread is about to make an access to state."""
        tenure = self.lock.tenure
        if tenure is None or tenure[0] != get_ident():
            if not self._finder.constructs(self.device):
                self._report(access, f"without the lock of {self._whose()}")
        elif self.seen[access] is not tenure:
            self.mark(access, tenure, sys._getframe(1))
        self.point(self.labels[access])

    def wiring(self, access: int, value: object = None) -> None:
        """The calling thread is about to make an access to an attribute. Whoever reads one that is a container may
        change what is in it."""
        tenure, number, ident = self.lock.tenure, access >> 1, get_ident()
        owned = tenure is not None and tenure[0] == ident
        if not (owned and self._settled[number]):
            self._refine(access, ident, owned, bool(access & WRITE) or isinstance(value, _IN_PLACE))
        if not owned:
            self._mark_unlocked(access)
        elif self.seen[access] is not tenure:
            self.mark(access, tenure, sys._getframe(1))  # type: ignore[arg-type]  # it is owned
        self.point(self.labels[access])

    def _refine(self, access: int, ident: int, owned: bool, writes: bool) -> None:
        number = access >> 1
        candidates = self._candidates.get(number)
        if candidates is None and not self._shared(number, ident):
            return
        held = self._alone if owned and (candidates is None or self.lock in candidates) else self._finder.held()
        candidates = self._candidates[number] = held if candidates is None else candidates & held
        if writes:
            self._written.add(number)
        self._settled[number] = candidates == self._alone and number in self._written
        if not candidates and number in self._written:
            self._report(access, f"of {self._whose()}, which threads share with no lock that all of them take")

    def _shared(self, number: int, ident: int) -> bool:
        """Whether a second thread has an attribute now that was exclusive to one."""
        first = self._first.get(number)
        if first is None:
            if not self._finder.constructs(self.device):
                self._first[number] = ident
            return False
        return first != ident

    def mark(self, access: int, tenure: Tenure, frame: FrameType | None) -> None:
        """Note an access of whoever holds the lock, in `frame`."""
        inner: list[_Frame] = []
        while frame:
            inner.append((frame.f_code, frame.f_lasti))
            if id(frame) == tenure[1]:  # behind it nothing has moved since the lock was taken
                frame = frame.f_back
                break
            frame = frame.f_back
        if self._tenure is not tenure:
            self._tenure, self._thread, self._outer = tenure, threading.current_thread().name, _frames(frame)
        self.seen[access] = tenure
        self._marks[access] = _Mark(next(self._order), self._thread, True, inner, self._outer)

    def _mark_unlocked(self, access: int) -> None:
        thread, at = threading.current_thread().name, _frames(sys._getframe(1))
        self.seen[access] = None
        self._marks[access] = _Mark(next(self._order), thread, False, at, ())

    def retired(self) -> Guard:
        """What watches state of this device that is being replaced."""
        return _Retired(self)

    def _report(self, access: int, how: str) -> None:
        """A read is reported with the last write, a write with the last access, as far as there was one."""
        read, written = ((self._marks[one], one) for one in (access & ~WRITE, access | WRITE))
        earlier = [(mark, one) for mark, one in (written, read) if mark]
        self._found(access, how, [self._witness(*(max(earlier) if access & WRITE else earlier[0]))] if earlier else [])

    def _witness(self, mark: _Mark, access: int) -> Witness:
        verb, lock = "written" if access & WRITE else "read", "with" if mark.locked else "without"
        text = f"{self._name(access)} was last {verb} {lock} the lock at"
        return Witness(text, _stack([*mark.inner, *mark.outer]), mark.thread)

    def _found(self, access: int, how: str, others: list[Witness]) -> None:
        name = self._name(access)
        here = Witness("at", _stack(_frames(sys._getframe(1))), threading.current_thread().name)
        text = f"{_VERBS[access & WRITE]} {name} {how}"
        self._finder.race(self.device, name.removeprefix(f"{self.device.name}."), text, (here, *others))

    def _name(self, access: int) -> str:
        return self.labels[access].rpartition(" ")[0]

    def _whose(self) -> str:
        return f"{self.device.name} (class {self.device.lock_class})"


class _Untaken:
    tenure: Tenure | None = None


class _Retired(Guard):
    """State that was replaced is nobody's: whoever still uses it has kept a reference for too long."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(guard.device, guard._finder, _Untaken(), ())
        self.labels = guard.labels
        self._at, self._by = _frames(sys._getframe(2)), threading.current_thread().name

    def state(self, access: int) -> None:
        replaced = Witness("it was replaced at", _stack(self._at), self._by)
        self._found(access, f"in state that {self._whose()} has replaced", [replaced])


# -- the checked variant's class attributes ----------------------------------------------------------------------------


def watched(cls: type[Device], finder: Callable[[Device], Finder]) -> dict[str, Any]:
    """Attributes of a subclass of `cls` that has a guard for each device. `finder` is asked once for each."""
    states = {
        name: value
        for owner in reversed(cls.__mro__)
        for name, value in vars(owner).items()
        if isinstance(value, type) and issubclass(value, DeviceState)
    }
    exempt = {name for owner in cls.__mro__ for name in vars(owner).get("lockfree_fields", ())}
    attributes = sorted({"_state", *_set_by_methods(cls)} - exempt)
    names: list[str] = list(attributes)

    def guard_of(device: Device) -> Guard:
        guard: Guard | None = device.__dict__.get(_GUARD)
        if guard is None:
            lock = cast(GuardLock, device._lock)
            guard = device.__dict__[_GUARD] = Guard(device, finder(device), lock, tuple(names))
        return guard

    body: dict[str, Any] = {}
    for name, state in states.items():
        prefix = "" if name == "State" else f"{name}."
        made = _watched_state(state, len(names), exempt)
        names += [prefix + field for field in field_types(state)]
        body[name] = _Maker(made, guard_of)
    for number, name in enumerate(attributes):
        kind = _watched_reference if name == "_state" else _watched_attribute
        body[name] = kind(name, number, guard_of)
    return body


_GUARD: Final = "_race_guard"


class _Maker:
    """`State` of a checked variant. From a device it makes states that the device's guard watches."""

    def __init__(self, state: type[DeviceState], guard_of: Callable[[Device], Guard]) -> None:
        self._state = state
        self._guard_of = guard_of

    def __get__(self, device: Device | None, owner: type) -> Callable[..., DeviceState]:
        return self._state if device is None else partial(self._make, self._guard_of(device))

    def _make(self, guard: Guard, *args: Any, **kwargs: Any) -> DeviceState:
        state = self._state.__new__(self._state)
        state._guard = guard  # type: ignore[attr-defined]
        state.__init__(*args, **kwargs)  # type: ignore[misc]
        return state


def _watched_state(cls: type[DeviceState], first: int, exempt: Container[str]) -> type[DeviceState]:
    """A subclass of a state class whose fields ask the guard; their numbers begin with `first`."""
    body: dict[str, Any] = {"__slots__": ("_guard",), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    body["__dataclass_fields__"] = vars(cls)["__dataclass_fields__"]
    for number, (name, kinds) in enumerate(field_types(cls).items(), first):
        if name not in exempt:
            body[name] = _watched_field(getattr(cls, name), number, next(iter(kinds)))
    return type(cls.__name__, (cls,), body)


def _watched_field(member: Any, number: int, kind: type) -> property:
    get_value, set_value = member.__get__, member.__set__
    read, write = 2 * number, 2 * number + 1

    # Guard.state() by hand: a call less for each access of whoever holds the lock.
    def get(self: Any) -> Any:
        guard = self._guard
        tenure = guard.lock.tenure
        if tenure is None or tenure[0] != get_ident():
            guard.state(read)
        else:
            if guard.seen[read] is not tenure:
                guard.mark(read, tenure, sys._getframe(1))
            guard.point(guard.labels[read])
        return get_value(self)

    def put(self: Any, value: Any) -> None:
        guard = self._guard
        tenure = guard.lock.tenure
        if tenure is None or tenure[0] != get_ident():
            guard.state(write)
        else:
            if guard.seen[write] is not tenure:
                guard.mark(write, tenure, sys._getframe(1))
            guard.point(guard.labels[write])
        set_value(self, value)

    def put_container(self: Any, value: Any) -> None:
        self._guard.state(write)
        contents = _watched_container(kind)(value)
        contents._state, contents._read = self, read
        set_value(self, contents)

    return property(get, put_container if kind in CONTAINERS else put)


@cache
def _watched_container(kind: Any) -> Any:
    """A subclass of a container whose methods ask the guard of the state that it belongs to."""

    def method(name: str, access: int) -> Callable[..., Any]:
        function = getattr(kind, name)

        def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
            self._state._guard.state(self._read + access)
            return function(self, *args, **kwargs)

        return watch

    def unwatched(self: Any, *_: object) -> Any:
        self._state._guard.state(self._read)
        return kind.__getitem__(self, slice(None))

    def reduced(self: Any, protocol: object) -> Any:
        return kind, (unwatched(self),)

    body: dict[str, Any] = {"__slots__": ("_read", "_state"), "__reduce_ex__": reduced, "copy": unwatched}
    for name, value in vars(kind).items():
        if isinstance(value, (MethodDescriptorType, WrapperDescriptorType)) and name not in {*_NO_ACCESS, *body}:
            body[name] = method(name, WRITE if name in CONTAINERS[kind] else READ)
    if kind is bytearray:
        body["__bytes__"] = lambda self: bytes(unwatched(self))
    return type(kind.__name__, (kind,), body)


#: Of the object, not its contents; `__repr__`, so that a debugger may look at what it likes; and buffers, which are not
#: to be had from Python before 3.12.
_NO_ACCESS: Final = {*vars(object), "__alloc__", "__buffer__", "__release_buffer__"} - {
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
}


def _watched_reference(name: str, number: int, guard_of: Callable[[Device], Guard]) -> property:
    """`_state` itself: what it refers to is replaced by a reset, under the lock."""
    read, write = 2 * number, 2 * number + 1

    def get(self: Device) -> Any:
        guard_of(self).state(read)
        return _value(self, name)

    def put(self: Device, value: Any) -> None:
        guard = guard_of(self)
        guard.state(write)
        if getattr(value, "_guard", None) is not guard:
            raise InternalError(f"{self.name}: its state must be made by self.State(), not by {type(value).__name__}()")
        old = self.__dict__.get(name)
        if old is not None and old is not value:
            old._guard = guard.retired()
        self.__dict__[name] = value

    return property(get, put)


def _watched_attribute(name: str, number: int, guard_of: Callable[[Device], Guard]) -> property:
    read, write = 2 * number, 2 * number + 1

    def get(self: Device) -> Any:
        value = _value(self, name)
        guard_of(self).wiring(read, value)
        return value

    def put(self: Device, value: Any) -> None:
        guard_of(self).wiring(write)
        self.__dict__[name] = value

    return property(get, put)


def _value(device: Device, name: str) -> Any:
    try:
        return device.__dict__[name]
    except KeyError:
        raise AttributeError(f"{type(device).__name__!r} object has no attribute {name!r}", name=name) from None


def _set_by_methods(cls: type[Device]) -> Iterator[str]:
    """Private attributes that methods of `cls` set after the constructor, on whatever object."""
    for owner in cls.__mro__[: cls.__mro__.index(Device)]:
        for name, value in vars(owner).items():
            function = value.fget if isinstance(value, property) else value
            function = getattr(function, "__wrapped__", function)
            if name != "__init__" and isinstance(function, FunctionType):
                yield from _set_by(function.__code__)


def _set_by(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR" and instruction.argval.startswith("_"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _set_by(constant)


# -- stacks ------------------------------------------------------------------------------------------------------------


def _frames(frame: FrameType | None) -> Sequence[_Frame]:
    taken: list[_Frame] = []
    while frame and len(taken) < STACK_DEPTH:
        taken.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return taken


def _stack(raw: Sequence[_Frame]) -> Stack:
    return frames([(code, _line(code, at)) for code, at in raw if code.co_filename not in OWN_FILES])


def _line(code: CodeType, at: int) -> int:
    return next((line for start, end, line in code.co_lines() if start <= at < end and line), code.co_firstlineno)
