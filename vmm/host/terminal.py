"""The user's terminal as a character device: raw mode, an escape key, and the terminal always given back."""

from __future__ import annotations

import atexit
import os
import sys
import termios
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from vmm.host.chardev import Home, StreamChardev
from vmm.host.transcript import Transcript

ESCAPE: Final = 0x01
"""Control-A."""

_TYPE_AHEAD: Final = 64 << 10
"""Bytes that are kept for a guest that takes none. More are dropped, as a terminal itself does it."""


@dataclass(frozen=True, slots=True)
class Command:
    """What the escape key and another key do."""

    meaning: str
    run: Callable[[], None]


class EscapeKey:
    """Splits typed bytes into input for the guest and commands. No I/O: `feed` says what was typed."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> list[tuple[bytes, str]]:
        """(input, command key) pairs in order; either may be empty. The escape key twice is that key, once."""
        out: list[tuple[bytes, str]] = []
        plain = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                if byte == ESCAPE:
                    plain.append(ESCAPE)
                else:
                    out.append((bytes(plain), chr(byte)))
                    plain.clear()
            elif byte == ESCAPE:
                self._escaped = True
            else:
                plain.append(byte)
        if plain:
            out.append((bytes(plain), ""))
        return out


class TerminalChardev(StreamChardev):
    """Standard input and output. A terminal is put into raw mode, so that every key but the escape key is the guest's.

    `commands` maps keys to what Control-A and that key do; `b` (break) and `h` (help) are always there. The terminal is
    restored by `close`, and at exit whatever happens. In the background, where touching the terminal would stop the
    process, it is left alone and there is no input.
    """

    def __init__(
        self,
        home: Home,
        commands: Mapping[str, Command],
        transcript: Transcript | None = None,
        *,
        input_fd: int | None = None,
        output_fd: int | None = None,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        if input_fd is None and sys.stdin:
            input_fd = sys.stdin.fileno()
        if output_fd is None and sys.stdout:
            output_fd = sys.stdout.fileno()
        self._saved: list[Any] | None = None
        self._suspended = False
        self._keys: EscapeKey | None = None
        if input_fd is not None and os.isatty(input_fd):
            if os.tcgetpgrp(input_fd) == os.getpgrp():
                self._keys = EscapeKey()
                self._make_raw(input_fd)
            else:
                input_fd = None
        super().__init__("stdio", home, transcript, input_fd=input_fd, output_fd=output_fd, on_gone=on_gone)
        self._commands = {
            **commands,
            "b": Command("send a break", self._break),
            "h": Command("show this help", self._help),
        }

    def close(self, timeout: float = 2.0) -> None:
        super().close(timeout)
        self.restore()

    def restore(self) -> None:
        """Give the terminal back as it was. May be called at any time, from any thread, and more than once."""
        saved, self._saved = self._saved, None
        if saved is not None:
            atexit.unregister(self.restore)
            with suppress(termios.error):  # the terminal itself may be gone
                termios.tcsetattr(self._tty, termios.TCSANOW, saved)  # not DRAIN: output may be stopped for good

    def suspend(self) -> None:
        """The process is about to be stopped: gives the terminal back until `resume`. From the thread of `resume`."""
        self._suspended = self._saved is not None
        self.restore()

    def resume(self) -> None:
        """The process was stopped and goes on, with the terminal as the shell left it: makes it raw again, if this
        process has it and it was."""
        if (self._suspended or self._saved is not None) and os.tcgetpgrp(self._tty) == os.getpgrp():
            self._suspended = False
            with suppress(termios.error):
                self._make_raw(self._tty)

    def _make_raw(self, fd: int) -> None:
        self._tty = fd
        self._saved = termios.tcgetattr(fd)
        atexit.register(self.restore)
        mode = termios.tcgetattr(fd)
        mode[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
            | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )  # fmt: skip
        # Output processing stays on: messages of the monitor itself end in a bare line feed.
        mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, mode)

    def _arrived(self, data: bytes) -> None:
        if self._keys is None:
            super()._arrived(data)
            return
        for typed, key in self._keys.feed(data):
            self._received += len(typed)
            self._input += typed[: max(0, _TYPE_AHEAD - len(self._input))]
            self._offer()
            if key in self._commands:
                self._commands[key].run()
        # Read on even if the guest takes nothing: the escape key must work most of all when it hangs.
        self._want_input()

    def _break(self) -> None:
        if self._front:
            self._front.line_break()

    def _help(self) -> None:
        lines = [f"C-a {key}    {command.meaning}\n" for key, command in sorted(self._commands.items())]
        self.put("".join(["\n", *lines, "C-a C-a  send C-a\n"]).encode())
