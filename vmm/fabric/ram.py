"""Guest RAM: one sparse shared mapping of a memfd, with one byte of flags for each page.

The flags are what lets a page's write permission be revoked: generated code keeps a page writable in its soft TLB only
while its flags are 0, and a write from the host's side (DMA, a loader, the balloon) reports itself with `written`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from vmm.errors import ConfigError, GuestError, HostError
from vmm.fabric.atomics import atomics

PAGE: Final = 4096
MINIMUM: Final = 32 << 20

CODE: Final = 1 << 0
"""Page flag: instructions of this page have been decoded; a write must discard them."""
CLEAN: Final = 1 << 1
"""Page flag: the dirty log is armed and the page has not been written since; the first write clears the flag."""

_MAP_NORESERVE: Final = 0x4000  # Linux on x86-64; `mmap` names it from Python 3.13 on


class DmaFault(GuestError):
    """The guest named an address that is not RAM, or not aligned."""


def _host_ram() -> int:
    """Physical memory of the host, bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Ram:
    """`size` bytes of memory at guest physical address `base`. Pages cost nothing until they are touched.

    `fd` is the memfd, `host` the host address of the first byte, `memory` the mapping. `page_flags` holds one byte a
    page (`CODE`, `CLEAN`) at host address `page_flags_host`; it is shared with generated code, so its bits change
    through atomic operations only.

    `on_code_written(gpa, length)` is called when a page with `CODE` set was written from the host's side. It runs on
    the writing thread, which may hold a device's lock: it must not block, and may take locks of rank VCPU and inward.

    Raises ConfigError for a size below `minimum`, above the host's memory, or not whole pages.
    """

    def __init__(self, base: int, size: int, *, minimum: int = MINIMUM) -> None:
        if size < minimum:
            raise ConfigError(f"--mem {_human(size)} is too little: give the guest at least {_human(minimum)}")
        if size % PAGE or base % PAGE:
            raise ConfigError(f"--mem {size} is not a whole number of pages: use a multiple of {PAGE} bytes")
        if size > (limit := _host_ram()):
            raise ConfigError(f"--mem {_human(size)} is more than this host has: give at most {_human(limit)}")
        self.base: Final = base
        self.size: Final = size
        self.end: Final = base + size
        self.on_code_written: Callable[[int, int], None] = _ignore
        self.fd: Final = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        self._close_fd = weakref.finalize(self, os.close, self.fd)
        try:
            os.ftruncate(self.fd, size)
            self.memory: Final = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | _MAP_NORESERVE)
            self._flags = mmap.mmap(-1, size // PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as e:
            raise HostError(f"--mem {_human(size)}: this host cannot map it ({e}); give the guest less") from e
        self.host: Final = _address_of(self.memory)
        self.page_flags: Final = memoryview(self._flags)
        self.page_flags_host: Final = _address_of(self._flags)
        self._atomics = atomics()

    def __repr__(self) -> str:
        return f"<Ram {_human(self.size)} at {self.base:#x}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def view(self) -> memoryview:
        """The bytes, as a view of the caller's own.

        Threads must not slice one that they share: on free-threaded builds of CPython 3.13 a memoryview counts its
        slices without a lock, and a lost count releases the buffer under everybody.
        """
        return memoryview(self.memory)

    def offset(self, gpa: int, length: int) -> int:
        """Offset into `memory` of `length` bytes at `gpa`. Raises DmaFault unless all of them are RAM."""
        offset = gpa - self.base
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DmaFault(f"{length} bytes at {gpa:#x} are not all RAM ({self.base:#x}..{self.end:#x})")
        return offset

    def written(self, gpa: int, length: int) -> None:
        """Report that the host's side has just written `length` bytes at `gpa`: call it after the last of them.

        Raises DmaFault unless all of them are RAM.
        """
        offset = self.offset(gpa, length)
        if not length:
            return
        first, last = offset // PAGE, (offset + length - 1) // PAGE
        # The write must be visible before the flags are read: a hart sets CODE and then decodes, and one of the two
        # sides has to see the other.
        self._atomics.fence()
        flags = self._flags[first : last + 1]
        if flags.count(0) != len(flags):
            self.flagged(gpa, length)

    def flagged(self, gpa: int, length: int) -> None:
        """The slow half of `written`, for a caller that found a flag set itself (`gpa`, `length` already checked)."""
        offset = gpa - self.base
        code = False
        for page in range(offset // PAGE, (offset + length - 1) // PAGE + 1):
            flags = self._flags[page]
            code = code or bool(flags & CODE)
            if flags & CLEAN:
                self._atomics.and8(self.page_flags_host + page, 0xFF & ~CLEAN)
        if code:
            self.on_code_written(gpa, length)

    def discard(self, gpa: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards. Raises DmaFault outside RAM."""
        offset = self.offset(gpa, length)
        if offset % PAGE or length % PAGE:
            raise DmaFault(f"{length} bytes at {gpa:#x} are not whole pages")
        if length:
            self.memory.madvise(mmap.MADV_REMOVE, offset, length)
            self.written(gpa, length)

    def close(self) -> None:
        """Give the memory back. Nothing that holds its address may still run; windows still open keep it mapped."""
        self._close_fd()
        self.page_flags.release()
        self._flags.close()
        try:
            self.memory.close()
        except BufferError:
            # A worker may still be inside preadv() on a window that `Dma.view` gave out: the last window unmaps.
            pass


def _address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _human(size: int) -> str:
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size >> shift and not size % (1 << shift):
            return f"{size >> shift}{unit}"
    return f"{size >> 20}M" if size >> 24 else str(size)


def _ignore(gpa: int, length: int) -> None:
    """No generated code runs from this memory yet."""
