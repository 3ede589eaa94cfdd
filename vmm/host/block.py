"""Disk images of the host: raw files, block devices, and a throw-away overlay over either.

Offsets and lengths are bytes. Buffers are writable byte views, usually windows into guest RAM, so that data moves
between the page cache and the guest without a copy in between. Methods may block, and any thread may call them at any
time; the `*_now` methods give up instead of blocking. A host that fails raises HostError, and the image stays usable.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from vmm.errors import ConfigError, HostError

#: Every size and offset that a guest can name is a multiple of this.
SECTOR = 512

# <linux/falloc.h>; they work on block devices too, where a punched hole becomes a discard that reads back as zeroes.
FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10

# <linux/fs.h>: logical and physical block size of a block device.
BLKSSZGET = 0x1268
BLKPBSZGET = 0x127B

#: Formats that carry a header of their own, as (offset, bytes, name). A guest that is shown the header instead of its
#: disk finds no partition table, and may write one.
FOREIGN = (
    (0x00, b"QFI\xfb", "qcow2"),
    (0x00, b"QED\0", "qed"),
    (0x00, b"KDMV", "vmdk"),
    (0x00, b"vhdxfile", "vhdx"),
    (0x00, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
)

#: Bytes that one call writes where the host cannot make zeroes by itself.
ZEROES = 1 << 20

Buffers = Sequence[memoryview]
Transfer = Callable[[int, Buffers, int, int], int]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class BlockBackend(Protocol):
    """What a disk model needs of an image; `vmm.testing.block_contract` tests any of them."""

    #: What the user calls it.
    name: str
    #: Bytes, a multiple of `block_size`.
    size: int
    readonly: bool
    #: Whether writes go to the page cache, so that they seldom wait for a device.
    cached: bool
    #: Bytes: the smallest transfer.
    block_size: int
    #: Bytes: the smallest write for which the host need not read first.
    physical_block_size: int

    def read(self, buffers: Buffers, offset: int) -> None: ...

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        """Write; with `durable`, return only when the data would survive a power failure."""

    def read_now(self, buffers: Buffers, offset: int) -> bool:
        """Read if that needs no waiting. False: it does, or the host cannot say; nothing is known of the buffers."""

    def write_now(self, buffers: Buffers, offset: int) -> bool:
        """Write if that needs no waiting. False: it does, or the host cannot say; part may have been written."""

    def flush(self) -> None:
        """Return when all writes that have returned would survive a power failure."""

    def discard(self, offset: int, length: int) -> None:
        """Give storage back. What reads return afterwards is undefined; a host that cannot do it does nothing."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeroes; with `unmap`, storage may be given back."""

    def close(self) -> None:
        """Give up files and locks. No call may be under way, and none may follow."""


def open_image(
    path: str | Path, *, readonly: bool = False, direct: bool = False, snapshot: bool = False
) -> BlockBackend:
    """Open the raw image or block device at `path`.

    `readonly` refuses writes. `direct` goes past the host's page cache (O_DIRECT). `snapshot` leaves `path` as it is:
    writes go to a temporary file that disappears with the machine. An image that is open for writing anywhere is
    refused, as is writing to one that is open at all. Raises ConfigError with one line that names the file and what to
    do.
    """
    raw = RawImage(path, readonly=readonly or snapshot, direct=direct)
    if readonly or not snapshot:
        return raw
    try:
        return Overlay(raw)
    except BaseException:
        raw.close()
        raise


