"""The on-disk cache of native images, in the user's cache directory.

An entry is named by everything that its code depends on: the source of its generators, the compiler's version, and
the host CPU with its features. It is checksummed, and it is rebuilt, never trusted, when anything is off. A directory
that is not the user's own with mode 0700 is not used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from vmm.codegen.image import Image

_MAGIC = b"vmm-image-1\n"


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/vmm`, by default `~/.cache/vmm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmm"


def private_directory(path: Path) -> Path | None:
    """`path`, made with mode 0700 if missing; None when it cannot be had, or is not this user's alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        return None
    return path


@cache
def host_cpu() -> str:
    """What generated code may assume of this host: its CPU model and feature flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    picked = [line for line in lines if line.startswith(("model name", "flags"))][:2]
    return "\n".join(sorted(set(picked)))


@cache
def _compiler() -> str:
    try:
        return metadata.version("llvmlite")
    except metadata.PackageNotFoundError:
        return "unlisted"


def source_key(sources: Iterable[Path], *extra: str) -> str:
    """Hash of the generators' source files, the compiler and the host."""
    h = hashlib.sha256()
    for path in sorted(sources):
        h.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for text in (_compiler(), host_cpu(), *extra):
        h.update(text.encode() + b"\0")
    return h.hexdigest()


def cached_image(name: str, key: str, build: Callable[[], Image], root: Path | None = None) -> Image:
    """The image `name` for `key`: from the cache if it is there and sound, else built and stored."""
    above = private_directory(root or cache_root())
    directory = private_directory(above / "code") if above else None
    path = directory / f"{name}-{key[:24]}.img" if directory else None
    if path is not None and (image := _read(path, key)) is not None:
        return image
    image = build()
    if path is not None:
        _write(path, key, image)
    return image


def _read(path: Path, key: str) -> Image | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    head = _MAGIC + key.encode() + b"\n"
    body = data[len(head) + 32 :]
    if not data.startswith(head) or hashlib.sha256(body).digest() != data[len(head) : len(head) + 32]:
        return None
    return Image.unpack(body)


def _write(path: Path, key: str, image: Image) -> None:
    body = image.pack()
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
            f.write(_MAGIC + key.encode() + b"\n" + hashlib.sha256(body).digest() + body)
        os.replace(f.name, path)
    except OSError:  # a full or read-only disk costs a rebuild next time, nothing else
        Path(f.name).unlink(missing_ok=True)
