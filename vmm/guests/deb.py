"""Reading Debian's binary packages: an `ar` archive with a compressed tar of files inside (deb(5))."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vmm.errors import HostError
from vmm.guests.progress import Progress, silent

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60


@dataclass(frozen=True)
class PackedFile:
    """A regular file of a package. `path` has no leading slash; `content` is good until the next file is asked for."""

    path: str
    mode: int
    content: IO[bytes]


def files(package: Path, progress: Progress = silent) -> Iterator[PackedFile]:
    """The regular files of a package in its own order; HostError if it is broken."""
    step = f"Unpacking {package.name.partition('_')[0]}"
    size = package.stat().st_size
    try:
        with open(package, "rb") as stream:
            compression = {"data.tar": "", "data.tar.gz": "gz", "data.tar.xz": "xz"}.get(_seek_data(stream, size))
            if compression is None:
                raise HostError(f"{package.name}: not a package that can be read; remove {package} and try again")
            # As a stream, for the compressed member ends before the file does.
            with tarfile.open(fileobj=stream, mode=f"r|{compression}") as archive:  # type: ignore[call-overload]
                for entry in archive:
                    content = archive.extractfile(entry) if entry.isreg() else None
                    if content is not None:
                        progress(step, min(stream.tell() / size, 0.99))
                        yield PackedFile(entry.name.removeprefix("./"), entry.mode, content)
        progress(step, 1.0)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise HostError(f"{package.name}: broken package ({error}); remove {package} and try again") from None


def _seek_data(stream: IO[bytes], end: int) -> str:
    """Move to the contents of the member `data.tar*` and return its name, or "" when it is not there in full."""
    if stream.read(len(AR_MAGIC)) != AR_MAGIC:
        return ""
    while len(header := stream.read(AR_HEADER)) == AR_HEADER:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = header[48:58].strip()
        if not size.isdigit() or stream.tell() + int(size) > end:
            return ""
        if name.startswith("data.tar"):
            return name
        stream.seek(int(size) + int(size) % 2, 1)
    return ""
