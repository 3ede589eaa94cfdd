"""The address space of devices: which target answers at which guest physical address.

The map is an immutable `Snapshot`, replaced whole. Dispatch reads one reference and takes no lock, so a device may move
its own window inside its own access: the access in flight keeps the snapshot it began with.

Losers: a reader-writer lock around dispatch deadlocks as soon as a BAR is moved from inside an access, and costs every
access; a mutable tree with per-node locks lets an access see half a change.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from vmm.errors import GuestError, InternalError

_SPACE: Final = 1 << 64
_RESTING: Final = 1 << 64  # newer than any generation: holds nothing up


class BusFault(GuestError):
    """Nothing answers at this address, or not to this access: the guest takes an access fault."""


class BusOverlap(GuestError):
    """Two windows would answer at one address. A guest can ask for that by programming a BAR."""


class Target(Protocol):
    """What a window leads to. `offset` is relative to the window; `size` is 1, 2, 4 or 8 bytes; values are unsigned."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class Mapping:
    """A window: [base, end) leads to `target`. `read` and `write` are the target's bound methods, taken once."""

    __slots__ = ("base", "end", "name", "read", "target", "write")

    def __init__(self, base: int, size: int, target: Target, name: str) -> None:
        if size <= 0 or base < 0 or base + size > _SPACE:
            raise BusOverlap(f"{name}: {size:#x} bytes at {base:#x} do not fit the address space")
        self.base: Final = base
        self.end: Final = base + size
        self.target: Final = target
        self.name: Final = name
        self.read: Final = target.read
        self.write: Final = target.write

    def __repr__(self) -> str:
        return f"<{self.name} {self.base:#x}..{self.end:#x}>"


@dataclass(frozen=True, slots=True)
class BusDoorbell:
    """A store of `size` bytes to `gpa` (of `value`, or of anything if None) adds 1 to eventfd `fd`, without an exit."""

    gpa: int
    size: int
    value: int | None
    fd: int


class Snapshot:
    """The map at one moment. `mappings` is sorted by address; nothing in it ever changes."""

    __slots__ = ("_bases", "doorbells", "generation", "mappings")

    def __init__(self, generation: int, mappings: Iterable[Mapping], doorbells: Iterable[BusDoorbell]) -> None:
        self.generation: Final = generation
        self.mappings: Final = tuple(sorted(mappings, key=lambda m: m.base))
        self.doorbells: Final = tuple(doorbells)
        self._bases: Final = tuple(m.base for m in self.mappings)
        for below, above in zip(self.mappings, self.mappings[1:], strict=False):
            if below.end > above.base:
                raise BusOverlap(f"{above} overlaps {below}")

    def find(self, address: int) -> Mapping | None:
        """The window that holds `address`."""
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        mapping = self.mappings[at]
        return mapping if address < mapping.end else None

    def __str__(self) -> str:
        return "\n".join(f"{m.base:016x}-{m.end - 1:016x} {m.name}" for m in self.mappings)


@dataclass(frozen=True, slots=True)
class BusStatistics:
    """A bus at one moment."""

    generation: int
    windows: int
    doorbells: int
    behind: tuple[str, ...]
    """The readers that have not let go of older maps."""
    retired: int
    """What waits for them to be given back."""


class Reader:
    """One thread that keeps parts of snapshots (a VCPU's cache of windows, the doorbells known to native code)."""

    __slots__ = ("_bus", "generation", "kick", "name", "stale")

    def __init__(self, bus: Bus, name: str, kick: Callable[[], None]) -> None:
        self._bus = bus
        self.name: Final = name
        self.kick: Final = kick
        self.generation = _RESTING
        # Whether the map is another one than at the last `refresh`. Each reader is told, and none looks at the bus's
        # `snapshot` each access: on free-threaded builds all would count references to it, on one cache line.
        self.stale = True

    def refresh(self) -> Snapshot:
        """The current snapshot. By this call the thread says that it has let go of every older one.

        Not from inside an access: the access still runs in the older map.
        """
        return self._bus._refreshed(self)

    def rest(self) -> None:
        """This thread keeps nothing of any snapshot until it calls `refresh` again. For one that may not run for long:
        it could not answer a kick, and what was removed would wait for it."""
        self._bus._rests(self)

    def leave(self) -> None:
        """This thread keeps nothing of any snapshot any more."""
        self._bus._left(self)


