"""The exit statuses of `vmm-run`: one table for the program, its help and its documentation."""

from __future__ import annotations

import signal
from enum import IntEnum

from vmm.machine.lifecycle import Outcome, Reason


class Status(IntEnum):
    """Statuses of our own lie above the guest's codes and follow timeout(1) where it has one."""

    OK = 0
    BAD_INPUT = 2
    LOCK_REPORTS = 3
    LARGEST_GUEST_CODE = 120
    NOT_EXPECTED = 123
    TIMEOUT = 124
    FAILED = 125
    SIGNAL = 128


MEANINGS = (
    ("0", "the guest powered off or was left by the escape key, or --expect saw its text"),
    ("1 to 120", "the guest ended with this code (test finisher); a larger one becomes 120 and is told in full"),
    ("2", "bad input: an option, a file or the host, told in one line before anything runs"),
    ("3", "--check-locks had something to report and the run ended well otherwise; any other status goes before it"),
    ("123", "--expect: the run ended without the text"),
    ("124", "--timeout: the time was over"),
    ("125", "the monitor failed; hart, registers and stack are on standard error"),
    ("129, 130, 143", "stopped by SIGHUP, SIGINT, SIGTERM"),
    ("141", "the reader of its output has gone"),
)


def of_outcome(outcome: Outcome) -> int:
    """The status of a run that ended by itself."""
    match outcome.reason:
        case Reason.GUEST_EXIT:
            return min(outcome.code, Status.LARGEST_GUEST_CODE)
        case Reason.CONSOLE_GONE:
            return of_signal(signal.SIGPIPE)
        case Reason.FAILED:
            return Status.FAILED
        case Reason.POWER_OFF | Reason.GUEST_RESET | Reason.ASKED:
            return Status.OK


def of_signal(number: signal.Signals) -> int:
    return Status.SIGNAL + number
