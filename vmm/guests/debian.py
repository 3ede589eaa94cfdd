"""Debian's stock riscv64 kernel with a small user land: fetched once, kept in the user's cache.

`python -m vmm.guests.debian` prepares the guest and prints where its kernel and initramfs are.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vmm.cachedir import private_directory
from vmm.errors import HostError, VmmError
from vmm.guests import cache, deb
from vmm.guests.apt import Archive, archive
from vmm.guests.initramfs import Initramfs
from vmm.guests.modules import Module, in_load_order, index_files, module_name
from vmm.guests.progress import Progress, TextProgress

SUITE = "trixie"
ARCHITECTURE = "riscv64"
KERNEL_PACKAGE = "linux-image-riscv64"
USERLAND_PACKAGE = "busybox-static"
DEFAULT_APPEND = "console=ttyS0"

#: Drivers that the initramfs carries, with what they depend on. virtio_pci, virtio_console, the 8250 UART, the generic
#: PCI host, SBI, fuse and virtiofs, and the goldfish RTC are built into the kernel.
MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_net", "virtio_scsi", "virtio_rng", "virtio_balloon", "virtio_input"),
    *("virtio_gpu", "bochs", "sym53c8xx", "sd_mod", "sr_mod", "sg", "9p", "9pnet_virtio"),
    *("ext4", "crc32c_generic", "isofs", "vfat", "nls_ascii", "nls_cp437", "loop", "evdev", "nvme", "e1000"),
)

#: Space for the unpacked kernel and the initramfs while they are made, in bytes.
GUEST_SIZE = 100 << 20
KEPT_GUESTS = 3
SCRATCH_SIZE = 256 << 20


@dataclass(frozen=True)
class DebianGuest:
    """`version` is the kernel's release, as `uname -r` prints it. `default_append` puts the console on the UART."""

    kernel: Path
    initrd: Path
    version: str
    default_append: str = DEFAULT_APPEND

    @property
    def report_append(self) -> str:
        """Command line for a guest that prints its own report and powers off."""
        return f"{self.default_append} vmm.report"

    def scratch_disk(self) -> Path:
        """A sparse image of `SCRATCH_SIZE` zeros, for a disk that forgets. HostError if it cannot be made."""
        path = self.kernel.with_name("scratch.img")
        try:
            with path.open("ab") as image:
                image.truncate(SCRATCH_SIZE)
        except OSError as error:
            raise HostError(f"cache: cannot make {path}: {error.strerror}") from None
        return path

    def run_append(self, script: str) -> str:
        """Command line for a guest that runs a shell script, prints "vmm: exit=N" and powers off with code N.

        Linux keeps the first 1023 bytes of a command line: a script of up to some 700 characters fits.
        """
        return f"{self.default_append} vmm.run=base64:{base64.b64encode(script.encode()).decode()}"


def prepare(cache_dir: Path | None = None, progress: Progress | None = None, refresh: bool = False) -> DebianGuest:
    """The guest in the cache, or with `refresh` the newest of Debian's suite; fetched and built when missing.

    `cache_dir` defaults to the user's cache, `progress` to text on standard error.

    Raises ConfigError (no apt, keyring or mirror; unusable cache) or HostError (download failed or broken, disk full).
    """
    report = TextProgress() if progress is None else progress
    with archive(SUITE, ARCHITECTURE, cache_dir, report, refresh) as debian:
        directory = private_directory(debian.directory / "guests")
        kept = sorted(directory.glob(f"{_recipe()}-*"), key=os.path.getmtime)
        if kept and not refresh:
            return _guest(kept[-1])
        packages = _packages(debian, refresh)
        final = directory / f"{_recipe()}-{packages.release}"
        if not final.exists():
            cache.require_space(directory, GUEST_SIZE)
            with cache.unfinished(directory) as scratch:
                _build(packages, scratch / "guest", report)
                os.replace(scratch / "guest", final)
        final.touch()
        for old in sorted(directory.glob("*-*"), key=os.path.getmtime)[:-KEPT_GUESTS]:
            shutil.rmtree(old, ignore_errors=True)
        return _guest(final)


@dataclass(frozen=True)
class _Packages:
    release: str
    kernel: Path
    userland: Path


