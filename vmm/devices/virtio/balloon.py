"""A traditional memory balloon (virtio 1.2, 5.5): pages that the driver gives up go back to the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct, iter_unpack
from types import MappingProxyType
from typing import ClassVar, Final

from vmm.devices.virtio.device import HomeThread, VirtioDevice, VirtioState
from vmm.devices.virtio.queue import Chain
from vmm.errors import ConfigError, GuestError, HostError
from vmm.fabric.dma import Dma
from vmm.fabric.irq import Wire
from vmm.fabric.ram import PAGE
from vmm.locks import Locking, entry, lockfree

# -- features (5.5.3)
STATS_VQ: Final = 1 << 1
DEFLATE_ON_OOM: Final = 1 << 2

# -- queues (5.5.2)
INFLATE: Final = 0
DEFLATE: Final = 1
STATS: Final = 2

ACTUAL: Final = 4
"""Offset of `actual` in the configuration."""
LARGEST: Final = 1 << 16
"""Bytes that the driver may send in one chain; Linux sends 1 KiB."""
NONE: Final = -1

#: Statistics by tag (5.5.6.4); bytes, except for the counts of faults and huge pages.
TAGS: Final = (
    "swapped_in",
    "swapped_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "disk_caches",
    "huge_pages_allocated",
    "huge_pages_failed",
)

_CONFIG: Final = Struct("<II")
_STATISTIC: Final = Struct("<HQ")


@dataclass(slots=True)
class BalloonState(VirtioState):
    num_pages: int = 0
    """Pages of 4 KiB that the host wants. The host's wish, not the guest's doing: a reset leaves it alone."""
    actual: int = 0
    """Pages that the driver says it has given."""
    stats_held: int = NONE
    """The chain of the statistics queue that the device keeps, to ask for fresh ones by handing it back."""


class VirtioBalloon(VirtioDevice):
    """Takes pages in and gives them back; also asks the driver for its memory statistics."""

    kind: ClassVar = "virtio-balloon"
    device_id: ClassVar = 5
    queue_sizes: ClassVar = (64, 64, 16)
    State: ClassVar = BalloonState
    _state: BalloonState

    def __init__(
        self,
        name: str,
        locking: Locking,
        *,
        dma: Dma,
        wire: Wire,
        home: HomeThread,
        deflate_on_oom: bool = False,
    ) -> None:
        """With `deflate_on_oom` a guest out of memory may take pages back unasked."""
        features = STATS_VQ | (DEFLATE_ON_OOM if deflate_on_oom else 0)
        super().__init__(name, locking, dma=dma, wire=wire, home=home, features=features)
        # What the driver last said about its memory, by name.
        self._memory: Mapping[str, int] = MappingProxyType({})

    # -- doors for the host's side ------------------------------------------------------------------------------------

    @entry
    def set_target(self, size: int) -> None:
        """Ask the driver to give `size` bytes of its memory, or to take back what is beyond. Raises ConfigError."""
        if size % PAGE or not 0 <= size <= self._dma.ram.size:
            raise ConfigError(f"{self.name}: {size} bytes are not whole pages of {PAGE}, or more than the guest has")
        self._state.num_pages = size // PAGE
        self._config_changed()

    @entry
    def given(self) -> int:
        """Bytes that the driver says it has given."""
        return self._state.actual * PAGE

    @entry
    def ask_statistics(self) -> bool:
        """Ask the driver for fresh statistics. False: an answer to an earlier question, or a driver, is missing."""
        held = self._state.stats_held
        if held == NONE or not self._running():
            return False
        self._state.stats_held = NONE
        self._complete(STATS, [(held, 0)])
        return True

    @entry
    def memory(self) -> Mapping[str, int]:
        """The driver's latest statistics, by the names of `TAGS`; those it does not keep are missing."""
        return self._memory

    # -- queues -------------------------------------------------------------------------------------------------------

    @lockfree("takes the lock to take chains and to hand them back; works on them without it", home=True)
    def serve(self, index: int) -> None:
        if index != STATS:
            super().serve(index)
            return
        with self._lock:
            epoch = self._epochs[STATS]
            chains = self._take(STATS)
        if not chains:
            return
        try:
            with self._in_flight.progress.serving():
                try:
                    for chain in chains:
                        self.keep_statistics(epoch, chain.head, self.gathered(chain))
                except GuestError as error:
                    self.finish(STATS, epoch, (), error)
        finally:
            self._in_flight.end(len(chains))

    @entry
    def keep_statistics(self, epoch: int, head: int, data: bytes) -> None:
        """Take note of a statistics buffer, and keep it instead of the one before."""
        if epoch != self._epochs[STATS]:
            return
        if self._state.stats_held != NONE:
            self._complete(STATS, [(self._state.stats_held, 0)])
        self._state.stats_held = head
        whole = data[: len(data) // _STATISTIC.size * _STATISTIC.size]
        self._memory = MappingProxyType(
            {TAGS[tag]: value for tag, value in _STATISTIC.iter_unpack(whole) if tag < len(TAGS)}
        )

    @lockfree("runs between take and hand-back; touches guest memory only")
    def handle(self, index: int, chain: Chain) -> int:
        frames = self.gathered(chain)
        if len(frames) % 4:
            raise GuestError(f"{len(frames)} bytes are no array of page numbers")
        if index == INFLATE:
            for first, count in _runs(sorted({frame for (frame,) in iter_unpack("<I", frames)})):
                try:
                    self._dma.ram.discard(first * PAGE, count * PAGE)
                except OSError as error:
                    # The driver has given the pages up all the same; the host merely does not profit.
                    self.not_discarded(error)
        return 0

    @entry
    def not_discarded(self, error: OSError) -> None:
        """The host kept pages that it was given."""
        self._note_host(HostError(f"pages were not given back: {error.strerror}"))

    @lockfree("runs between take and hand-back; copies from guest memory only")
    def gathered(self, chain: Chain) -> bytes:
        """What the driver sent in one chain. Raises GuestError when that is too much, or leaves room for an answer."""
        length = sum(size for _, size in chain.readable)
        if chain.writable or length > LARGEST:
            raise GuestError(f"balloon message of {length} bytes with {len(chain.writable)} buffers to write to")
        return b"".join(self._dma.read(*part) for part in chain.readable)

    def _started(self) -> None:
        self._memory = MappingProxyType({})

    def _fresh_state(self) -> BalloonState:
        return self.State(num_pages=self._state.num_pages)

    def _config(self) -> bytes:
        return _CONFIG.pack(self._state.num_pages, self._state.actual)

    def _configure(self, offset: int, size: int, value: int) -> None:
        if (offset, size) == (ACTUAL, 4):
            self._state.actual = value


def _runs(frames: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) for each stretch of consecutive numbers: one call to the host gives back many pages."""
    start = 0
    for at in range(1, len(frames) + 1):
        if at == len(frames) or frames[at] != frames[at - 1] + 1:
            yield frames[start], at - start
            start = at
