"""An entropy source (virtio 1.2, 5.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from vmm.devices.virtio.device import HomeThread, VirtioDevice
from vmm.devices.virtio.queue import Chain
from vmm.errors import GuestError
from vmm.fabric.dma import Dma
from vmm.fabric.irq import Wire
from vmm.locks import Locking, lockfree

#: Bytes that one buffer gets, however large: with the queue full, one turn of the home thread makes 64 KiB (0.2 ms).
LARGEST: Final = 4096


class VirtioRng(VirtioDevice):
    """Fills the driver's buffers with random bytes. 5.4.6.2 allows fewer than there is room for, but not none."""

    kind: ClassVar = "virtio-rng"
    device_id: ClassVar = 4
    queue_sizes: ClassVar = (16,)

    def __init__(
        self,
        name: str,
        locking: Locking,
        *,
        dma: Dma,
        wire: Wire,
        home: HomeThread,
        entropy: Callable[[int], bytes],
    ) -> None:
        """`entropy(n)` returns n random bytes without waiting, as os.urandom() does."""
        super().__init__(name, locking, dma=dma, wire=wire, home=home)
        # -- wiring
        self._entropy = entropy

    @lockfree("runs between take and hand-back; touches guest memory only")
    def handle(self, index: int, chain: Chain) -> int:
        if chain.readable or not chain.writable:
            raise GuestError("a request for entropy must be all room to write to")
        written = 0
        for address, length in chain.writable:
            length = min(length, LARGEST - written)
            self._dma.write(address, self._entropy(length))
            written += length
        return written
