"""What can go wrong, by whose fault it is.

The command line turns a `ConfigError` or a `HostError` into one line and an exit status; anything else that escapes is
a defect of this program and shows its traceback.
"""

from __future__ import annotations


class VmmError(Exception):
    """Everything this package raises on purpose."""

    exit_status = 1


class ConfigError(VmmError):
    """The user asked for something that cannot be.

    The message is one line that names the option or file and says what to do about it.
    """

    exit_status = 2


class HostError(VmmError):
    """The host would not do what was asked of it: no space, no permission, no network.

    The message is one line, as a `ConfigError`'s is.
    """

    exit_status = 2


class DeadlineError(HostError):
    """Something did not come to rest in time. The message names it; a report of the machine says who waits for whom."""


class GuestError(VmmError):
    """The guest did something that its machine does not allow."""


class SnapshotError(VmmError):
    """A saved state is damaged, or is not of this machine."""

    exit_status = 2


class InternalError(VmmError):
    """This program is wrong."""


class LockOrderError(InternalError):
    """Locks were taken, or left untaken, against the rules of `vmm.locks`; the message holds the stacks."""
