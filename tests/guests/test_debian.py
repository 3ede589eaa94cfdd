"""Making the guest out of packages: the initramfs, the modules in it, and what is kept."""

from __future__ import annotations

import base64
import io
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests import qemu
from tests.guests.packages import BUSYBOX, KERNEL, RELEASE, FakeApt, deb, module
from tests.guests.test_apt import host
from vmm.errors import HostError, VmmError
from vmm.guests import debian
from vmm.guests.deb import files
from vmm.guests.debian import DebianGuest, prepare
from vmm.guests.initramfs import Initramfs
from vmm.guests.modules import Module, in_load_order, index_files, module_name
from vmm.guests.progress import TextProgress, silent

__all__ = ["host"]  # the fixture


@dataclass(frozen=True)
class Entry:
    mode: int
    content: bytes
    device: tuple[int, int]


def unpack(archive: bytes) -> dict[str, Entry]:
    """A reader of "newc" archives that knows nothing of the writer."""
    entries: dict[str, Entry] = {}
    stream = io.BytesIO(archive)
    while True:
        assert stream.tell() % 4 == 0
        assert stream.read(6) == b"070701"
        fields = [int(stream.read(8), 16) for _ in range(13)]
        name = stream.read(fields[11])
        assert name.endswith(b"\0")
        stream.seek(-stream.tell() % 4, 1)
        content = stream.read(fields[6])
        stream.seek(-stream.tell() % 4, 1)
        if name == b"TRAILER!!!\0":
            return entries
        assert name[:-1].decode() not in entries
        entries[name[:-1].decode()] = Entry(fields[1], content, (fields[9], fields[10]))


# The archive.


def test_an_archive_holds_what_was_put_in() -> None:
    tree = Initramfs()
    tree.file("bin/tool", b"odd", 0o755)
    tree.link("sbin", "bin")
    tree.character_device("dev/console", 5, 1)
    tree.directory("tmp", 0o1777)
    assert unpack(tree.pack()) == {
        "bin": Entry(0o040755, b"", (0, 0)),
        "bin/tool": Entry(0o100755, b"odd", (0, 0)),
        "sbin": Entry(0o120777, b"bin", (0, 0)),
        "dev": Entry(0o040755, b"", (0, 0)),
        "dev/console": Entry(0o020600, b"", (5, 1)),
        "tmp": Entry(0o041777, b"", (0, 0)),
    }


def test_a_directory_comes_before_what_is_in_it() -> None:
    tree = Initramfs()
    tree.file("a/b/c/d", b"")
    assert list(unpack(tree.pack())) == ["a", "a/b", "a/b/c", "a/b/c/d"]


def test_the_same_tree_is_the_same_bytes() -> None:
    trees = [Initramfs(), Initramfs()]
    for tree in trees:
        tree.file("etc/passwd", b"root")
    assert trees[0].pack() == trees[1].pack()


# Packages.


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_a_package_is_read_in_any_compression(tmp_path: Path, compression: str) -> None:
    package = tmp_path / "thing_1_all.deb"
    package.write_bytes(deb({"usr/bin/thing": b"contents", "empty": b""}, compression))
    assert [(it.path, it.mode, it.content.read()) for it in files(package)] == [
        ("usr/bin/thing", 0o755, b"contents"),
        ("empty", 0o755, b""),
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a package", deb({"a": b"b"})[:-20], deb({"a": b"b"}).replace(b"data.tar", b"atad.tar")],
    ids=["empty", "foreign", "cut off", "without files"],
)
def test_a_broken_package_says_so_in_one_line(tmp_path: Path, content: bytes) -> None:
    package = tmp_path / "thing_1_all.deb"
    package.write_bytes(content)
    with pytest.raises(HostError, match=r"^thing_1_all\.deb: .*try again$"):
        list(files(package))


# Modules.


def parsed(path: str, *info: str) -> Module:
    return Module.parse(f"kernel/{path}.ko.xz", lzma.compress(module(*info)))


def test_a_module_tells_of_itself() -> None:
    assert parsed("fs/some-thing", "license=GPL", "depends=jbd2,crc-16", "alias=fs-it", "alias=it*") == Module(
        name="some_thing",
        path="kernel/fs/some-thing.ko.xz",
        compressed=lzma.compress(module("license=GPL", "depends=jbd2,crc-16", "alias=fs-it", "alias=it*")),
        depends=("jbd2", "crc_16"),
        aliases=("fs-it", "it*"),
    )