def _packages(debian: Archive, refresh: bool) -> _Packages:
    """Fetch what the guest is made of. The kernel's package with the fixed name only depends on the real one."""
    kept = list(debian.directory.glob("linux-image-[0-9]*_*.deb"))
    if kept and not refresh:
        name = kept[0].name.partition("_")[0]
    else:
        depends = re.match(r"linux-image-[0-9]\S+", debian.fields(KERNEL_PACKAGE).get("depends", ""))
        if depends is None:
            raise HostError(f"apt: {KERNEL_PACKAGE} of Debian {SUITE} depends on no kernel")
        name = depends[0]
    kernel = debian.fetch(name)
    for old in kept:
        if old != kernel:
            old.unlink(missing_ok=True)
    return _Packages(name.removeprefix("linux-image-"), kernel, debian.fetch(USERLAND_PACKAGE))


def _guest(directory: Path) -> DebianGuest:
    return DebianGuest(directory / "Image", directory / "initrd", directory.name.partition("-")[2])


def _recipe() -> str:
    """A name for how the guest is made: changes when any of this package's files that make it does."""
    digest = hashlib.sha256()
    for name in ("debian.py", "deb.py", "initramfs.py", "modules.py", "init.sh", "report.sh"):
        digest.update(_own_file(name))
    return digest.hexdigest()[:12]


def _own_file(name: str) -> bytes:
    return resources.files("vmm.guests").joinpath(name).read_bytes()


def _build(packages: _Packages, directory: Path, progress: Progress) -> None:
    """Make `directory` with the kernel's `Image` and the `initrd`, out of the packages."""
    directory.mkdir(mode=0o700)
    below = f"usr/lib/modules/{packages.release}/"
    shipped: dict[str, tuple[str, bytes]] = {}
    for packed in deb.files(packages.kernel, progress):
        if packed.path == f"boot/vmlinux-{packages.release}":
            with open(directory / "Image", "wb") as image:
                shutil.copyfileobj(packed.content, image)
        elif packed.path.startswith(below) and packed.path.endswith(".ko.xz"):
            path = packed.path.removeprefix(below)
            shipped[module_name(path)] = (path, packed.content.read())
    if not (directory / "Image").exists():
        raise HostError(f"{packages.kernel.name}: no kernel in this package")

    def find(name: str) -> Module | None:
        return Module.parse(*shipped[name]) if name in shipped else None

    files_of_guest = _initramfs(_busybox(packages.userland), in_load_order(find, MODULES), packages.release)
    (directory / "initrd").write_bytes(files_of_guest.pack())


def _busybox(package: Path) -> bytes:
    for packed in deb.files(package):
        if packed.path in ("usr/bin/busybox", "bin/busybox"):
            return packed.content.read()
    raise HostError(f"{package.name}: no busybox in this package")


def _initramfs(busybox: bytes, modules: list[Module], release: str) -> Initramfs:
    tree = Initramfs()
    for path in ("dev", "proc", "sys", "mnt", "run", "root"):
        tree.directory(path)
    tree.directory("tmp", 0o1777)
    # The kernel opens the console for init before devtmpfs is mounted.
    tree.character_device("dev/console", 5, 1)
    tree.file("init", _own_file("init.sh"), 0o755)
    tree.file("bin/report", _own_file("report.sh"), 0o755)
    tree.file("bin/busybox", busybox, 0o755)
    for applet in _applets(busybox):
        tree.link(f"bin/{applet}", "busybox")
    tree.link("sbin", "bin")  # the kernel itself runs /sbin/modprobe
    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tree.file("etc/group", b"root:x:0:\n")
    for module in modules:
        tree.file(f"lib/modules/{release}/{module.path}", module.compressed)
    for name, text in index_files(modules).items():
        tree.file(f"lib/modules/{release}/{name}", text.encode())
    return tree


def _applets(busybox: bytes) -> list[str]:
    """Names of busybox's programs: a sorted table of strings that starts with "[", "[[" and ends with an empty one."""
    start = busybox.find(b"[\0[[\0")
    if start < 0:
        raise HostError(f"{USERLAND_PACKAGE}: no table of programs in busybox")
    table = busybox[start : busybox.index(b"\0\0", start)]
    return [name for name in table.decode("ascii").split("\0") if name != "busybox"]


def main() -> int:
    try:
        guest = prepare()
    except VmmError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    print(f"kernel {guest.kernel}\ninitrd {guest.initrd}\nappend {guest.default_append}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