class Bus:
    """Windows and doorbells of one machine. `snapshot` is the map now; `generation` grows with each change of it."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(0, (), ())
        # Rank LEAF; guards the replacement of `snapshot`, `_readers` and `_retired`. Nothing is called under it.
        self._writer = threading.Lock()
        self._readers: list[Reader] = []
        self._retired: list[tuple[int, Callable[[], None]]] = []

    def statistics(self) -> BusStatistics:
        """Takes no lock: whoever reports a hang asks too."""
        now = self.snapshot
        behind = tuple(reader.name for reader in self._readers.copy() if reader.generation < now.generation)
        return BusStatistics(now.generation, len(now.mappings), len(now.doorbells), behind, len(self._retired))

    def __repr__(self) -> str:
        now = self.statistics()
        waits = f", {now.retired} retired until {', '.join(now.behind)} refresh" if now.retired else ""
        return f"<Bus generation {now.generation}, {now.windows} windows, {now.doorbells} doorbells{waits}>"

    @property
    def generation(self) -> int:
        return self.snapshot.generation

    # -- changing the map ---------------------------------------------------------------------------------------------

    def map(self, base: int, size: int, target: Target, name: str) -> Mapping:
        """Let `target` answer at [base, base + size). Raises BusOverlap when something else does, or it cannot fit."""
        mapping = Mapping(base, size, target, name)
        with self._writer:
            self._publish(mappings=(*self.snapshot.mappings, mapping))
        return mapping

    def unmap(self, base: int) -> Mapping:
        """Take away the window that starts at `base`: no new access finds it. What it needs may only be given back
        once no access is left in it: see `retire`."""
        with self._writer:
            mapping = self._starting_at(base)
            self._publish(mappings=(m for m in self.snapshot.mappings if m is not mapping))
        return mapping

    def move(self, base: int, new_base: int) -> Mapping:
        """Move the window at `base`, in one step. Raises BusOverlap, and leaves it where it was, when it cannot fit."""
        with self._writer:
            old = self._starting_at(base)
            new = Mapping(new_base, old.end - old.base, old.target, old.name)
            self._publish(mappings=(new if m is old else m for m in self.snapshot.mappings))
        return new

    def replace(
        self, base: int, target: Target, name: str, doorbells: Iterable[tuple[int, int, int | None, int]] = ()
    ) -> Mapping:
        """Have `target` answer in the place of the window that starts at `base`, in one step: every access finds the
        one or the other. The old one's doorbells go with it. `doorbells` of the new one are (offset, size, value, fd),
        as for `doorbell`. What the old one needs may only be given back through `retire`."""
        with self._writer:
            old = self._starting_at(base)
            new = Mapping(base, old.end - base, target, name)
            bells = [bell for bell in self.snapshot.doorbells if not base <= bell.gpa < old.end]
            bells += [BusDoorbell(base + offset, size, value, fd) for offset, size, value, fd in doorbells]
            self._publish((new if m is old else m for m in self.snapshot.mappings), bells)
        self._kick(self.generation)
        return new

    def doorbell(self, gpa: int, size: int, value: int | None, fd: int) -> BusDoorbell:
        """Have stores of `size` bytes to `gpa` ring eventfd `fd`. A VCPU that has not seen it yet takes an exit, and
        the window's `write` must do the same work."""
        bell = BusDoorbell(gpa, size, value, fd)
        with self._writer:
            self._publish(doorbells=(*self.snapshot.doorbells, bell))
        self._kick(self.generation)
        return bell

    def remove_doorbell(self, bell: BusDoorbell) -> None:
        """Take a doorbell away. A VCPU may ring it until it has refreshed: close its eventfd through `retire`."""
        with self._writer:
            self._publish(doorbells=(b for b in self.snapshot.doorbells if b is not bell))

    def _publish(
        self, mappings: Iterable[Mapping] | None = None, doorbells: Iterable[BusDoorbell] | None = None
    ) -> None:
        old = self.snapshot
        self.snapshot = Snapshot(
            old.generation + 1,
            old.mappings if mappings is None else mappings,
            old.doorbells if doorbells is None else doorbells,
        )
        for reader in self._readers:
            reader.stale = True

    def _starting_at(self, base: int) -> Mapping:
        mapping = self.snapshot.find(base)
        if mapping is None or mapping.base != base:
            raise InternalError(f"no window starts at {base:#x}")
        return mapping

    # -- giving back what a removed window needed ---------------------------------------------------------------------

    def reader(self, name: str, kick: Callable[[], None]) -> Reader:
        """Register a thread that keeps parts of snapshots, and rests so far. `kick` makes it call `refresh` soon, and
        may be called by any thread."""
        reader = Reader(self, name, kick)
        with self._writer:
            self._readers.append(reader)
        return reader

    def retire(self, reclaim: Callable[[], None]) -> None:
        """Call `reclaim` once every reader has let go of all earlier snapshots: at once, or on the last reader's
        thread, so it should only post to where the work belongs. Nobody waits."""
        with self._writer:
            generation = self.generation
            self._retired.append((generation, reclaim))
            ready = self._reclaimable()
        for call in ready:
            call()
        self._kick(generation)

    def _refreshed(self, reader: Reader) -> Snapshot:
        with self._writer:
            snapshot = self.snapshot
            reader.generation = snapshot.generation
            reader.stale = False
            ready = self._reclaimable()
        for call in ready:
            call()
        return snapshot

    def _rests(self, reader: Reader) -> None:
        with self._writer:
            reader.generation = _RESTING
            ready = self._reclaimable()
        for call in ready:
            call()

    def _left(self, reader: Reader) -> None:
        with self._writer:
            self._readers.remove(reader)
            ready = self._reclaimable()
        for call in ready:
            call()

    def _reclaimable(self) -> list[Callable[[], None]]:
        oldest = min((r.generation for r in self._readers), default=self.generation)
        ready = [call for generation, call in self._retired if generation <= oldest]
        self._retired = [(generation, call) for generation, call in self._retired if generation > oldest]
        return ready

    def _kick(self, generation: int) -> None:
        with self._writer:
            behind = [r for r in self._readers if r.generation < generation]
        for reader in behind:
            reader.kick()

    # -- access by anyone but a VCPU ----------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> int:
        """Read as a guest would. Raises BusFault where nothing answers."""
        visit = self.reader("access", _leaves_soon)
        try:
            mapping = _holding(visit.refresh(), address, size)
            return mapping.read(address - mapping.base, size)
        finally:
            visit.leave()

    def write(self, address: int, size: int, value: int) -> None:
        """Write as a guest would, without ringing doorbells. Raises BusFault where nothing answers."""
        visit = self.reader("access", _leaves_soon)
        try:
            mapping = _holding(visit.refresh(), address, size)
            mapping.write(address - mapping.base, size, value)
        finally:
            visit.leave()


def _holding(snapshot: Snapshot, address: int, size: int) -> Mapping:
    mapping = snapshot.find(address)
    if mapping is None or address + size > mapping.end:
        raise BusFault(f"nothing answers {size} bytes at {address:#x}")
    return mapping


def _leaves_soon() -> None:
    """A single access refreshes by ending."""