def test_module_names_have_underscores() -> None:
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz") == "virtio_rng"


def test_a_module_comes_after_what_it_needs() -> None:
    modules = {
        it.name: it for it in (parsed("a", "depends=b,c"), parsed("b", "depends=c,builtin"), parsed("c", "depends="))
    }
    assert [it.name for it in in_load_order(modules.get, ["a", "c", "missing"])] == ["c", "b", "a"]


def test_modprobe_finds_all_that_a_module_needs() -> None:
    modules = {it.name: it for it in (parsed("a", "depends=b", "alias=pci:v1*"), parsed("b", "depends=c"), parsed("c"))}
    index = index_files(in_load_order(modules.get, ["a"]))
    assert index["modules.dep"].splitlines() == [
        "kernel/c.ko.xz:",
        "kernel/b.ko.xz: kernel/c.ko.xz",
        "kernel/a.ko.xz: kernel/b.ko.xz kernel/c.ko.xz",
    ]
    assert index["modules.alias"] == "alias pci:v1* a\n"


@pytest.mark.parametrize(
    "content",
    [b"text", lzma.compress(b"text"), lzma.compress(b"\x7fELF\x02\x01" + b"\xff" * 90)],
    ids=["not compressed", "not ELF", "nonsense for numbers"],
)
def test_a_broken_module_says_so_in_one_line(content: bytes) -> None:
    with pytest.raises(HostError, match=r"^kernel/a\.ko\.xz: "):
        Module.parse("kernel/a.ko.xz", content)


# The guest, of made-up packages.


def test_the_guest_is_made_of_both_packages(host: FakeApt) -> None:
    host.add_guest()
    guest = prepare(progress=silent)
    assert guest.version == RELEASE
    assert guest.kernel.read_bytes() == b"an Image"
    tree = unpack(guest.initrd.read_bytes())
    assert tree["bin/busybox"] == Entry(0o100755, BUSYBOX, (0, 0))
    assert {path for path, entry in tree.items() if entry.content == b"busybox"} == {
        "bin/[",
        "bin/[[",
        "bin/ash",
        "bin/sh",
        "bin/zcat",
    }
    assert tree["init"].mode == 0o100755
    assert tree["init"].content.startswith(b"#!/bin/sh\n")
    assert [path.rsplit("/", 1)[1] for path in tree if path.endswith(".ko.xz")] == [
        "virtio-rng.ko.xz",
        "jbd2.ko.xz",
        "ext4.ko.xz",
    ]
    assert b"alias virtio:d00000004v* virtio_rng" in tree[f"lib/modules/{RELEASE}/modules.alias"].content


def test_the_guest_is_made_once(host: FakeApt) -> None:
    host.add_guest()
    guest = prepare(progress=silent)
    host.fail("update")
    assert prepare(progress=silent) == guest
    assert host.runs("download") == 2


