"""The big lock, as a policy and as a list.

There is one copy of every device. `--locking device` gives each its own lock; `--locking bql` gives all of them this
one, the way of 2010: VCPU threads hold it whenever they are outside guest code, the I/O thread while it runs callbacks,
the lifecycle while it changes the machine, and everybody queues. `vmm.locks.Locking` carries the choice out.

Under `--locking device` only what `COVERED` lists takes the big lock: it is the only way to it (a test looks for
others). `python -m vmm.bql` prints every way in that this covers, and ends with status 1 when they are more than
`BUDGET`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from vmm.locks import Device

Policy: TypeAlias = Literal["device", "bql"]

POLICIES: Final[Mapping[Policy, str]] = MappingProxyType(
    {
        "device": "each device has its own lock",
        "bql": "all devices, timers, completions and the monitor share one lock; a VCPU gives it up on guest entry",
    }
)

# lock class -> why it cannot have a lock of its own yet
COVERED: Final[Mapping[str, str]] = MappingProxyType({})

BUDGET: Final = 0
"""How many ways in there are under the big lock. It is lowered with each that goes, and never raised."""


class WayIn(NamedTuple):
    """Something of a device class that takes the big lock under `--locking device`."""

    kind: Literal["region", "entry point", "handler"]
    name: str
    lock_class: str
    reason: str


def ways_in(classes: Iterable[type[Device]]) -> Iterator[WayIn]:
    """Those that `COVERED` leaves to `classes`, from their doors.

    A region is answered by entry points; timers, completions and doorbells come in by entry points too, or by handlers,
    which take the lock by hand.
    """
    from vmm.locks import door_of

    for cls in classes:
        reason = COVERED.get(cls.lock_class)
        if reason is None:
            continue
        if span := getattr(cls, "span", 0):
            yield WayIn("region", f"registers, {span:#x} bytes", cls.lock_class, reason)
        for name in sorted(name for name in dir(cls) if not name.startswith("__")):
            value = getattr(cls, name)
            door = door_of(value)
            if door is not None and door.lockfree is None:
                yield WayIn("entry point", name, cls.lock_class, reason)
            elif "_lock" in getattr(getattr(value, "__code__", None), "co_names", ()):
                yield WayIn("handler", name, cls.lock_class, reason)


def device_classes() -> list[type[Device]]:
    """All of this package, those that only others are made from too."""
    from vmm.locks import Device

    for package in ("vmm.devices", "vmm.machine"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)

    def below(cls: Any) -> Iterator[type[Device]]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    found = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in below(Device) if cls.__module__.startswith("vmm.")}
    return [found[name] for name in sorted(found)]


def listing(classes: Iterable[type[Device]]) -> str:
    """What takes the big lock under each policy, as text for a terminal."""
    found = list(ways_in(classes))
    lines = [f"--locking {policy}: {meaning}" for policy, meaning in POLICIES.items()]
    lines.append(f"under the big lock with --locking device: {len(found) or 'nothing'}, the budget is {BUDGET}")
    for lock_class in dict.fromkeys(way.lock_class for way in found):
        lines.append(f"  {lock_class}: {COVERED[lock_class]}")
        lines += [f"    {way.kind:<11}  {way.name}" for way in found if way.lock_class == lock_class]
    return "\n".join(lines)


def main() -> int:
    classes = device_classes()
    print(listing(classes))
    return int(len(list(ways_in(classes))) > BUDGET)


if __name__ == "__main__":
    sys.exit(main())
