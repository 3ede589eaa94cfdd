"""What stands in memory when the harts leave reset: kernel, initial RAM disk, firmware, device tree, boot ROM.

`plan` reads headers, checks every file whole and decides where each goes; nothing is written before all of that has
passed. `BootPlan.load` then fills guest RAM, and does so again after each reset.

Two ways to start. Without firmware hart 0 enters the kernel in S-mode and the machine answers SBI calls itself. With
`--bios` all harts enter the firmware in M-mode the way QEMU's reset vector leaves them: a0 the hart, a1 the device
tree, a2 OpenSBI's `fw_dynamic_info`, which names the kernel.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vmm.errors import ConfigError
from vmm.machine.image import ELF_MAGIC, GZIP_MAGIC, IMAGE, IMAGE_MAGIC2, PACKED, ImageHeader, read_elf, read_image
from vmm.machine.initrd import NotAnInitrd, check_initrd
from vmm.machine.source import AGAIN, BootFile, Bytes, Slice, Source

MIB = 1 << 20
PAGE = 4096
BOUNDARY = 2 * MIB
"""Kernel, initrd and device tree begin on multiples of this: none shares a huge page with another."""

MAX_APPEND = 1023
"""Longest command line, in bytes: Linux for riscv cuts at COMMAND_LINE_SIZE = 1024 with the NUL."""

FDT_SLACK = 64 * 1024
"""Room behind the device tree: firmware grows it in place (OpenSBI adds reserved-memory nodes)."""

FDT_CEILING = 0xC000_0000
"""The tree stays below 3 GiB where it can, as on QEMU's board: firmware may map only the low addresses."""

ROM_BASE = 0x1000
ROM_SIZE = 0xF000

_FW_DYNAMIC_MAGIC = 0x4942_534F
_FW_DYNAMIC_VERSION = 2
_INITRD_ABOVE = 128 * MIB
_FW_DYNAMIC_S_MODE = 1
_FW_DYNAMIC_OFFSET = 0x28


