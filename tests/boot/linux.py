"""Debian's guest on a machine, and its shell in a test's hand."""

from __future__ import annotations

import re
from typing import Any

from vmm.guests.debian import DebianGuest
from vmm.machine.config import Config
from vmm.machine.lifecycle import Outcome, Reason
from vmm.machine.machine import Machine

MEM = 512 << 20
INIT_S = 200.0
"""Seconds from start to init. Some 3 on a machine of one's own; this is for one with much else to do."""
REPLY_S = 100.0
POWER_OFF = Outcome(Reason.POWER_OFF)

_PROMPT = rb"~ # "
_BEGIN, _END = rb"@begin@\r?\n", rb"@end (\d+)@"


def report(guest: DebianGuest, **more: Any) -> Config:
    """A guest that prints its own report and powers off."""
    return _config(guest, guest.report_append, more)


def script(guest: DebianGuest, text: str, **more: Any) -> Config:
    """A guest that runs a script and ends with its exit code."""
    return _config(guest, guest.run_append(text), more)


def shell(guest: DebianGuest, **more: Any) -> Config:
    """A guest for `Shell`."""
    return _config(guest, guest.default_append, more)


def _config(guest: DebianGuest, append: str, more: dict[str, Any]) -> Config:
    return Config(**{"kernel": guest.kernel, "initrd": guest.initrd, "append": append, "mem": MEM, **more})


def booted(machine: Machine, harts: int) -> None:
    """Waits until a guest made by `report` has done all that it does."""
    machine.serial.expect("vmm: init reached", INIT_S)
    machine.serial.expect(rf"cpus: +{harts} x rv64imafdc_", REPLY_S)
    machine.serial.expect("vmm: end of report", REPLY_S)
    assert machine.wait(REPLY_S) == POWER_OFF


class Shell:
    """The shell of a guest made by `shell`."""

    def __init__(self, machine: Machine) -> None:
        """Waits for the prompt."""
        self._serial = machine.serial
        self._serial.expect(_PROMPT, INIT_S)

    def __call__(self, command: str, timeout: float = REPLY_S) -> str:
        """What the command prints; AssertionError if it fails.

        The terminal echoes what is typed, so the marks around the output are typed in another form.
        """
        self.type(rf"echo '@be''gin@'; {command}; echo '@e''nd' $?@")
        self._serial.expect(_BEGIN, timeout)
        match = self._serial.expect(rb"(?s)(.*?)" + _END, timeout)
        text = match[1].decode().replace("\r\n", "\n").strip()
        assert match[2] == b"0", f"{command!r} ended with {match[2].decode()}:\n{text}"
        self._serial.expect(_PROMPT, timeout)
        return text

    def type(self, line: str) -> None:
        """Starts a command, and does not wait for it."""
        self._serial.send(line + "\n")


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]
