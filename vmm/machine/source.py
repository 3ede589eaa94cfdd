"""Boot files as sources of bytes: opened and checked once, copied to guest memory as often as the machine resets.

They stay open, so that a file that is replaced or removed while the machine runs does not change what a reset boots.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmm.errors import ConfigError

_READ = 1 << 20
_UNPACK = 4 << 20

AGAIN = "fetch or build it again"
"""What to do about a damaged file."""


class Source(Protocol):
    """Bytes that can be put in memory any number of times."""

    def fill(self, into: memoryview) -> int:
        """Writes at the start of `into` and returns how many bytes; ConfigError if the file is not what it was."""
        ...


@dataclass(frozen=True)
class BootFile:
    """An open regular file and how to speak of it: every complaint begins with its option and path."""

    option: str
    path: Path
    fd: int
    size: int

    @classmethod
    def open(cls, option: str, path: Path, stack: contextlib.ExitStack) -> BootFile:
        """Opens a file until `stack` closes. Raises ConfigError if it is missing, unreadable, empty or no file."""
        try:
            # Without O_NONBLOCK a named pipe that nobody writes to would be waited for.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ConfigError(f"{option} {path}: there is no such file: check the path") from None
        except PermissionError:
            raise ConfigError(f"{option} {path}: you may not read it: check its permissions") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{option} {path}: cannot be opened ({error}): check the path") from None
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{option} {path}: is not a regular file: give the path of one")
        if status.st_size == 0:
            raise ConfigError(f"{option} {path}: is empty: {AGAIN}")
        return cls(option, path, fd, status.st_size)

    def error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.option} {self.path}: {problem}")

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes, fewer at the end of the file."""
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise self._unreadable(error) from None

    def header(self, layout: struct.Struct, offset: int, what: str) -> tuple[int, ...]:
        """The fields of a structure in the file; ConfigError if the file ends before it does."""
        if offset + layout.size > self.size:
            raise self.error(f"is cut short in its {what}: {AGAIN}")
        return layout.unpack(self.read(offset, layout.size))

    def readinto(self, window: memoryview, offset: int) -> int:
        try:
            return os.preadv(self.fd, [window], offset)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> ConfigError:
        return self.error(f"cannot be read ({error.strerror}): check the disk it is on")


@dataclass(frozen=True)
class Slice:
    """`length` bytes of a file from `offset`."""

    file: BootFile
    offset: int
    length: int

    def fill(self, into: memoryview) -> int:
        done = 0
        while done < self.length:
            count = self.file.readinto(into[done : self.length], self.offset + done)
            if count == 0:
                raise self.file.error("became shorter while it was in use: leave it alone while the machine runs")
            done += count
        return done


@dataclass(frozen=True)
class Unzipped:
    """What a gzip file holds."""

    file: BootFile

    def fill(self, into: memoryview) -> int:
        done = 0
        for chunk in _Inflate(self.file):
            if done + len(chunk) > len(into):
                raise self.file.error(f"unpacks to more than its header says: it is damaged, {AGAIN}")
            into[done : done + len(chunk)] = chunk
            done += len(chunk)
        return done

    def first(self, count: int) -> bytes:
        """The first `count` bytes, or fewer when there are no more."""
        head = bytearray()
        for chunk in _Inflate(self.file):
            head += chunk
            if len(head) >= count:
                break
        return bytes(head[:count])


@dataclass(frozen=True)
class Bytes:
    data: bytes

    def fill(self, into: memoryview) -> int:
        into[: len(self.data)] = self.data
        return len(self.data)


class _Inflate:
    """The unpacked contents of a gzip file, a piece at a time; damage of any kind is a ConfigError."""

    def __init__(self, file: BootFile) -> None:
        self._file = file
        self._offset = 0
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def __iter__(self) -> _Inflate:
        return self

    def __next__(self) -> bytes:
        while not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail
            if not packed:
                packed = self._file.read(self._offset, _READ)
                self._offset += len(packed)
            if not packed:
                raise self._file.error(f"is cut short: its compressed data has no end: {AGAIN}")
            try:
                chunk = self._unpacker.decompress(packed, _UNPACK)
            except zlib.error as error:
                raise self._file.error(f"is damaged ({error}): {AGAIN}") from None
            if chunk:
                return chunk
        raise StopIteration
