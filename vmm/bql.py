"""The big lock, as a policy and as a list.

There is one copy of every device. `--locking device` gives each its own lock; `--locking bql` gives all of them this
one, the way of 2010: VCPU threads hold it whenever they are outside guest code, the I/O thread while it runs callbacks,
and everybody queues. `vmm.locks.Locking` carries the choice out.

Under `--locking device` only what `COVERED` lists takes the big lock. A test holds its length: it may only shrink.
`python -m vmm.bql` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

Policy: TypeAlias = Literal["device", "bql"]

POLICIES: Final[Mapping[Policy, str]] = MappingProxyType(
    {
        "device": "each device has its own lock",
        "bql": "all devices, timers, completions and the monitor share one lock; a VCPU gives it up on guest entry",
    }
)

# lock class -> why it cannot have a lock of its own yet
COVERED: Final[Mapping[str, str]] = MappingProxyType({})


def listing() -> str:
    """What takes the big lock under each policy, as text for a terminal."""
    lines = [f"--locking {policy}: {meaning}" for policy, meaning in POLICIES.items()]
    if COVERED:
        width = max(map(len, COVERED))
        lines.append(f"still under the big lock with --locking device: {len(COVERED)}")
        lines += [f"  {lock_class:<{width}}  {reason}" for lock_class, reason in sorted(COVERED.items())]
    else:
        lines.append("still under the big lock with --locking device: nothing")
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
