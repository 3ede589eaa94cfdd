"""Native images: position-independent machine code plus the offsets of its functions, mapped executable.

An image is code only: no data section, no relocation left. It is mapped below 2 GiB, so that a pre-decoded record can
hold a handler's address in 32 bits, and it is never writable and executable at once.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path

from vmm.errors import HostError

_MAP_32BIT = 0x40
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Image:
    """Machine code and the offset of each function in it."""

    code: bytes
    symbols: dict[str, int]

    def pack(self) -> bytes:
        table = json.dumps(self.symbols, separators=(",", ":")).encode()
        return struct.pack("<I", len(table)) + table + self.code

    @classmethod
    def unpack(cls, data: bytes) -> Image:
        (n,) = struct.unpack_from("<I", data)
        return cls(data[4 + n :], json.loads(data[4 : 4 + n]))


class CodeMemory:
    """Room below 2 GiB for code that is placed while other code runs: one memfd that is mapped twice.

    It is executable at `base` and writable at `base + bias`, so no page is ever both. Raises HostError where the host
    has no such memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        fd = os.memfd_create("guest-code", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._writable = mmap.mmap(fd, size)  # unmapped with the last reference
            base = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED | _MAP_32BIT, fd, 0)
        except OSError as e:
            raise HostError(f"no memory for translated code: {e.strerror}") from e
        finally:
            os.close(fd)
        if base == _MAP_FAILED or base is None:
            raise HostError("this host forbids executable mappings of shared memory, or has none left below 2 GiB")
        weakref.finalize(self, _libc.munmap, base, size)
        self.base: int = base
        self.bias: int = ctypes.addressof(ctypes.c_char.from_buffer(self._writable)) - base

    def give_back(self) -> None:
        """Forget what was placed: its pages cost nothing any more. Nobody may be in it."""
        self._writable.madvise(mmap.MADV_REMOVE)


class LoadedImage:
    """An image mapped into this process for good; `address(name)` is where a function starts."""

    def __init__(self, image: Image) -> None:
        self.size = (len(image.code) + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT
        base = _libc.mmap(None, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if base == _MAP_FAILED or base is None:
            raise HostError("no address space below 2 GiB for generated code")
        ctypes.memmove(base, image.code, len(image.code))
        if _libc.mprotect(base, self.size, mmap.PROT_READ | mmap.PROT_EXEC):
            raise HostError("this host forbids executable mappings: generated code cannot run")
        self.base: int = base
        self.symbols = image.symbols

    def address(self, name: str) -> int:
        return self.base + self.symbols[name]

    def write_perf_map(self, directory: Path = Path("/tmp")) -> Path:
        """Name this process's generated code for `perf report`, in the file where perf looks for it."""
        path = directory / f"perf-{os.getpid()}.map"
        starts = sorted((offset, name) for name, offset in self.symbols.items())
        ends = [offset for offset, _ in starts[1:]] + [self.size]
        rows = (f"{self.base + at:x} {end - at:x} {name}\n" for (at, name), end in zip(starts, ends, strict=True))
        try:
            path.write_text("".join(rows))
        except OSError as e:
            raise HostError(f"{path}: {e.strerror}: perf will not know generated code by name") from e
        return path

    def symbol_at(self, address: int) -> str | None:
        """Name of the function that holds `address`, for crash reports."""
        if not self.base <= address < self.base + self.size:
            return None
        below = [(off, name) for name, off in self.symbols.items() if off <= address - self.base]
        return max(below)[1] if below else None
