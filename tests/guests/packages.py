"""Debian packages and an apt made of nothing: what the real ones are like as far as the fetching code can tell."""

from __future__ import annotations

import io
import lzma
import struct
import tarfile
import textwrap
from pathlib import Path

RELEASE = "6.99.1+deb13-riscv64"
KERNEL = f"linux-image-{RELEASE}"
BUSYBOX = b"\x7fELF something [\0[[\0ash\0busybox\0sh\0zcat\0\0 more"


def deb(files: dict[str, bytes], compression: str = "xz") -> bytes:
    """A binary package: an ar archive of the format's version, no control data worth the name, and the files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for path, content in files.items():
            entry = tarfile.TarInfo(f"./{path}")
            entry.size = len(content)
            entry.mode = 0o755
            tar.addfile(entry, io.BytesIO(content))
    suffix = f".{compression}" if compression else ""
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{suffix}": packed.getvalue()}
    archive = b"!<arch>\n"
    for name, content in members.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    return archive


def module(*info: str) -> bytes:
    """A kernel module, as far as its .modinfo section: 64-bit little-endian ELF."""
    names = b"\0.modinfo\0.shstrtab\0"
    content = b"".join(entry.encode() + b"\0" for entry in info)
    table = 64 + len(content) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack("<QIHHHHHH", table, 0, 64, 0, 0, 64, 3, 2)
    sections = b"\0" * 64
    for name, offset, size in ((1, 64, len(content)), (10, 64 + len(content), len(names))):
        sections += struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")
    return header.ljust(64, b"\0") + content + names + sections


def kernel_deb() -> bytes:
    below = f"usr/lib/modules/{RELEASE}/kernel"
    return deb(
        {
            f"boot/vmlinux-{RELEASE}": b"an Image",
            f"{below}/fs/ext4/ext4.ko.xz": lzma.compress(module("depends=jbd2,crc16", "alias=fs-ext4")),
            f"{below}/fs/jbd2/jbd2.ko.xz": lzma.compress(module("depends=")),
            f"{below}/drivers/virtio/virtio-rng.ko.xz": lzma.compress(module("alias=virtio:d00000004v*")),
            f"{below}/drivers/not/wanted.ko.xz": lzma.compress(module("depends=")),
        }
    )


class FakeApt:
    """Programs named apt-get, apt-cache and apt-config in `bin`, and the packages that they know of in `pool`.

    Each run of apt-get is noted in `log`. `fail` names a subcommand of apt-get that ends with an error message.
    """

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.pool = root / "pool"
        self.log = root / "log"
        self._fail = root / "fail"
        self.sources = root / "sources.list"
        self.sources.write_text("deb [arch=amd64] http://mirror.example/debian bookworm main contrib\n")
        for directory in (self.bin, self.pool):
            directory.mkdir()
        self._program("apt-config", f"echo \"LIST='{self.sources}'\"; echo \"PARTS='{root}/none'\"")
        self._program(
            "apt-cache",
            f"""
            for package; do :; done
            cat "{self.pool}/$package.control" 2>/dev/null && exit
            echo "E: No packages found" >&2; exit 100
            """,
        )
        self._program(
            "apt-get",
            f"""
            for word; do case $word in update|download|install) command=$word;; esac; done
            echo "$command $(pwd)" >>"{self.log}"
            if [ "$(cat "{self._fail}" 2>/dev/null)" = "$command" ]; then
                echo "W: a warning" >&2; echo "E: Failed to fetch the thing" >&2; exit 100
            fi
            [ "$command" = download ] || exit 0
            package=${{word%%=*}}
            cp "{self.pool}/$package"_*.deb .
            """,
        )

    def _program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(script))
        path.chmod(0o755)

    def fail(self, subcommand: str) -> None:
        self._fail.write_text(subcommand)

    def work_again(self) -> None:
        self._fail.unlink()

    def add(self, package: str, content: bytes, version: str = "1:2.0-1", depends: str = "") -> None:
        for old in self.pool.glob(f"{package}_*"):
            old.unlink()
        (self.pool / f"{package}_{version.replace(':', '%3a')}_riscv64.deb").write_bytes(content)
        (self.pool / f"{package}.control").write_text(
            f"Package: {package}\nVersion: {version}\nArchitecture: riscv64\nSize: {len(content)}\n"
            + (f"Depends: {depends}\n" if depends else "")
        )

    def add_guest(self) -> None:
        self.add("linux-image-riscv64", b"", depends=f"{KERNEL} (= 6.99.1-1)")
        self.add(KERNEL, kernel_deb())
        self.add("busybox-static", deb({"usr/bin/busybox": BUSYBOX}))

    def runs(self, subcommand: str) -> int:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return sum(line.startswith(subcommand) for line in lines)
