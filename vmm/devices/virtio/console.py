"""A console with one port (virtio 1.2, 5.3).

Linux sends to a console port with its spinlocks taken, and spins until the device has used the buffer: a hart waits for
the host's reader, and soon the others wait for that hart. So a congested line is waited for, but not for ever.
"""

from __future__ import annotations

from struct import Struct
from typing import ClassVar, Final, Protocol

from vmm.devices.virtio.device import HomeThread, VirtioDevice
from vmm.devices.virtio.queue import Chain
from vmm.errors import GuestError
from vmm.fabric.clock import Clock
from vmm.fabric.dma import Dma
from vmm.fabric.irq import Wire
from vmm.locks import Locking, entry, lockfree

# -- features (5.3.3)
SIZE: Final = 1 << 0
EMERG_WRITE: Final = 1 << 2

# -- queues (5.3.2)
RECEIVE: Final = 0
TRANSMIT: Final = 1

QUEUE_SIZE: Final = 64
EMERGENCY: Final = 8
"""Offset of `emerg_wr` in the configuration."""
PATIENCE: Final = 5_000_000_000
"""Nanoseconds of guest time for which a line may stay congested. Linux complains of a stalled hart after 20 s."""
LARGEST: Final = 1 << 20
"""Bytes that the driver may send in one chain; Linux sends a page."""

_CONFIG: Final = Struct("<HHII")


class Line(Protocol):
    """The host's end (`vmm.host.chardev`). Its methods queue and wake; they neither block nor call back."""

    @property
    def congested(self) -> bool:
        """Whether to put nothing more for now. `output_ready` is called after this has become false."""

    def put(self, data: bytes) -> None:
        """Send `data`."""

    def lost(self, count: int) -> None:
        """`count` bytes were not sent, since nobody took those before."""

    def input_ready(self) -> None:
        """There is room again after `receive` took less than it was offered."""


class VirtioConsole(VirtioDevice):
    """Bytes both ways. Input waits in the line while the driver has no buffer for it. Output waits in the driver's ring
    while the line is congested; when that has lasted for `PATIENCE`, output is lost, and counted, until it ends.

    Losers: losing output at once, as QEMU does, breaks off a log that a pipe's reader takes in its own time; waiting
    without end leaves a guest hanging whose console nobody reads.
    """

    kind: ClassVar = "virtio-console"
    device_id: ClassVar = 3
    queue_sizes: ClassVar = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(
        self,
        name: str,
        locking: Locking,
        *,
        dma: Dma,
        wire: Wire,
        home: HomeThread,
        clock: Clock,
        line: Line,
        size: tuple[int, int] | None = None,
    ) -> None:
        """`size` is (columns, rows), if the driver is to know. Connect the line to this device as its front end."""
        features = EMERG_WRITE | (SIZE if size else 0)
        super().__init__(name, locking, dma=dma, wire=wire, home=home, features=features)
        # -- wiring
        self._line = line
        self._clock = clock
        self._size = size or (0, 0)
        # Home thread only: input on its way to the driver; whether the line is waited for; whether for too long.
        self._input = b""
        self._waiting = self._losing = False
        self._timer = clock.timer(self.lose_patience, f"{name} line congested")

    # -- doors for the host's side ------------------------------------------------------------------------------------

    @lockfree("`serve_some` takes the lock", home=True)
    def receive(self, data: bytes) -> int:
        """Input arrives. Returns how much of it there was room for."""
        self._input = data
        while self._input and self.serve_some(RECEIVE, 1):
            pass
        return len(data) - len(self._input)

    @lockfree("a virtio console has no break condition")
    def line_break(self) -> None:
        """Nothing to pass on."""

    @lockfree("`serve` takes the lock", home=True)
    def output_ready(self) -> None:
        """The line is not congested any more."""
        self._timer.cancel()
        self._waiting = self._losing = False
        self.serve(TRANSMIT)

    @lockfree("`serve` takes the lock", home=True)
    def lose_patience(self) -> None:
        """The line has been congested for too long."""
        self._losing = self._line.congested
        self.serve(TRANSMIT)

    @entry
    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now."""
        if (columns, rows) != self._size:
            self._size = (columns, rows)
            self._config_changed()

    # -- queues -------------------------------------------------------------------------------------------------------

    @lockfree("takes the lock to take chains and to hand them back; copies without it", home=True)
    def serve(self, index: int) -> None:
        if index == RECEIVE:
            self._line.input_ready()
            return
        for _ in range(QUEUE_SIZE):
            if (self._line.congested and not self._losing) or not self.serve_some(TRANSMIT, 1):
                break
        else:  # a driver that never ends must let the thread's other work have its turn
            self.doorbells[TRANSMIT].ring()
        if self._line.congested and not self._waiting:
            self._waiting = True
            self._timer.arm(self._clock.now() + PATIENCE)

    @lockfree("runs between take and hand-back; touches guest memory and the line only")
    def handle(self, index: int, chain: Chain) -> int:
        return self.fill(chain) if index == RECEIVE else self.send(chain)

    @lockfree("part of `handle`")
    def fill(self, chain: Chain) -> int:
        """Put as much input into a chain as it has room for."""
        if chain.readable or not chain.writable:
            raise GuestError("a console input buffer must be all room to write to")
        before = len(self._input)
        for address, size in chain.writable:
            self._dma.write(address, self._input[:size])
            self._input = self._input[size:]
        return before - len(self._input)

    @lockfree("part of `handle`")
    def send(self, chain: Chain) -> int:
        """Put a chain's bytes on the line; lose them when those before have not been taken for too long."""
        length = sum(size for _, size in chain.readable)
        if chain.writable or length > LARGEST:
            raise GuestError(f"console output of {length} bytes with {len(chain.writable)} buffers to write to")
        data = b"".join(self._dma.read(*part) for part in chain.readable)
        if self._losing:
            self._line.lost(length)
        else:
            self._line.put(data)
        return 0

    def _config(self) -> bytes:
        return _CONFIG.pack(*self._size, 1, 0)

    def _configure(self, offset: int, size: int, value: int) -> None:
        # 5.3.4: it works on a device that nobody has set up, and takes the low byte of whatever is written.
        if offset == EMERGENCY:
            self._line.put(bytes((value & 0xFF,)))
