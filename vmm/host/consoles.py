"""Character devices by the names that users give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vmm.errors import ConfigError
from vmm.host.chardev import Chardev, FileChardev, Home, PipeChardev, PtyChardev
from vmm.host.terminal import Command, TerminalChardev
from vmm.host.transcript import Transcript


def open_chardev(
    spec: str,
    home: Home,
    transcript: Transcript | None = None,
    commands: Mapping[str, Command] | None = None,
    on_gone: Callable[[str], None] | None = None,
) -> Chardev:
    """The character device that `spec` names: stdio, pty, null, file:PATH or pipe:PATH.

    `commands` are the terminal's. `on_gone(problem)` is called on the home thread when standard output has lost its
    reader; a pipe's may come back. Raises ConfigError for any other spec, HostError when it cannot be opened.
    """
    kind, _, path = spec.partition(":")
    plain: dict[str, Callable[[], Chardev]] = {
        "stdio": lambda: TerminalChardev(home, commands or {}, transcript, on_gone=on_gone),
        "pty": lambda: PtyChardev(home, transcript),
        "null": lambda: Chardev("null", home, transcript),
    }
    at_path: dict[str, Callable[[Path, Home, Transcript | None], Chardev]] = {"file": FileChardev, "pipe": PipeChardev}
    if not path and spec in plain:
        return plain[spec]()
    if path and kind in at_path:
        return at_path[kind](Path(path), home, transcript)
    raise ConfigError(f"{spec!r} is no character device: use stdio, pty, null, file:PATH or pipe:PATH")
