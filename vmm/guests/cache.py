"""How a directory of the cache is filled: one writer at a time, nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmm.errors import HostError
from vmm.guests.progress import Progress

#: Directories of unfinished work start with this, in the directory that the finished work goes to.
UNFINISHED = ".unfinished-"


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