class GuestRam(Protocol):
    """What loading needs of guest RAM: the bytes, and to say which of them it changed (guest physical addresses)."""

    @property
    def base(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def view(self) -> memoryview: ...
    def written(self, gpa: int, length: int) -> None: ...


@dataclass(frozen=True)
class Entry:
    """How the harts leave reset. a0 is each hart's own number; without firmware only hart 0 starts, in S-mode."""

    pc: int
    a1: int
    a2: int
    machine_mode: bool


@dataclass(frozen=True)
class Piece:
    """One thing in guest memory: `size` bytes from `address` belong to it, whatever of them its source fills."""

    what: str
    address: int
    size: int
    source: Source

    @property
    def end(self) -> int:
        return self.address + self.size


@dataclass
class BootPlan:
    """Where everything goes, and the files to take it from. Close it when the machine is done with it."""

    entry: Entry
    device_tree: bytes
    rom: bytes
    """Contents of the boot ROM at ROM_BASE; empty without firmware."""

    pieces: tuple[Piece, ...]
    """By address."""

    _files: contextlib.ExitStack = field(repr=False)

    def load(self, ram: GuestRam) -> None:
        """Puts every piece in guest RAM. Raises ConfigError when a file turns out damaged or changed under us."""
        for piece in self.pieces:
            offset = piece.address - ram.base
            window = ram.view[offset : offset + piece.size]
            filled = piece.source.fill(window)
            # A file is shorter than its place when that ends in .bss, which the format promises as zeros.
            for at in range(filled, piece.size, MIB):
                window[at : at + MIB] = bytes(min(MIB, piece.size - at))
            ram.written(piece.address, piece.size)

    def close(self) -> None:
        self._files.close()


def plan(
    *,
    ram_base: int,
    ram_size: int,
    kernel: Path | None,
    initrd: Path | None,
    bios: Path | None,
    append: str,
    describe: Callable[[tuple[int, int] | None], bytes],
) -> BootPlan:
    """Checks the files and lays them out.

    `describe(initrd)` makes the device tree once it is known where the initrd lies: (first, one past last) or None.
    Raises ConfigError naming the option for anything that cannot boot.
    """
    _check_combination(kernel, initrd, bios, append)
    with contextlib.ExitStack() as stack:
        place = _Placer(ram_base, ram_size)
        firmware = _firmware(BootFile.open("--bios", bios, stack), place) if bios is not None else None
        kernel_entry = _kernel(BootFile.open("--kernel", kernel, stack), place) if kernel is not None else 0
        disk = _initrd(BootFile.open("--initrd", initrd, stack), place) if initrd is not None else None
        tree = describe(disk)
        fdt_address = place.tree(tree)
        if firmware is None:
            entry, rom = Entry(kernel_entry, fdt_address, 0, machine_mode=False), b""
        else:
            entry = Entry(firmware, fdt_address, ROM_BASE + _FW_DYNAMIC_OFFSET, machine_mode=True)
            rom = reset_vector(firmware, fdt_address, kernel_entry)
        return BootPlan(entry, tree, rom, place.in_order(), stack.pop_all())


def reset_vector(start: int, fdt_address: int, kernel_entry: int) -> bytes:
    """The boot ROM of QEMU's `virt` board: six instructions, their two operands, and `fw_dynamic_info` version 2."""
    code = (
        0x0000_0297,  # auipc t0, 0
        0x0282_8613,  # addi  a2, t0, 40     fw_dynamic_info
        0xF140_2573,  # csrr  a0, mhartid
        0x0202_B583,  # ld    a1, 32(t0)     the device tree
        0x0182_B283,  # ld    t0, 24(t0)     the firmware
        0x0002_8067,  # jr    t0
    )
    dynamic = (_FW_DYNAMIC_MAGIC, _FW_DYNAMIC_VERSION, kernel_entry, _FW_DYNAMIC_S_MODE, 0, 0)
    return struct.pack("<6I2Q6Q", *code, start, fdt_address, *dynamic)


def _check_combination(kernel: Path | None, initrd: Path | None, bios: Path | None, append: str) -> None:
    if kernel is None and bios is None:
        raise ConfigError("--kernel: nothing to boot: give --kernel FILE or --bios FILE, or run `vmm-run demo`")
    if kernel is None and initrd is not None:
        raise ConfigError("--initrd: there is no kernel to hand it to: give --kernel too")
    if kernel is None and append:
        raise ConfigError("--append: there is no kernel to hand it to: give --kernel too")
    length = len(append.encode())
    if length > MAX_APPEND:
        raise ConfigError(f"--append: has {length} bytes, and Linux cuts it at {MAX_APPEND}: shorten it")
    if any(ord(character) < 32 for character in append):
        raise ConfigError("--append: contains a control character: leave it out")


class _Placer:
    """Gives out addresses in guest RAM and refuses what does not fit."""

    def __init__(self, base: int, size: int) -> None:
        self.base, self.end = base, base + size
        self._pieces: list[Piece] = []

    @property
    def top(self) -> int:
        """One past the highest byte placed so far."""
        return max((piece.end for piece in self._pieces), default=self.base)

    def put(self, what: str, file: BootFile, address: int, size: int, source: Source) -> None:
        if address < self.base:
            raise file.error(f"wants to be at {address:#x}, and RAM begins at {self.base:#x}: link it for this board")
        self._check_room(f"{file.option} {file.path}", address + size)
        for other in self._pieces:
            if address < other.end and other.address < address + size:
                where = f"lies at {address:#x}, over the {other.what} at {other.address:#x}"
                raise file.error(f"{where}: link one of them elsewhere")
        self._pieces.append(Piece(what, address, size, source))

    def tree(self, tree: bytes) -> int:
        """Places the device tree below everything's ceiling, or else directly behind everything."""
        room = len(tree) + FDT_SLACK
        ceiling = self.end if self.top + room > FDT_CEILING else min(self.end, FDT_CEILING)
        address = (ceiling - room) // BOUNDARY * BOUNDARY
        if address < self.top:
            address = _align(self.top, PAGE)
        self._check_room("the device tree", address + room)
        self._pieces.append(Piece("device tree", address, room, Bytes(tree)))
        return address

    def in_order(self) -> tuple[Piece, ...]:
        return tuple(sorted(self._pieces, key=lambda piece: piece.address))

    def _check_room(self, what: str, end: int) -> None:
        if end > self.end:
            raise ConfigError(
                f"--mem: {(self.end - self.base) // MIB}M is too little for {what}: "
                f"give at least {-(-(end - self.base) // MIB)}M"
            )


def _kernel(file: BootFile, place: _Placer) -> int:
    """Places the kernel; returns its entry address."""
    if file.read(0, len(ELF_MAGIC)) == ELF_MAGIC:
        return _program("kernel", file, place)
    image = read_image(file)
    address = place.base + image.offset
    place.put("kernel", file, address, image.size, image.source)
    return address


def _program(what: str, file: BootFile, place: _Placer) -> int:
    program = read_elf(file)
    lowest = program.segments[0].physical
    # Linux's `vmlinux` counts its physical addresses from 0, and can be anywhere: it goes where an Image would.
    moved = place.base + BOUNDARY - lowest if what == "kernel" and lowest < place.base else 0
    for lower, upper in itertools.pairwise(program.segments):
        if upper.physical < lower.physical + lower.size:
            raise file.error(f"has segments that overlap at {upper.physical:#x}: link it again")
    for segment in program.segments:
        source = Slice(file, segment.offset, segment.file_size)
        place.put(what, file, segment.physical + moved, segment.size, source)
    return program.entry + moved


def _firmware(file: BootFile, place: _Placer) -> int:
    """Places M-mode firmware, raw or ELF; returns the address where the harts enter it."""
    head = file.read(0, IMAGE.size)
    if head.startswith(ELF_MAGIC):
        return _program("firmware", file, place)
    if len(head) == IMAGE.size and ImageHeader(*IMAGE.unpack(head)).magic2 == IMAGE_MAGIC2:
        raise file.error("is a Linux kernel: give it as --kernel")
    if head.startswith((GZIP_MAGIC, b"MZ", b"#!", *(magic for magic, _name in PACKED))):
        raise file.error("is not firmware: give a raw riscv64 binary such as fw_dynamic.bin, or an ELF file")
    if len(head) < 4:
        raise file.error(f"is cut short, it holds not one instruction: {AGAIN}")
    place.put("firmware", file, place.base, file.size, Slice(file, 0, file.size))
    return place.base


def _initrd(file: BootFile, place: _Placer) -> tuple[int, int]:
    """Places the initial RAM disk behind everything else; returns (first, one past last) of its addresses.

    Where there is room it leaves the first half of RAM, at most 128 MiB, as on QEMU's board: firmware puts its own
    things there (Debian's fw_jump copies the device tree to 0x82200000).
    """
    try:
        with mmap.mmap(file.fd, file.size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as data:
            check_initrd(data)
    except NotAnInitrd as problem:
        raise file.error(f"{problem}: give a whole initramfs, such as `vmm-run debian` makes") from None
    address = _align(place.top, BOUNDARY)
    higher = _align(place.base + min((place.end - place.base) // 2, _INITRD_ABOVE), BOUNDARY)
    if address < higher and higher + file.size + BOUNDARY <= place.end:
        address = higher
    place.put("initrd", file, address, file.size, Slice(file, 0, file.size))
    return address, address + file.size


def _align(address: int, boundary: int) -> int:
    return -(-address // boundary) * boundary
