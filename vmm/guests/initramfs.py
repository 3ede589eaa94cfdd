"""The archive that Linux unpacks as its first file system (Linux: early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from collections.abc import Iterator

TRAILER = "TRAILER!!!"


class Initramfs:
    """Entries of an archive in the format "newc", all owned by root and dated 1970, so that the same input gives the
    same bytes. Missing parent directories are added by themselves. Paths are relative, without a leading slash.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, int, int]] = {}  # path: mode, content, device major, minor

    def directory(self, path: str, permissions: int = 0o755) -> None:
        self._add(path, stat.S_IFDIR | permissions)

    def file(self, path: str, content: bytes, permissions: int = 0o644) -> None:
        self._add(path, stat.S_IFREG | permissions, content)

    def link(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, permissions: int = 0o600) -> None:
        self._add(path, stat.S_IFCHR | permissions, b"", major, minor)

    def _add(self, path: str, mode: int, content: bytes = b"", major: int = 0, minor: int = 0) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[path] = (mode, content, major, minor)

    def pack(self) -> bytes:
        """The archive, not compressed: unpacking it costs the guest a copy, where gzip costs some 30 times that."""
        return b"".join(self._packed())

    def _packed(self) -> Iterator[bytes]:
        for inode, (path, entry) in enumerate(self._entries.items(), start=1):
            yield _packed_entry(inode, path, *entry)
        yield _packed_entry(0, TRAILER, 0, b"", 0, 0)


def _packed_entry(inode: int, path: str, mode: int, content: bytes, major: int, minor: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    user = group = time = device_major = device_minor = checksum = 0
    fields = (
        *(inode, mode, user, group, links, time, len(content)),
        *(device_major, device_minor, major, minor, len(name), checksum),
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
