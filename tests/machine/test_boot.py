from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machine.files import RAM_BASE, WFI_LOOP, PlainRam, cpio, efi_image, elf, image
from vmm.errors import ConfigError
from vmm.machine.boot import BootPlan, plan

MIB = 1 << 20


def layout(
    *, kernel: Path | None = None, initrd: Path | None = None, bios: Path | None = None, append: str = "", mib: int = 64
) -> BootPlan:
    return plan(
        ram_base=RAM_BASE,
        ram_size=mib * MIB,
        kernel=kernel,
        initrd=initrd,
        bios=bios,
        append=append,
        describe=lambda disk: b"tree" + struct.pack("<QQ", *(disk or (0, 0))),
    )


def saved(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_an_image_lies_at_its_text_offset_and_hart_0_enters_it_in_s_mode(tmp_path: Path) -> None:
    data = image()
    boot, ram = layout(kernel=saved(tmp_path, "Image", data)), PlainRam(64 * MIB)
    boot.load(ram)
    assert (boot.entry.pc, boot.entry.machine_mode, boot.rom) == (0x8020_0000, False, b"")
    assert ram.bytes_at(0x8020_0000, len(data)) == data
    assert ram.bytes_at(boot.entry.a1, 4) == b"tree"


def test_memory_behind_an_image_up_to_its_image_size_is_zero_after_each_load(tmp_path: Path) -> None:
    boot, ram = layout(kernel=saved(tmp_path, "Image", image(size=0x3000, image_size=0x5000))), PlainRam(64 * MIB)
    ram.view[0x20_3000:0x20_5001] = b"\xff" * 0x2001
    boot.load(ram)
    assert ram.bytes_at(0x8020_3000, 0x2000) == bytes(0x2000)
    assert ram.bytes_at(0x8020_5000, 1) == b"\xff"


def test_loading_reports_every_range_that_it_wrote(tmp_path: Path) -> None:
    boot, ram = layout(kernel=saved(tmp_path, "Image", image())), PlainRam(64 * MIB)
    boot.load(ram)
    assert ram.told == [(piece.address, piece.size) for piece in boot.pieces]


def test_a_reset_loads_the_file_that_was_opened_even_if_it_is_gone(tmp_path: Path) -> None:
    path = saved(tmp_path, "Image", image())
    boot, ram = layout(kernel=path), PlainRam(64 * MIB)
    path.unlink()
    boot.load(ram)
    ram.view[0x20_0000:0x20_1000] = bytes(0x1000)
    boot.load(ram)
    assert ram.bytes_at(0x8020_0000, 0x3000) == image()


def test_a_gzipped_image_boots_as_the_image_in_it(tmp_path: Path) -> None:
    boot, ram = layout(kernel=saved(tmp_path, "Image.gz", gzip.compress(image()))), PlainRam(64 * MIB)
    boot.load(ram)
    assert boot.entry.pc == 0x8020_0000
    assert ram.bytes_at(0x8020_0000, 0x3000) == image()


def test_an_elf_kernel_lies_at_its_physical_addresses_and_its_bss_is_cleared(tmp_path: Path) -> None:
    program = elf([(0x8040_0000, WFI_LOOP, 0x40), (0x8050_0000, b"data", 4)], virtual_offset=0xFFFF_FFFF_0000_0000)
    boot, ram = layout(kernel=saved(tmp_path, "kernel.elf", program)), PlainRam(64 * MIB)
    ram.view[0x40_0000:0x40_0040] = b"\xff" * 0x40
    boot.load(ram)
    assert boot.entry.pc == 0x8040_0000
    assert ram.bytes_at(0x8040_0000, 0x40) == WFI_LOOP.ljust(0x40, b"\0")
    assert ram.bytes_at(0x8050_0000, 4) == b"data"


def test_an_elf_kernel_that_counts_physical_addresses_from_0_goes_where_an_image_would(tmp_path: Path) -> None:
    program = elf([(0, WFI_LOOP, 0x40), (0x1000, b"data", 4)], virtual_offset=0xFFFF_FFFF_8000_0000)
    boot, ram = layout(kernel=saved(tmp_path, "vmlinux", program)), PlainRam(64 * MIB)
    boot.load(ram)
    assert boot.entry.pc == 0x8020_0000
    assert ram.bytes_at(0x8020_1000, 4) == b"data"


def test_the_initrd_lies_behind_the_kernel_and_the_device_tree_is_told_where(tmp_path: Path) -> None:
    archive = cpio(("init", b"#!"))
    boot = layout(kernel=saved(tmp_path, "Image", image()), initrd=saved(tmp_path, "initrd", archive))
    ram = PlainRam(64 * MIB)
    boot.load(ram)
    start, end = struct.unpack("<QQ", ram.bytes_at(boot.entry.a1 + 4, 16))
    assert start % (2 * MIB) == 0
    assert start >= 0x8020_5000
    assert ram.bytes_at(start, end - start) == archive


def test_the_initrd_leaves_the_room_behind_the_kernel_to_firmware_where_it_can(tmp_path: Path) -> None:
    files = {
        "kernel": saved(tmp_path, "Image", image(image_size=31 * MIB)),
        "initrd": saved(tmp_path, "initrd", cpio(("init", bytes(MIB)))),
    }
    starts = []
    for mib in (512, 64, 40):
        (piece,) = (piece for piece in layout(**files, mib=mib).pieces if piece.what == "initrd")
        starts.append(piece.address - RAM_BASE)
    assert starts == [128 * MIB, 34 * MIB, 34 * MIB]


@pytest.mark.parametrize("mib", [32, 48, 128, 1024, 4096])
def test_no_two_pieces_share_a_byte_and_all_lie_in_ram(tmp_path: Path, mib: int) -> None:
    boot = layout(
        bios=saved(tmp_path, "fw.bin", bytes(range(256)) * 64),
        kernel=saved(tmp_path, "Image", image(image_size=20 * MIB)),
        initrd=saved(tmp_path, "initrd", cpio(("init", bytes(MIB)))),
        mib=mib,
    )
    ends = [RAM_BASE]
    for piece in boot.pieces:
        assert piece.address >= ends[-1]
        ends.append(piece.end)
    assert ends[-1] <= RAM_BASE + mib * MIB


def test_the_device_tree_stays_below_3_gib_when_there_is_room(tmp_path: Path) -> None:
    boot = layout(kernel=saved(tmp_path, "Image", image()), mib=8192)
    assert boot.entry.a1 < 0xC000_0000


def test_firmware_starts_in_m_mode_with_the_registers_of_the_reset_vector(tmp_path: Path) -> None:
    boot = layout(bios=saved(tmp_path, "fw.bin", WFI_LOOP), kernel=saved(tmp_path, "Image", image()))
    assert (boot.entry.pc, boot.entry.machine_mode, boot.entry.a2) == (RAM_BASE, True, 0x1028)
    start, tree, *dynamic = struct.unpack_from("<8Q", boot.rom, 24)
    assert (start, tree) == (RAM_BASE, boot.entry.a1)
    assert dynamic == [0x4942534F, 2, 0x8020_0000, 1, 0, 0]


def test_a_bare_metal_elf_starts_at_its_entry(tmp_path: Path) -> None:
    boot = layout(bios=saved(tmp_path, "demo.elf", elf(entry=0x8000_0004)))
    assert (boot.entry.pc, boot.entry.machine_mode) == (0x8000_0004, True)


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: data,
        gzip.compress,
        lzma.compress,
        bz2.compress,
        lambda data: data + bytes(512) + gzip.compress(data),
        lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        lambda data: b"\x28\xb5\x2f\xfd" + data,
    ],
)
def test_an_initrd_may_be_packed_in_every_way_that_kernels_know(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    layout(kernel=saved(tmp_path, "Image", image()), initrd=saved(tmp_path, "initrd", pack(cpio(("init", b"x" * 999)))))


# -- bad input: (option, contents, words that the one line must contain) ----------------------------------------------

ARM64 = image()[:56] + b"ARM\x64" + image()[60:]
X86 = bytes(0x202) + b"HdrS" + bytes(64)
GOOD_CPIO = cpio(("init", b"x" * 999))

BAD_FILES: list[tuple[str, bytes, str]] = [
    ("kernel", b"", "is empty"),
    ("kernel", b"\x13", "is not a kernel of a known format"),
    ("kernel", b"just some text\n" * 100, "is not a kernel of a known format"),
    ("kernel", ARM64, "is an arm64 kernel"),
    ("kernel", X86, "is an x86 kernel"),
    ("kernel", b"MZ\0\0zimg".ljust(100, b"\0"), "unpack it first"),
    ("kernel", b"MZ".ljust(600, b"\0"), "of another machine"),
    ("kernel", lzma.compress(image()), "packed with xz"),
    ("kernel", image(flags=1), "big-endian"),
    ("kernel", image(text_offset=123), "damaged header"),
    ("kernel", image(image_size=1 << 60), "damaged header"),
    ("kernel", efi_image(sections_end=0x9000, size=0x8000), "is cut short: 32768 bytes of 36864"),
    ("kernel", efi_image(sections_end=0x9000, size=0x100), "is cut short in its EFI"),
    ("kernel", b"\x1f\x8b", "is cut short"),
    ("kernel", gzip.compress(b"hello" * 100), "is not a kernel of a known format"),
    ("kernel", gzip.compress(b"hello"), "is cut short in its header"),
    ("kernel", gzip.compress(image())[:30], "is cut short"),
    ("kernel", b"\x1f\x8b" + bytes(100), "is damaged"),
    ("kernel", gzip.compress(image(image_size=0)), "no image size"),
    ("kernel", elf(machine=62), "is an ELF file for x86-64"),
    ("kernel", elf(bits=1), "is an ELF file for riscv32"),
    ("kernel", elf(order=2), "big-endian"),
    ("kernel", elf(kind=1), "not linked"),
    ("kernel", elf(entry=0x9000_0000), "outside of what it loads"),
    ("kernel", elf()[:40], "is cut short in its ELF header"),
    ("kernel", elf()[:10], "is cut short in its ELF header"),
    ("kernel", elf()[:100], "is cut short in its ELF program headers"),
    ("kernel", elf()[:-1], "is cut short"),
    ("kernel", elf([(0x8020_0000, b"abcdefgh", 4)]), "damaged ELF program header"),
    ("kernel", elf([(0x8020_0000, b"", 0)], entry=0x8020_0000), "nothing to load"),
    ("kernel", elf([(0x8020_0000, b"a", 0x2000), (0x8020_1000, b"b", 1)]), "overlap"),
    ("kernel", elf([(0x9000_0000, b"abcd", 4)]), "give at least 257M"),
    ("kernel", image(image_size=65 * MIB), "give at least 67M"),
    ("bios", b"", "is empty"),
    ("bios", b"\x13", "is cut short"),
    ("bios", image(), "give it as --kernel"),
    ("bios", gzip.compress(WFI_LOOP), "is not firmware"),
    ("bios", b"#!/bin/sh\n", "is not firmware"),
    ("bios", elf(machine=183), "is an ELF file for arm64"),
    ("bios", elf([(0x2000_0000, b"abcd", 4)]), "link it for this board"),
    ("bios", elf()[:-1], "is cut short"),
    ("bios", bytes(65 * MIB), "give at least 65M"),
    ("initrd", b"", "is empty"),
    ("initrd", b"foreign", "is neither a cpio archive"),
    ("initrd", bytes(100), "is neither a cpio archive"),
    ("initrd", GOOD_CPIO[:-200], "is cut short"),
    ("initrd", GOOD_CPIO[:60], "is cut short"),
    ("initrd", GOOD_CPIO[:54] + b"?" + GOOD_CPIO[55:], "is damaged"),
    ("initrd", gzip.compress(GOOD_CPIO)[:-20], "is cut short"),
    ("initrd", b"\x1f\x8b" + bytes(50), "is damaged"),
    ("initrd", lzma.compress(GOOD_CPIO)[:-20], "is cut short"),
    ("initrd", GOOD_CPIO + b"garbage", "no known kind at offset"),
    ("initrd", cpio(("big", bytes(64 * MIB))), "--mem: 64M is too little for --initrd"),
]


@pytest.mark.parametrize(("option", "data", "words"), BAD_FILES)
def test_a_file_that_cannot_boot_is_one_line_that_names_its_option(
    tmp_path: Path, option: str, data: bytes, words: str
) -> None:
    path = saved(tmp_path, "file", data)
    good = {"kernel": saved(tmp_path, "Image", image())} if option == "initrd" else {}
    with pytest.raises(ConfigError) as caught:
        layout(**{**good, option: path}).load(PlainRam(64 * MIB))  # type: ignore[arg-type]
    message = str(caught.value)
    assert words in message
    assert f"--{option} {path}" in message
    assert "\n" not in message


@pytest.mark.parametrize("option", ["kernel", "initrd", "bios"])
@pytest.mark.parametrize("what", ["missing", "a folder", "a pipe", "a name with a NUL"])
def test_a_path_that_is_no_readable_file_is_one_line_that_names_its_option(
    tmp_path: Path, option: str, what: str
) -> None:
    path = tmp_path / what
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a name with a NUL":
        path = Path("a\0b")
    good = {"kernel": saved(tmp_path, "Image", image())} if option == "initrd" else {}
    with pytest.raises(ConfigError, match=f"^--{option} "):
        layout(**{**good, option: path})  # type: ignore[arg-type]


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = saved(tmp_path, "Image", image())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="you may not read it"):
        layout(kernel=path)


