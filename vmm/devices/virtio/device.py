"""What all virtio devices share (virtio 1.2, chapter 2 and 3.1), below any transport and above any queue's meaning.

A device's work has three steps: take chains from a queue under the lock, copy and do host I/O without it, hand the
chains back under it. Between take and hand-back the work belongs to an epoch of its queue; a reset starts a new epoch,
waits for copies in flight, and drops whatever of the old epoch is handed back later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final, Literal, Protocol

from vmm.devices.saved import load_state, save_state
from vmm.devices.virtio.queue import Chain, QueueState, Virtqueue
from vmm.errors import DeadlineError, GuestError, HostError, SnapshotError
from vmm.fabric.dma import Dma
from vmm.fabric.doorbell import Doorbell, Home
from vmm.fabric.inflight import InFlight
from vmm.fabric.irq import Unconnected, Wire
from vmm.fabric.workers import Posts
from vmm.locks import Device, Locking, entry, lockfree
from vmm.state import DeviceState

# -- device status (2.1)
ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64
FAILED: Final = 128

# -- feature bits that are not one device type's own (chapter 6)
RING_INDIRECT_DESC: Final = 1 << 28
RING_EVENT_IDX: Final = 1 << 29
VERSION_1: Final = 1 << 32

# -- why the device interrupts (4.2.2, InterruptStatus; 4.1.4.5, ISR status)
USED_BUFFER: Final = 1
CONFIG_CHANGED: Final = 2

#: Seconds that a reset waits for host I/O that writes to guest memory.
RESET_DEADLINE: Final = 5.0

Ring = Literal["descriptors", "driver", "device"]


class HomeThread(Home, Posts, Protocol):
    """The thread that serves queues: `vmm.fabric.iothread.IoThread`, or a test's."""

    @property
    def name(self) -> str: ...

    @property
    def is_home(self) -> bool:
        """Whether the caller runs on this thread."""


@dataclass(slots=True)
class VirtioState(DeviceState):
    """Volatile state of any virtio device, without its queues. The defaults are the reset values."""

    status: int = 0
    device_features_select: int = 0
    driver_features_select: int = 0
    driver_features: int = 0
    queue_select: int = 0
    interrupt: int = 0
    """USED_BUFFER and CONFIG_CHANGED, until the driver acknowledges them."""
    config_generation: int = 0

    def broken(self) -> str | None:
        if self.status & DRIVER_OK and not self.status & FEATURES_OK:
            return "DRIVER_OK without FEATURES_OK"
        if self.interrupt & ~(USED_BUFFER | CONFIG_CHANGED):
            return f"interrupt causes {self.interrupt:#x} do not exist"
        return None


@dataclass(slots=True)
class VirtioStatistics:
    """What a device has done since it was made."""

    notifications: int = 0
    """Answers to the driver's doorbells."""
    chains: int = 0
    """Buffers handed back."""
    interrupts: int = 0
    suppressed: int = 0
    """Batches handed back for which the driver wanted no interrupt."""
    refused: int = 0
    """Accesses that no register of the transport answers."""
    guest_errors: int = 0
    host_errors: int = 0
    last_error: str = ""


