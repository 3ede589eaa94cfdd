"""Kernels, programs and archives for tests, made from nothing, and memory to load them into."""

from __future__ import annotations

import struct
from collections.abc import Sequence

RAM_BASE = 0x8000_0000


class PlainRam:
    """Guest memory without a machine around it, which notes what it was told of."""

    def __init__(self, size: int, base: int = RAM_BASE) -> None:
        self.base = base
        self.size = size
        self.view = memoryview(bytearray(size))
        self.told: list[tuple[int, int]] = []

    def written(self, gpa: int, length: int) -> None:
        self.told.append((gpa, length))

    def bytes_at(self, gpa: int, length: int) -> bytes:
        return bytes(self.view[gpa - self.base : gpa - self.base + length])


WFI_LOOP = struct.pack("<II", 0x1050_0073, 0xFFDF_F06F)


def image(
    *,
    size: int = 0x3000,
    image_size: int = 0x5000,
    text_offset: int = 0x20_0000,
    flags: int = 0,
    magic: int = 0x0543_5352,
) -> bytes:
    """A flat riscv `Image` without an EFI stub."""
    header = struct.pack(
        "<IIQQQIIQQII", 0x0000_0013, 0x0000_0013, text_offset, image_size, flags, 2, 0, 0, 0x5643_5349_52, magic, 0
    )
    return (header + WFI_LOOP).ljust(size, b"\x5a")


def efi_image(*, sections_end: int, size: int) -> bytes:
    """An `Image` whose EFI section table says that the file has `sections_end` bytes."""
    data = bytearray(image(size=max(size, 0x200)))
    data[:2] = b"MZ"
    struct.pack_into("<I", data, 0x3C, 0x40)
    struct.pack_into("<4sHHIIIHH", data, 0x40, b"PE\0\0", 0x5064, 1, 0, 0, 0, 0xF0, 0)
    struct.pack_into("<8sIIII16x", data, 0x40 + 24 + 0xF0, b".text", 0x1000, 0x1000, sections_end - 0x1000, 0x1000)
    return bytes(data[:size])


def elf(
    segments: Sequence[tuple[int, bytes, int]] = ((0x8000_0000, WFI_LOOP, 0x100),),
    *,
    entry: int | None = None,
    machine: int = 243,
    kind: int = 2,
    bits: int = 2,
    order: int = 1,
    virtual_offset: int = 0,
) -> bytes:
    """An ELF program of (physical address, bytes, size in memory) segments."""
    table = struct.calcsize("<16sHHIQQQIHHHHHH")
    offset = table + 56 * len(segments)
    headers, bodies = b"", b""
    for address, data, size in segments:
        headers += struct.pack(
            "<IIQQQQQQ", 1, 7, offset + len(bodies), address + virtual_offset, address, len(data), size, 8
        )
        bodies += data
    start = segments[0][0] + virtual_offset if entry is None else entry
    ident = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    return (
        ident
        + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, start, table, 0, 0, 64, 56, len(segments), 0, 0, 0)
        + headers
        + bodies
    )


def cpio(*members: tuple[str, bytes]) -> bytes:
    """A "newc" archive."""
    archive = b""
    for name, data in (*members, ("TRAILER!!!", b"")):
        raw = name.encode() + b"\0"
        fields = (0, 0o100755, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return archive