def test_another_recipe_needs_no_network(host: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add_guest()
    guest = prepare(progress=silent)
    host.fail("update")
    monkeypatch.setattr(debian, "MODULES", ("jbd2",))
    monkeypatch.setattr(debian, "_recipe", lambda: "another")
    again = prepare(progress=silent)
    assert again.kernel != guest.kernel
    assert guest.kernel.exists()
    assert not any(path.endswith("ext4.ko.xz") for path in unpack(again.initrd.read_bytes()))


def test_refreshing_takes_a_newer_kernel(host: FakeApt) -> None:
    host.add_guest()
    old = prepare(progress=silent)
    newer = "6.99.2+deb13-riscv64"
    host.add("linux-image-riscv64", b"", version="6.99.2-1", depends=f"linux-image-{newer} (= 6.99.2-1)")
    host.add(f"linux-image-{newer}", deb({f"boot/vmlinux-{newer}": b"newer"}))
    assert prepare(progress=silent) == old
    guest = prepare(progress=silent, refresh=True)
    assert (guest.version, guest.kernel.read_bytes()) == (newer, b"newer")
    assert not list(guest.kernel.parents[2].glob(f"{KERNEL}_*.deb"))
    assert prepare(progress=silent) == guest


@pytest.mark.parametrize(
    ("package", "content", "complaint"),
    [
        (KERNEL, deb({"usr/share/doc": b""}), "no kernel in this package"),
        ("busybox-static", deb({"usr/share/doc": b""}), "no busybox in this package"),
        ("busybox-static", deb({"usr/bin/busybox": b"something else"}), "no table of programs"),
        (KERNEL, b"cut off", "try again"),
    ],
)
def test_a_package_that_is_not_what_it_should_be(host: FakeApt, package: str, content: bytes, complaint: str) -> None:
    host.add_guest()
    host.add(package, content)
    with pytest.raises(HostError, match=complaint) as caught:
        prepare(progress=silent)
    assert "\n" not in str(caught.value)
    assert not [path for path in Path(host.bin.parent / "cache").rglob("*") if path.name in ("Image", "initrd")]


def test_a_script_travels_on_the_command_line() -> None:
    append = DebianGuest(Path("k"), Path("i"), "v").run_append("echo 'a b'\nexit 3")
    encoded = re.fullmatch(r"console=ttyS0 vmm\.run=base64:(\S+)", append)
    assert encoded is not None
    assert base64.b64decode(encoded[1]) == b"echo 'a b'\nexit 3"


def test_the_command_prints_where_the_guest_is(host: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    host.add_guest()
    assert debian.main() == 0
    guest = prepare(progress=silent)
    assert capsys.readouterr().out == f"kernel {guest.kernel}\ninitrd {guest.initrd}\nappend console=ttyS0\n"


def test_the_command_says_in_one_line_what_is_wrong(host: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    host.add_guest()
    host.fail("download")
    assert debian.main() == 2
    assert "Failed to fetch" in capsys.readouterr().err.splitlines()[-1]


# Progress.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_elsewhere_is_a_line_for_each_step() -> None:
    stream = io.StringIO()
    progress = TextProgress(stream)
    for step, done in (("One", None), ("One", 0.5), ("One", 1.0), ("Two", 0.1)):
        progress(step, done)
    assert stream.getvalue() == "One\nTwo\n"


def test_progress_on_a_terminal_is_a_bar_on_one_line() -> None:
    stream = Terminal()
    progress = TextProgress(stream)
    for done in (None, 0.5, 0.5, 1.0):
        progress("One", done)
    lines = stream.getvalue().split("\r\x1b[K")
    assert lines[1] == "One ..."
    assert lines[2] == "One  [###############               ]  50%"
    assert lines[3] == "One  [##############################] 100%\n"
    assert len(lines) == 4


# The real guest, on QEMU.


@pytest.fixture(scope="module")
def guest() -> DebianGuest:
    try:
        return prepare(progress=silent)
    except VmmError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@qemu.needs_qemu
def test_the_guest_reports_on_its_machine_and_powers_off(guest: DebianGuest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8 << 20))
    drive = ("-drive", f"file={disk},format=raw,if=none,id=d", "-device", "virtio-blk-device,drive=d")
    devices = ("-device", "virtio-rng-device", "-device", "virtio-balloon-device", "-device", "virtio-net-device")
    boot = ("-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.report_append)
    ran = qemu.run(*boot, "-m", "512", *drive, *devices, harts=2)
    assert ran.status == 0
    report = ran.lines[ran.lines.index("vmm: report") : ran.lines.index("vmm: end of report")]
    values = dict(re.fullmatch(r"  (\w+): +(.*)", line).groups() for line in report[1:])  # type: ignore[union-attr]
    assert values["kernel"] == f"Linux {guest.version} riscv64"
    assert values["cpus"].startswith("2 x rv64")
    assert values["disk"] == "vda, 8 MiB"
    assert {"virtio_blk", "virtio_mmio", "virtio_net", "virtio_balloon", "virtio_rng"} <= set(values["modules"].split())
    assert float(values["uptime"].split()[0]) > 0


@pytest.mark.slow
@qemu.needs_qemu
def test_a_scripts_exit_status_is_the_machines(guest: DebianGuest) -> None:
    script = "modprobe -a ext4 9p sym53c8xx sd_mod && echo 'two  words' && exit 7"
    boot = ("-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.run_append(script))
    ran = qemu.run(*boot, "-m", "512")
    assert "two  words" in ran.lines
    assert "vmm: exit=7" in ran.lines
    assert ran.status == 7