class VirtioDevice(Device):
    """A device model gives its type, queues, features and configuration, and the meaning of its chains."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    device_id: ClassVar[int]
    """Chapter 5."""
    queue_sizes: ClassVar[tuple[int, ...]]
    """The largest size of each queue."""
    State: ClassVar[type[VirtioState]] = VirtioState
    StateOfQueue: ClassVar[type[QueueState]] = QueueState

    def __init__(
        self,
        name: str,
        locking: Locking,
        *,
        dma: Dma,
        wire: Wire,
        home: HomeThread,
        features: int = 0,
    ) -> None:
        """`features` are those of the device type. Queues are served on `home`."""
        super().__init__(name, locking)
        # -- fixed configuration
        self.features: Final = features | VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC
        self.reset_deadline = RESET_DEADLINE
        # -- wiring
        self._dma = dma
        self._wire = wire
        self._home = home
        self.doorbells: Final = tuple(
            Doorbell(home, partial(self.serve, index), f"{name}.{index}") for index in range(len(self.queue_sizes))
        )
        self._in_flight = InFlight(name, locking.kit)
        self._epochs = [0] * len(self.queue_sizes)
        self._resetting = self._quiet = False
        self._statistics = VirtioStatistics()
        # -- volatile state
        self._state = self.State()
        self._queues = self._made_queues([self.StateOfQueue() for _ in self.queue_sizes])

    # -- identification and features (2.2) ----------------------------------------------------------------------------

    @entry
    def device_features(self) -> int:
        """The selected 32 of the features on offer."""
        select = self._state.device_features_select
        return self.features >> 32 * select & 0xFFFFFFFF if select < 2 else 0

    @entry
    def select_device_features(self, word: int) -> None:
        self._state.device_features_select = word

    @entry
    def select_driver_features(self, word: int) -> None:
        self._state.driver_features_select = word

    @entry
    def set_driver_features(self, value: int) -> None:
        """The selected 32 of the features that the driver accepts; fixed once FEATURES_OK is set."""
        s = self._state
        if s.driver_features_select < 2 and not s.status & FEATURES_OK:
            shift = 32 * s.driver_features_select
            s.driver_features = s.driver_features & ~(0xFFFFFFFF << shift) | (value & 0xFFFFFFFF) << shift

    # -- status and reset (2.1, 2.4) ----------------------------------------------------------------------------------

    @entry
    def status(self) -> int:
        return self._state.status

    @lockfree("a reset waits with the lock free; anything else goes through `advance`")
    def set_status(self, value: int) -> None:
        if value & 0xFF:
            self.advance(value)
        else:
            self.reset()

    @entry
    def advance(self, value: int) -> None:
        """Set status bits. None is ever cleared but by a reset (2.1.1)."""
        s = self._state
        if self._resetting:
            return
        fresh = value & ~s.status
        s.status |= fresh & (ACKNOWLEDGE | DRIVER | FAILED)
        if fresh & FEATURES_OK and s.driver_features & VERSION_1 and not s.driver_features & ~self.features:
            s.status |= FEATURES_OK
            self._negotiated()
        if fresh & DRIVER_OK:
            if not s.status & FEATURES_OK:
                self._fail(GuestError("DRIVER_OK before FEATURES_OK"))
                return
            s.status |= DRIVER_OK
            self._start()

    @lockfree("takes the lock for each step: the wait between them needs it free")
    def reset(self) -> None:
        """Close the intake, wait for copies in flight, go back to the reset values.

        When the copies outlast the deadline the device keeps NEEDS_RESET, takes no work, and may be reset again: its
        memory is not the guest's to reuse yet. (Under the big-lock policy a VCPU waits here with that lock, which the
        copies do not need: they end on the thread that makes them, before any callback.)
        """
        with self._lock:
            self._resetting = True
            self._epochs = [epoch + 1 for epoch in self._epochs]
        idle = self._in_flight.wait(self.reset_deadline)
        with self._lock:
            if idle:
                self._resetting = False
                self._state = self._fresh_state()
                self._queues = self._made_queues([self.StateOfQueue() for _ in self.queue_sizes])
            else:
                self._state.status |= NEEDS_RESET
                self._note_host(HostError(f"reset gave up after {self.reset_deadline:g} s: {self._in_flight}"))
            self._sync()

    # -- queues (2.6, 2.7) --------------------------------------------------------------------------------------------

    @entry
    def select_queue(self, index: int) -> None:
        self._state.queue_select = index

    @entry
    def queue_size_max(self) -> int:
        """The largest size of the selected queue; 0 when there is no such queue."""
        queue = self._selected()
        return queue.largest if queue else 0

    @entry
    def set_queue_size(self, size: int) -> None:
        if (queue := self._selected()) and not queue.state.ready:
            queue.state.size = size

    @entry
    def set_descriptors_low(self, value: int) -> None:
        self._set_ring("descriptors", 0, value)

    @entry
    def set_descriptors_high(self, value: int) -> None:
        self._set_ring("descriptors", 32, value)

    @entry
    def set_driver_low(self, value: int) -> None:
        self._set_ring("driver", 0, value)

    @entry
    def set_driver_high(self, value: int) -> None:
        self._set_ring("driver", 32, value)

    @entry
    def set_device_low(self, value: int) -> None:
        self._set_ring("device", 0, value)

    @entry
    def set_device_high(self, value: int) -> None:
        self._set_ring("device", 32, value)

    @entry
    def queue_ready(self) -> int:
        queue = self._selected()
        return int(queue is not None and queue.state.ready)

    @lockfree("stopping a queue waits with the lock free; starting one goes through `start_queue`")
    def set_queue_ready(self, value: int) -> None:
        if value & 1:
            self.start_queue()
        else:
            self.stop_queue()

    @entry
    def start_queue(self) -> None:
        """Take the selected queue's rings into use."""
        queue = self._selected()
        if queue is None or queue.state.ready or self._resetting:
            return
        try:
            queue.enable()
        except GuestError as error:
            self._fail(error)
        else:
            self._negotiate(queue)

    @lockfree("takes the lock for each step: the wait between them needs it free")
    def stop_queue(self) -> None:
        """Let go of the selected queue, once nothing in flight writes to its buffers."""
        with self._lock:
            queue = self._selected()
            if queue is None or not queue.state.ready:
                return
            queue.disable()
            index = self._queues.index(queue)
            self._epochs[index] += 1
        idle = self._in_flight.wait(self.reset_deadline)
        with self._lock:
            if not idle:
                self._state.status |= NEEDS_RESET
                self._note_host(HostError(f"queue {index} is still in use: {self._in_flight}"))
            elif self._queues[index] is queue:
                self._queues[index] = Virtqueue(self._dma, queue.largest, self.StateOfQueue())

    @lockfree("writes an eventfd")
    def notify(self, index: int) -> None:
        """The driver has added to queue `index`. What native code does for a doorbell, it does without this call."""
        if index < len(self.doorbells):
            self.doorbells[index].ring()

    # -- interrupts and configuration (2.3, 2.5) ----------------------------------------------------------------------

    @entry
    def interrupt_status(self) -> int:
        return self._state.interrupt

    @entry
    def acknowledge_interrupt(self, causes: int) -> None:
        self._state.interrupt &= ~causes
        self._sync()

    @entry
    def config_generation(self) -> int:
        return self._state.config_generation

    @entry
    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes of the configuration; what lies behind its end reads 0."""
        return int.from_bytes(self._config()[offset : offset + size], "little")

    @entry(posts=True)
    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write to the configuration. What the driver may not write is ignored."""
        self._configure(offset, size, value)

    # -- serving ------------------------------------------------------------------------------------------------------

    @lockfree("`serve_some` takes the lock", home=True)
    def serve(self, index: int) -> None:
        """Work on what the driver has made available in queue `index`."""
        self.serve_some(index)

    @lockfree("takes the lock to take chains and to hand them back; works on them without it", home=True)
    def serve_some(self, index: int, most: int = 1 << 15) -> bool:
        """Work on `most` chains of queue `index`. False: there were none, and the driver will notify of the next."""
        with self._lock:
            epoch = self._epochs[index]
            chains = self._take(index, most)
        if not chains:
            return False
        try:
            with self._in_flight.progress.serving():
                done: list[tuple[int, int]] = []
                fault: GuestError | None = None
                try:
                    for chain in chains:
                        done.append((chain.head, self.handle(index, chain)))
                except GuestError as error:
                    fault = error
                self.finish(index, epoch, done, fault)
        finally:
            self._in_flight.end(len(chains))
        return True

    @lockfree("runs between take and hand-back; touches guest memory and the host only")
    def handle(self, index: int, chain: Chain) -> int:
        """Do what one chain of queue `index` asks for. Returns the bytes written to it; raises GuestError."""
        raise NotImplementedError

    @entry
    def finish(self, index: int, epoch: int, done: Sequence[tuple[int, int]], fault: GuestError | None) -> None:
        """Hand chains back as (head, bytes written), unless their queue was reset meanwhile."""
        if epoch != self._epochs[index]:
            return
        self._complete(index, done)
        if fault is not None:
            self._fail(fault)

    # -- life outside the guest ---------------------------------------------------------------------------------------

    @lockfree("takes the lock for each step: the wait between them needs it free")
    def quiesce(self, timeout: float) -> None:
        """Take no more work and wait for what is under way, for a pause or a snapshot.

        Raises DeadlineError when that takes longer than `timeout` seconds; the device is quiet then all the same.
        """
        with self._lock:
            self._quiet = True
        if not self._in_flight.wait(timeout):
            raise DeadlineError(f"{self.name} did not come to rest within {timeout:g} s: {self._in_flight}")
        self.deliver()

    @property
    @lockfree("made with the device")
    def in_flight(self) -> InFlight:
        """Its work on guest memory without its lock."""
        return self._in_flight

    @entry
    def deliver(self) -> None:
        """Hand back what other threads have finished."""

    @entry
    def resume(self) -> None:
        """Go on after `quiesce`: look at every queue, whatever was rung meanwhile."""
        self._quiet = False
        self._ring_all()

    @entry
    def save(self) -> dict[str, Any]:
        """The state as (kind, version, fields), and each queue's. Raises SnapshotError while work is under way."""
        if self._in_flight.count:
            raise SnapshotError(f"{self.name} cannot be saved while work is under way: {self._in_flight}")
        queues = [save_state("virtqueue", 1, queue.state) for queue in self._queues]
        return {**save_state(self.kind, self.version, self._state), "queues": queues}

    @entry
    def restore(self, payload: Mapping[str, Any]) -> None:
        """Take over a saved state. Raises SnapshotError, and changes nothing, when it is not one of this device."""
        state: VirtioState = load_state(self.kind, self.version, self.State(), payload)
        saved = payload.get("queues")
        if not isinstance(saved, list) or len(saved) != len(self.queue_sizes):
            raise SnapshotError(f"saved {self.kind} does not have {len(self.queue_sizes)} queues")
        if state.driver_features & ~self.features:
            raise SnapshotError(f"saved {self.kind} uses features {state.driver_features:#x} that {self.name} lacks")
        try:
            queues = self._made_queues([load_state("virtqueue", 1, self.StateOfQueue(), one) for one in saved])
        except GuestError as error:
            raise SnapshotError(f"saved {self.kind}: {error}") from error
        self._epochs = [epoch + 1 for epoch in self._epochs]
        self._state, self._queues = state, queues
        for queue in queues:
            self._negotiate(queue)
        self._sync()
        self._ring_all()

    @entry
    def refuse(self) -> None:
        """Count an access that the transport does not answer."""
        self._statistics.refused += 1

    @entry
    def statistics(self) -> VirtioStatistics:
        return replace(self._statistics)

    @entry
    def leave(self) -> None:
        """Be out of the machine: take nothing on, hand nothing back, drive no line any more. Accesses that began before
        may still come in by the other doors, to a device that does nothing. It is never resumed."""
        self._quiet = True
        self._epochs = [epoch + 1 for epoch in self._epochs]
        self._state.interrupt = 0
        self._sync()
        self._wire = Unconnected()

    @lockfree("asks the count of copies in flight, which has a lock of its own")
    def when_idle(self, call: Callable[[], None]) -> None:
        """Have `call` called, once, when nothing is in flight; on any thread, so it should only post."""
        self._in_flight.when_idle(call)

    @lockfree("posts to the home thread")
    def close(self) -> None:
        """Have the home thread close the doorbells. Once nobody rings any more."""
        for doorbell in self.doorbells:
            self._home.call_soon(doorbell.close)

    # -- for the model ------------------------------------------------------------------------------------------------

    def _fresh_state(self) -> VirtioState:
        """The state after a reset."""
        return self.State()

    def _config(self) -> bytes:
        """The device's configuration space as it is now."""
        return b""

    def _configure(self, offset: int, size: int, value: int) -> None:
        """The driver wrote `size` bytes to the configuration."""

    def _negotiated(self) -> None:
        """The driver has set FEATURES_OK."""

    def _started(self) -> None:
        """The driver has set DRIVER_OK."""

    def _running(self) -> bool:
        """Whether queues may be worked on. It implies FEATURES_OK."""
        return self._state.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK and not (
            self._resetting or self._quiet
        )

    def _take(self, index: int, most: int = 1 << 15) -> list[Chain]:
        """What is available in queue `index`. Whoever works on it ends as much in `_in_flight`, when it has been
        handed back or `deliver` will do so: a device at rest owns no chain that a snapshot would forget.

        Unless that is `most` chains, the driver will notify when it adds another.
        """
        queue = self._queues[index]
        chains: list[Chain] = []
        if not queue.state.ready or not self._running():
            return chains
        self._statistics.notifications += 1
        try:
            while len(chains) < most and (chain := queue.pop()) is not None:
                chains.append(chain)
        except GuestError as error:
            self._fail(error)
            return []
        self._in_flight.begin(len(chains))
        return chains

    def _complete(self, index: int, done: Sequence[tuple[int, int]]) -> None:
        """Hand chains back and interrupt, if the driver wants that."""
        queue = self._queues[index]
        if not done or not queue.state.ready:
            return
        if queue.complete(done):
            self._interrupt(USED_BUFFER)
        else:
            self._statistics.suppressed += 1
        self._statistics.chains += len(done)

    def _config_changed(self) -> None:
        """Tell the driver that the device has changed its configuration."""
        self._state.config_generation = self._state.config_generation + 1 & 0xFFFFFFFF
        if self._state.status & DRIVER_OK:
            self._interrupt(CONFIG_CHANGED)

    def _fail(self, error: GuestError) -> None:
        """The driver did what it must not: stop, and say so to it (2.1.2) and in the statistics."""
        self._statistics.guest_errors += 1
        self._statistics.last_error = str(error)
        self._state.status |= NEEDS_RESET
        if self._state.status & DRIVER_OK:
            self._interrupt(CONFIG_CHANGED)

    def _note_host(self, error: HostError) -> None:
        self._statistics.host_errors += 1
        self._statistics.last_error = str(error)

    def _sync(self) -> None:
        self._wire.set(self._state.interrupt != 0)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _interrupt(self, cause: int) -> None:
        self._statistics.interrupts += 1
        self._state.interrupt |= cause
        self._sync()

    def _start(self) -> None:
        for queue in self._queues:
            self._negotiate(queue)
        self._started()
        self._ring_all()

    def _ring_all(self) -> None:
        """Drivers may add buffers before DRIVER_OK, and ring then in vain."""
        for queue, doorbell in zip(self._queues, self.doorbells, strict=True):
            if queue.state.ready:
                doorbell.ring()

    def _negotiate(self, queue: Virtqueue) -> None:
        accepted = self._state.driver_features
        queue.negotiate(event_index=bool(accepted & RING_EVENT_IDX), indirect=bool(accepted & RING_INDIRECT_DESC))

    def _selected(self) -> Virtqueue | None:
        index = self._state.queue_select
        return self._queues[index] if index < len(self._queues) else None

    def _set_ring(self, ring: Ring, shift: int, value: int) -> None:
        if (queue := self._selected()) and not queue.state.ready:
            kept = getattr(queue.state, ring) & ~(0xFFFFFFFF << shift)
            setattr(queue.state, ring, kept | (value & 0xFFFFFFFF) << shift)

    def _made_queues(self, states: list[QueueState]) -> list[Virtqueue]:
        return [Virtqueue(self._dma, size, state) for size, state in zip(self.queue_sizes, states, strict=True)]