class HostFile:
    """Transfers to and from one open file, whole or not at all as far as the caller is told."""

    def __init__(self, name: str, fd: int, *, direct: bool = False) -> None:
        """`fd` is the caller's to close. `direct` says that it was opened with O_DIRECT."""
        self.name = name
        self.direct = direct
        self.cached = not direct
        self._fd = fd
        # A file system says by EOPNOTSUPP that it cannot tell (ext4: buffered writes; tmpfs: all), and will not later.
        # With O_DIRECT every transfer waits for the device.
        self._now_reads = self._now_writes = not direct

    def read(self, buffers: Buffers, offset: int) -> None:
        self._transfer(os.preadv, "read", buffers, offset, 0)

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        self._transfer(os.pwritev, "write", buffers, offset, os.RWF_DSYNC if durable else 0)

    def read_now(self, buffers: Buffers, offset: int) -> bool:
        if not self._now_reads:
            return False
        try:
            return os.preadv(self._fd, buffers, offset, os.RWF_NOWAIT) == sum(map(len, buffers))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise self._failed("read", offset, error) from error
            self._now_reads = False
            return False

    def write_now(self, buffers: Buffers, offset: int) -> bool:
        if not self._now_writes:
            return False
        try:
            return os.pwritev(self._fd, buffers, offset, os.RWF_NOWAIT) == sum(map(len, buffers))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise self._failed("write", offset, error) from error
            self._now_writes = False
            return False

    def flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed("flush", 0, error) from error

    def discard(self, offset: int, length: int) -> None:
        self._fallocate("discard", FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        how = FALLOC_PUNCH_HOLE if unmap else FALLOC_ZERO_RANGE
        if self._fallocate("write zeroes", how | FALLOC_KEEP_SIZE, offset, length):
            return
        with mmap.mmap(-1, min(length, ZEROES)) as page, memoryview(page) as zeroes:
            for start in range(offset, offset + length, ZEROES):
                self.write([zeroes[: offset + length - start]], start)

    def _transfer(self, call: Transfer, verb: str, buffers: Buffers, offset: int, flags: int) -> None:
        left = sum(map(len, buffers))
        try:
            while left:
                try:
                    done = call(self._fd, buffers, offset, flags)
                except OSError as error:
                    if not self.direct or error.errno != errno.EINVAL:
                        raise
                    done = self._bounced(call, buffers, offset, flags)
                if not done:
                    raise HostError(f"{self.name}: {verb} at {offset}: the file has become shorter")
                left -= done
                if left:
                    offset += done
                    buffers = _skip(buffers, done)
        except OSError as error:
            raise self._failed(verb, offset, error) from error

    def _bounced(self, call: Transfer, buffers: Buffers, offset: int, flags: int) -> int:
        """One transfer by way of a page-aligned buffer, which O_DIRECT wants; a guest's buffers may lie anywhere."""
        with mmap.mmap(-1, sum(map(len, buffers))) as aligned, memoryview(aligned) as bounce:
            if call is os.pwritev:
                start = 0
                for buffer in buffers:
                    bounce[start : start + len(buffer)] = buffer
                    start += len(buffer)
            done = call(self._fd, [bounce], offset, flags)
            if call is os.preadv:
                start = 0
                for buffer in _take(buffers, done):
                    buffer[:] = bounce[start : start + len(buffer)]
                    start += len(buffer)
            return done

    def _fallocate(self, verb: str, mode: int, offset: int, length: int) -> bool:
        """False when the host's file system or device knows no such thing."""
        while _libc.fallocate(self._fd, mode, offset, length) != 0:
            number = ctypes.get_errno()
            if number in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            if number != errno.EINTR:
                raise self._failed(verb, offset, OSError(number, os.strerror(number)))
        return True

    def _failed(self, verb: str, offset: int, error: OSError) -> HostError:
        return HostError(f"{self.name}: {verb} at {offset}: {error.strerror}")


class RawImage(HostFile):
    """A file or block device whose bytes are the disk's bytes."""

    def __init__(self, path: str | Path, *, readonly: bool = False, direct: bool = False) -> None:
        super().__init__(str(path), _open(str(path), readonly, direct), direct=direct)
        self.readonly = readonly
        try:
            _lock(self._fd, self.name, readonly)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
            self.block_size, self.physical_block_size = self._block_sizes()
            self._refuse_unusable()
        except BaseException:
            os.close(self._fd)
            raise

    def __repr__(self) -> str:
        return f"<RawImage {self.name} {self.size} bytes{' readonly' * self.readonly}{' direct' * self.direct}>"

    def flush(self) -> None:
        if not self.readonly:
            super().flush()

    def close(self) -> None:
        os.close(self._fd)

    def _block_sizes(self) -> tuple[int, int]:
        about = os.fstat(self._fd)
        logical, physical = SECTOR, max(SECTOR, about.st_blksize)
        if stat.S_ISBLK(about.st_mode):
            logical, physical = (
                struct.unpack("i", fcntl.ioctl(self._fd, request, bytes(4)))[0] for request in (BLKSSZGET, BLKPBSZGET)
            )
        if self.direct:
            logical = max(logical, self._direct_alignment())
        return logical, max(logical, physical)

    def _direct_alignment(self) -> int:
        """The smallest offset that O_DIRECT takes here, found by trying: only Linux 6.1 and later can be asked."""
        with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view:
            for alignment in (SECTOR, 1024, 2048):
                try:
                    with view[:alignment] as buffer:
                        os.preadv(self._fd, [buffer], alignment)
                    return alignment
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise self._failed("read", alignment, error) from error
        return mmap.PAGESIZE

    def _refuse_unusable(self) -> None:
        if self.size == 0:
            raise ConfigError(f"{self.name}: the disk is empty; give it a size: truncate -s 1G {self.name}")
        if self.size % self.block_size:
            raise ConfigError(
                f"{self.name}: {self.size} bytes are not a multiple of its block size {self.block_size}; "
                f"round it up: truncate -s %{self.block_size} {self.name}"
            )
        with mmap.mmap(-1, self.block_size) as block, memoryview(block) as view:
            self.read([view], 0)
            kind = next((kind for at, magic, kind in FOREIGN if view[at : at + len(magic)] == magic), None)
        if kind is not None:
            raise ConfigError(
                f"{self.name}: this is a {kind} image, not a raw one; convert it: "
                f"qemu-img convert -O raw {self.name} disk.raw"
            )


class Overlay:
    """Writes to a temporary sparse file, reads from it where written, otherwise from the image below.

    What has been written is known by sector: one integer of bits for each 64 KiB that was touched. Copying a cluster up
    before its first partial write (as qcow2 does) lost: it needs a lock across two transfers, or two writers to one
    cluster undo each other.
    """

    CLUSTER = 64 * 1024
    _SECTORS = CLUSTER // SECTOR
    _WHOLE = (1 << _SECTORS) - 1

    def __init__(self, below: BlockBackend) -> None:
        """Take over `below`: it is closed with the overlay. The temporary file goes to $TMPDIR, or /var/tmp."""
        self.name = below.name
        self.size = below.size
        self.readonly = False
        self.cached = True
        self.block_size = below.block_size
        self.physical_block_size = below.physical_block_size
        self._below = below
        directory = os.environ.get("TMPDIR") or "/var/tmp"
        try:
            self._fd, path = tempfile.mkstemp(prefix="vmm-snapshot-", dir=directory)
            os.unlink(path)
            os.truncate(self._fd, self.size)
        except OSError as error:
            raise ConfigError(
                f"{self.name}: no temporary file for its snapshot in {directory}: {error.strerror}; set TMPDIR"
            ) from error
        self._above = HostFile(f"the snapshot of {self.name}", self._fd)
        # Guards updates of `_written`, which read before they write. A leaf: nothing is called while it is held.
        self._lock = threading.Lock()
        self._written: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Overlay over {self._below!r}, {len(self._written)} clusters of {self.CLUSTER} bytes touched>"

    def read(self, buffers: Buffers, offset: int) -> None:
        for file, part, start in self._runs(buffers, offset):
            file.read(part, start)

    def read_now(self, buffers: Buffers, offset: int) -> bool:
        return all(file.read_now(part, start) for file, part, start in self._runs(buffers, offset))

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        """As the protocol says, but never durable: a power failure loses the temporary file as a whole."""
        self._above.write(buffers, offset)
        self._mark(offset, sum(map(len, buffers)))

    def write_now(self, buffers: Buffers, offset: int) -> bool:
        if not self._above.write_now(buffers, offset):
            return False
        self._mark(offset, sum(map(len, buffers)))
        return True

    def flush(self) -> None:
        """As `write` says: nothing to keep."""

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length, unmap=True)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self._above.write_zeroes(offset, length, unmap=unmap)
        self._mark(offset, length)

    def close(self) -> None:
        os.close(self._fd)
        self._below.close()

    def _mark(self, offset: int, length: int) -> None:
        first, end = offset // SECTOR, (offset + length) // SECTOR
        with self._lock:
            for cluster in range(first // self._SECTORS, -(-end // self._SECTORS)):
                base = cluster * self._SECTORS
                low, high = max(first - base, 0), min(end - base, self._SECTORS)
                self._written[cluster] = self._written.get(cluster, 0) | ((1 << high) - (1 << low))

    def _runs(self, buffers: Buffers, offset: int) -> Iterator[tuple[HostFile | BlockBackend, Buffers, int]]:
        """Split a transfer into (file, its buffers, offset) where the file that holds the bytes changes."""
        for written, pieces in groupby(self._pieces(offset, sum(map(len, buffers))), key=lambda piece: piece[0]):
            length = sum(size for _, size in pieces)
            yield self._above if written else self._below, _take(buffers, length), offset
            buffers = _skip(buffers, length)
            offset += length

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[bool, int]]:
        """(written, bytes) for each cluster of the range that is all one or the other, and each sector of the rest."""
        end = offset + length
        while offset < end:
            cluster, within = divmod(offset, self.CLUSTER)
            bits = self._written.get(cluster, 0)
            size = self.CLUSTER - within if bits in (0, self._WHOLE) else SECTOR
            yield bool(bits >> (within // SECTOR) & 1), min(size, end - offset)
            offset += size


def _open(name: str, readonly: bool, direct: bool) -> int:
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISBLK(mode) and not readonly:
            # The kernel then refuses a device that is mounted or otherwise in use (open(2), O_EXCL without O_CREAT).
            flags |= os.O_EXCL
        elif not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise ConfigError(f"{name}: a disk must be a file or a block device")
        return os.open(name, flags)
    except OSError as error:
        advice = {
            errno.ENOENT: "check the path",
            errno.EACCES: "change its permissions" if readonly else "change its permissions, or open it readonly",
            errno.EROFS: "open it readonly, or as a snapshot",
            errno.EPERM: "open it readonly, or as a snapshot",
            errno.EBUSY: "unmount it first, or open it readonly",
            errno.EINVAL: "its file system may have no O_DIRECT: leave that out",
        }.get(error.errno or 0)
        raise ConfigError(f"{name}: {error.strerror}{f'; {advice}' if advice else ''}") from error


def _lock(fd: int, name: str, readonly: bool) -> None:
    """Lock the whole file: shared for reading, exclusive for writing.

    Open file description locks (fcntl(2)) conflict within a process too, and with the byte ranges that QEMU locks.
    """
    kind = fcntl.F_RDLCK if readonly else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(
                f"{name}: in use {'for writing ' if readonly else ''}by this or another machine; "
                f"stop that one, or give each its own copy"
            ) from error
        raise ConfigError(f"{name}: cannot be locked: {error.strerror}; copy it to a local file system") from error


def _take(buffers: Buffers, length: int) -> Buffers:
    """The first `length` bytes of `buffers`."""
    taken = []
    for buffer in buffers:
        if not length:
            break
        taken.append(buffer[:length])
        length -= len(taken[-1])
    return taken


def _skip(buffers: Buffers, length: int) -> Buffers:
    """All but the first `length` bytes of `buffers`."""
    kept = []
    for buffer in buffers:
        if length < len(buffer):
            kept.append(buffer[length:])
        length = max(0, length - len(buffer))
    return kept
