"""The user's cache: private directories, one writer at a time, nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.errors import ConfigError, HostError
from vmm.guests.progress import Progress

#: Directories of unfinished work start with this, in the directory that the finished work goes to.
UNFINISHED = ".unfinished-"


def default_directory() -> Path:
    """`$XDG_CACHE_HOME/vmm`, or `~/.cache/vmm` (XDG base directory specification: a relative value is ignored)."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        return Path(configured) / "vmm"
    try:
        return Path.home() / ".cache" / "vmm"
    except RuntimeError:
        raise ConfigError("cache: the user has no home directory; set XDG_CACHE_HOME to a directory of yours") from None


def private_directory(path: Path) -> Path:
    """Make `path` when missing, and refuse it with ConfigError unless it is the user's own with mode 0700.

    Code and kernels that the machine runs are read back from here, so nobody else may put them here.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"cache: cannot make {path}: {error.strerror}; set XDG_CACHE_HOME to a directory that you can write to"
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"cache: {path} is not a directory; remove it, or set XDG_CACHE_HOME to another place")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"cache: {path} belongs to user {found.st_uid}; set XDG_CACHE_HOME to a directory of yours")
    if stat.S_IMODE(found.st_mode) != 0o700:
        raise ConfigError(
            f"cache: {path} has mode {stat.S_IMODE(found.st_mode):04o}, not 0700; "
            f"run 'chmod 700 {path}' if what it holds is yours"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"cache: {path} is not writable; set XDG_CACHE_HOME to a directory that you can write to")
    return path


@contextmanager
def exclusive(directory: Path, progress: Progress) -> Iterator[None]:
    """Hold `directory` for this process, waiting for another that does, and clear what a killed one left there.

    A disk that runs full meanwhile is a HostError.
    """
    try:
        with open(directory / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("Waiting for another run that fills the cache", None)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in (*directory.glob(f"{UNFINISHED}*"), *directory.glob(f"*/{UNFINISHED}*")):
                shutil.rmtree(left, ignore_errors=True)
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError(f"cache: no space left in {directory}; free some, or set XDG_CACHE_HOME") from None
        raise


@contextmanager
def unfinished(directory: Path) -> Iterator[Path]:
    """A scratch directory beside its final place, gone at the end; what is worth keeping is renamed out of it."""
    scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=directory))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_space(directory: Path, needed: int) -> None:
    """HostError unless `needed` bytes are free in `directory`'s filesystem."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise HostError(
            f"cache: {directory} has {free >> 20} MB of free space and {needed >> 20} MB are needed; "
            "free some, or set XDG_CACHE_HOME"
        )
