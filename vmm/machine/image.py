"""The formats a riscv64 kernel or firmware comes in: Linux `Image`, the same gzip'd, and ELF.

Readers check a file whole as far as its format allows and say where its parts belong; placing them is `boot`'s.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vmm.machine.source import AGAIN, BootFile, Slice, Source, Unzipped

PAGE = 4096
GZIP_MAGIC = b"\x1f\x8b"
ELF_MAGIC = b"\x7fELF"

PACKED = (
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x5d\x00\x00", "lzma"),
)
"""Magic numbers of packed files that are not unpacked here."""


# -- Linux Image -----------------------------------------------------------------------------------------------------


class ImageHeader(NamedTuple):
    """Linux Documentation/arch/riscv/boot-image-header.rst."""

    code0: int
    code1: int
    text_offset: int
    image_size: int
    flags: int
    version: int
    res1: int
    res2: int
    magic: int
    magic2: int
    pe_offset: int


IMAGE = struct.Struct("<IIQQQIIQQII")
IMAGE_MAGIC2 = 0x0543_5352


@dataclass(frozen=True)
class Image:
    """A kernel that lies at the start of RAM plus `offset` and uses `size` bytes there, its .bss included."""

    offset: int
    size: int
    source: Source


def read_image(file: BootFile) -> Image:
    """Reads a flat or gzip'd `Image`. Raises ConfigError for anything else, naming what it is where that is known."""
    packed = file.read(0, 2) == GZIP_MAGIC
    head = Unzipped(file).first(IMAGE.size) if packed else file.read(0, IMAGE.size)
    if len(head) < IMAGE.size:
        raise file.error(f"is cut short in its header: {AGAIN}" if packed else _foreign(head, file))
    header = ImageHeader(*IMAGE.unpack(head))
    if header.magic2 != IMAGE_MAGIC2:
        raise file.error(_foreign(head, file))
    if header.flags & 1:
        raise file.error("is a big-endian kernel, and this board is little-endian: give another")
    if header.text_offset % PAGE or header.text_offset >> 40 or header.image_size >> 40:
        raise file.error(f"has a damaged header (text offset or image size): {AGAIN}")
    if packed:
        if not header.image_size:
            raise file.error("has no image size in its header: unpack it and give the Image itself")
        return Image(header.text_offset, header.image_size, Unzipped(file))
    if head.startswith(b"MZ"):
        _check_pe_whole(file, header.pe_offset)
    return Image(header.text_offset, max(header.image_size, file.size), Slice(file, 0, file.size))


_PE_HEADER = struct.Struct("<IHHIIIHH")
_PE_SECTION = struct.Struct("<16xII16x")
_PE_SIGNATURE = int.from_bytes(b"PE\0\0", "little")


def _check_pe_whole(file: BootFile, at: int) -> None:
    """The EFI stub's section table tells how long the file must be; the Image header tells only the size in memory."""
    signature, _machine, count, _time, _symbols, _symbol_count, optional, _flags = file.header(
        _PE_HEADER, at, "EFI header"
    )
    if signature != _PE_SIGNATURE:
        raise file.error(f"has a damaged EFI header: {AGAIN}")
    table = at + _PE_HEADER.size + optional
    needed = 0
    for index in range(count):
        size, offset = file.header(_PE_SECTION, table + index * _PE_SECTION.size, "EFI section table")
        needed = max(needed, offset + size)
    if file.size < needed:
        raise file.error(f"is cut short: {file.size} bytes of {needed}: {AGAIN}")


def _foreign(head: bytes, file: BootFile) -> str:
    """What a file is that is no kernel for this board, and what to do about it."""
    for magic, name in PACKED:
        if head.startswith(magic):
            return f"is packed with {name}, which is not unpacked here: unpack it first"
    if head[4:8] == b"zimg":
        return "is an EFI zboot kernel: unpack it first"
    if head[56:60] == b"ARM\x64":
        what = "is an arm64 kernel"
    elif file.read(0x202, 4) == b"HdrS":
        what = "is an x86 kernel"
    elif head.startswith(b"MZ"):
        what = "is an EFI or Windows program of another machine"
    else:
        what = "is not a kernel of a known format"
    return f"{what}: give a riscv64 Image, gzip'd Image or ELF file"


# -- ELF -------------------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """One PT_LOAD: `file_size` bytes from `offset` in the file, then zeros up to `size`, at `physical`."""

    physical: int
    virtual: int
    offset: int
    file_size: int
    size: int


@dataclass(frozen=True)
class Program:
    """A linked ELF program; `entry` is a physical address, `segments` are in the order of theirs."""

    entry: int
    segments: Sequence[Segment]


class _ElfHeader(NamedTuple):
    kind: int
    machine: int
    version: int
    entry: int
    table: int
    sections: int
    flags: int
    size: int
    segment_size: int
    segments: int
    section_size: int
    section_count: int
    names: int


_ELF_IDENT = struct.Struct("<4sBB10x")
_ELF_HEADER = struct.Struct("<HHIQQQIHHHHHH")
_ELF_SEGMENT = struct.Struct("<IIQQQQQQ")
_ELF_EXEC, _ELF_DYN = 2, 3
_EM_RISCV = 243
_PT_LOAD = 1
_MACHINES = {3: "x86", 62: "x86-64", 40: "arm", 183: "arm64", 8: "mips", 21: "ppc64", 22: "s390", 258: "loongarch"}


def read_elf(file: BootFile) -> Program:
    """Reads an ELF64 program for riscv64. Raises ConfigError for anything else and for one that is cut short."""
    head = file.read(0, _ELF_IDENT.size)
    if len(head) < _ELF_IDENT.size:
        raise file.error(f"is cut short in its ELF header: {AGAIN}")
    _magic, bits, order = _ELF_IDENT.unpack(head)
    if order != 1:
        raise file.error("is an ELF file for a big-endian machine: give one built for riscv64")
    header = _ElfHeader(*file.header(_ELF_HEADER, _ELF_IDENT.size, "ELF header"))
    if header.machine != _EM_RISCV or bits != 2:
        name = "riscv32" if header.machine == _EM_RISCV else _MACHINES.get(header.machine, "another machine")
        raise file.error(f"is an ELF file for {name}: give one built for riscv64")
    if header.kind not in (_ELF_EXEC, _ELF_DYN):
        raise file.error("is an ELF file that is not linked into a program: link it first")
    if header.segments and header.segment_size != _ELF_SEGMENT.size:
        raise file.error(f"has a damaged ELF header: {AGAIN}")
    segments = []
    for index in range(header.segments):
        kind, _flags, offset, virtual, physical, file_size, size, _align = file.header(
            _ELF_SEGMENT, header.table + index * _ELF_SEGMENT.size, "ELF program headers"
        )
        if kind == _PT_LOAD and size:
            if file_size > size:
                raise file.error(f"has a damaged ELF program header: {AGAIN}")
            if offset + file_size > file.size:
                raise file.error(f"is cut short: {file.size} bytes of {offset + file_size}: {AGAIN}")
            segments.append(Segment(physical, virtual, offset, file_size, size))
    if not segments:
        raise file.error("has nothing to load: link it into a program")
    for segment in segments:
        if segment.virtual <= header.entry < segment.virtual + segment.size:
            return Program(header.entry - segment.virtual + segment.physical, sorted(segments))
    raise file.error(f"has its entry {header.entry:#x} outside of what it loads: link it again")
