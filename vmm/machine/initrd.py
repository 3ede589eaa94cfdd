"""Is an initial RAM disk whole? A kernel given half an archive boots for seconds and then dies of something else.

An initramfs is a run of members, each a cpio archive ("newc" or "crc" format) or such archives compressed, with zero
bytes between (Linux Documentation/driver-api/early-userspace/buffer-format.rst). Plain filesystem images are accepted
by their magic number; compressed kinds that the standard library cannot read are too.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol


class NotAnInitrd(ValueError):
    """The bytes are not a whole initial RAM disk; the message says in a few words what is wrong with them."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes | memoryview, /) -> bytes: ...


_CHUNK = 1 << 16
_CPIO = (b"070701", b"070702")
_CPIO_HEADER = 110
_COMPRESSED: tuple[tuple[bytes, Callable[[], _Decompressor]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    (b"\x5d\x00\x00", lzma.LZMADecompressor),
    (b"BZh", bz2.BZ2Decompressor),
)
_TAKEN_BY_MAGIC = (
    (0, b"\x28\xb5\x2f\xfd"),  # zstd
    (0, b"\x02\x21\x4c\x18"),  # lz4, legacy frames
    (0, b"\x04\x22\x4d\x18"),  # lz4
    (0, b"\x89LZO\x00\r\n\x1a\n"),
    (0, b"hsqs"),  # squashfs
    (0, b"-rom1fs-"),
    (0, b"\x45\x3d\xcd\x28"),  # cramfs
    (0x438, b"\x53\xef"),  # ext2, ext3, ext4
)


def check_initrd(data: memoryview) -> None:
    """Raises NotAnInitrd unless `data` is a run of whole members, at least one."""
    at = _member_end(data, 0)
    while at < len(data):
        at = at + 1 if data[at] == 0 else _member_end(data, at)


def _member_end(data: memoryview, at: int) -> int:
    """Where the member that begins at `at` ends."""
    head = bytes(data[at : at + 16])
    if head.startswith(_CPIO):
        return _cpio_end(data, at)
    for magic, decompressor in _COMPRESSED:
        if head.startswith(magic):
            return _compressed_end(data, at, decompressor())
    for offset, magic in _TAKEN_BY_MAGIC:
        if data[at + offset : at + offset + len(magic)] == magic:
            return len(data)
    if at == 0:
        raise NotAnInitrd("is neither a cpio archive, nor a compressed one, nor a filesystem image")
    raise NotAnInitrd(f"has bytes of no known kind at offset {at}")


def _cpio_end(data: memoryview, start: int) -> int:
    at = start
    while True:
        header = bytes(data[at : at + _CPIO_HEADER])
        if len(header) < _CPIO_HEADER:
            raise NotAnInitrd("is cut short: the cpio archive has no trailer")
        try:
            if not header.startswith(_CPIO):
                raise ValueError
            file_size, name_size = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError:
            raise NotAnInitrd(f"is damaged: no cpio header at offset {at}") from None
        name = bytes(data[at + _CPIO_HEADER : at + _CPIO_HEADER + name_size])
        # Offsets are aligned to the archive, and members begin on 4-byte boundaries of the file.
        body = _align4(at + _CPIO_HEADER + name_size)
        if name == b"TRAILER!!!\0":
            return min(body, len(data))
        at = _align4(body + file_size)


def _compressed_end(data: memoryview, start: int, decompressor: _Decompressor) -> int:
    at = start
    try:
        while at < len(data) and not decompressor.eof:
            decompressor.decompress(data[at : at + _CHUNK])
            at = min(at + _CHUNK, len(data))
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise NotAnInitrd(f"is damaged ({error})") from None
    if not decompressor.eof:
        raise NotAnInitrd("is cut short: its compressed data has no end")
    return at - len(decompressor.unused_data)


def _align4(offset: int) -> int:
    return -(-offset // 4) * 4