def test_a_damaged_gzip_kernel_that_unpacks_too_far_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    boot = layout(kernel=saved(tmp_path, "Image.gz", gzip.compress(image(size=0x8000, image_size=0x4000))))
    with pytest.raises(ConfigError, match="unpacks to more than its header says"):
        boot.load(PlainRam(64 * MIB))


def test_a_kernel_that_shrinks_while_the_machine_runs_is_refused_at_the_next_load(tmp_path: Path) -> None:
    path = saved(tmp_path, "Image", image())
    boot = layout(kernel=path)
    os.truncate(path, 100)
    with pytest.raises(ConfigError, match="became shorter"):
        boot.load(PlainRam(64 * MIB))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to boot"),
        ({"bios": "fw", "initrd": "disk"}, "--initrd: there is no kernel"),
        ({"bios": "fw", "append": "quiet"}, "--append: there is no kernel"),
        ({"kernel": "Image", "append": "x" * 1024}, "--append: has 1024 bytes"),
        ({"kernel": "Image", "append": "a\0b"}, "--append: contains a control character"),
        ({"kernel": "Image", "bios": "elf", "append": "q"}, "link one of them elsewhere"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: dict[str, str], words: str) -> None:
    saved(tmp_path, "Image", image())
    saved(tmp_path, "fw", WFI_LOOP)
    saved(tmp_path, "disk", GOOD_CPIO)
    saved(tmp_path, "elf", elf([(0x8020_1000, WFI_LOOP, 8)]))
    with pytest.raises(ConfigError, match=words):
        layout(**{key: value if key == "append" else tmp_path / value for key, value in options.items()})  # type: ignore[arg-type]


def test_a_plan_that_is_refused_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.suppress(ConfigError):
        layout(kernel=saved(tmp_path, "Image", image()), initrd=saved(tmp_path, "initrd", b"foreign"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_a_plan_closes_its_files(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    layout(kernel=saved(tmp_path, "Image", image()), initrd=saved(tmp_path, "initrd", GOOD_CPIO)).close()
    assert len(os.listdir("/proc/self/fd")) == before
