"""Reading Debian's binary packages: an `ar` archive with a compressed tar of files inside (deb(5))."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vmm.errors import HostError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60


@contextmanager
def open_deb(path: Path) -> Iterator[tarfile.TarFile]:
    """The files of the package as a tar stream to be read once from front to back; HostError if it is broken."""
    try:
        with open(path, "rb") as stream:
            name = _seek_data(stream)
            compression = {"data.tar": "", "data.tar.gz": "gz", "data.tar.xz": "xz"}.get(name)
            if compression is None:
                raise HostError(f"{path.name}: no data member that can be read; remove {path} and try again")
            # A stream, for the compressed member ends before the file does.
            with tarfile.open(fileobj=stream, mode=f"r|{compression}") as files:  # type: ignore[call-overload]
                yield files
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise HostError(f"{path.name}: broken package ({error}); remove {path} and try again") from None


def _seek_data(stream: BinaryIO) -> str:
    """Move to the contents of the member `data.tar*` and return its name, or "" when there is none."""
    if stream.read(len(AR_MAGIC)) != AR_MAGIC:
        return ""
    while len(header := stream.read(AR_HEADER)) == AR_HEADER:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        if name.startswith("data.tar"):
            return name
        size = header[48:58].strip()
        if not size.isdigit():
            return ""
        stream.seek(int(size) + int(size) % 2, 1)
    return ""
