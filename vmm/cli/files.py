"""Files that a run leaves behind: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm.errors import ConfigError, HostError


class WholeFile:
    """A file that is written at the end, but may not be forgotten until then: the `with` block begins by making sure
    that it can be written, and takes its place when `write` was called. What is not a regular file is written to.

    Raises ConfigError at the beginning, HostError at the end.
    """

    def __init__(self, option: str, file: Path) -> None:
        self._option = option
        self._file = file
        self._beside = ""  # what will take the file's place; empty for what is no regular file

    def __enter__(self) -> Self:
        try:
            if self._file.exists() and not self._file.is_file():
                self._file.open("wb").close()
            else:
                handle, self._beside = tempfile.mkstemp(dir=self._file.parent, prefix=f".{self._file.name}.")
                os.close(handle)
        except OSError as error:
            raise ConfigError(f"{self._named(error)}: give a file that can be written") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._beside:
            os.unlink(self._beside)

    def write(self, data: bytes) -> None:
        try:
            if self._beside:
                Path(self._beside).write_bytes(data)
                os.chmod(self._beside, 0o644)
                os.replace(self._beside, self._file)
                self._beside = ""
            else:
                self._file.write_bytes(data)
        except OSError as error:
            raise HostError(f"{self._named(error)}: it was not written") from None

    def _named(self, error: OSError) -> str:
        return f"{self._option} {self._file}: {error.strerror}"
