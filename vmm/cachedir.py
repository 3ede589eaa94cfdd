"""The user's cache directory, and directories in it that are nobody else's.

Code and kernels that the machine runs are read back from there, so nobody else may put them there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmm.errors import ConfigError


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
    """Make `path` when missing, and refuse it with ConfigError unless it is the user's own with mode 0700."""
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
