"""What a watchdog sees of a machine."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.locks import Locking
from vmm.machine.lifecycle import Lifecycle
from vmm.machine.virt import Board
from vmm.waitfor import Tells
from vmm.watchdog import Section


class MachineView:
    """A machine's parts, as the watchdog looks at them: from its own thread, at any time."""

    def __init__(self, locking: Locking, lifecycle: Lifecycle, board: Board) -> None:
        self._board = board
        self._first: tuple[Tells, ...] = (locking, lifecycle, board.harts, board.workers, board.slots)

    @property
    def parts(self) -> Iterable[Tells]:
        return (*self._first, *self._board.io_threads)

    def sections(self) -> Iterable[Section]:
        board = self._board
        yield "harts", board.harts.standing()
        yield "interrupts", board.harts.interrupts()
        yield (
            "timers",
            [
                f"{name} ({clock.name} clock) due in {due / 1e6:+.3f} ms{', which is paused' if clock.paused else ''}"
                for clock in (board.clock, board.wall_clock)
                for name, due in clock.armed()
            ],
        )
        yield "DMA and I/O", list(self._io())

    def _io(self) -> Iterable[str]:
        board = self._board
        for device in board.virtio:
            yield f"{device.name}: copies in flight: {device.in_flight.count}"
        for call, s in board.workers.statistics().running.items():
            yield f"{call} for {s:.1f} s"
        for thread in board.io_threads:
            yield f"{thread.name}: {thread.statistics().running or 'asleep or between callbacks'}"
