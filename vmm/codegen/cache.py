"""The on-disk cache of native images, in the user's cache directory.

An entry is named by everything that its code depends on: the source of its generators, the compiler's version, and
the host CPU with its features. It is checksummed, and it is rebuilt, never trusted, when anything is off. Without a
directory that is the user's alone nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vmm.cachedir import default_directory, private_directory
from vmm.codegen.image import Image
from vmm.errors import ConfigError

_MAGIC = b"vmm-image-1\n"


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
    """llvmlite's version, by the name of its metadata's folder: importing `importlib.metadata` would cost 15 ms."""
    spec = find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return "none"
    return " ".join(sorted(found.name for found in Path(spec.origin).parents[1].glob("llvmlite-*.dist-info")))


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
    try:
        directory = private_directory(private_directory(root or default_directory()) / "code")
    except ConfigError:
        return build()
    path = directory / f"{name}-{key[:24]}.img"
    image = _read(path, key)
    if image is None:
        image = build()
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
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        scratch.write_bytes(_MAGIC + key.encode() + b"\n" + hashlib.sha256(body).digest() + body)
        scratch.replace(path)
    except OSError:  # a full or read-only disk costs a rebuild next time, nothing else
        with contextlib.suppress(OSError):
            scratch.unlink()
