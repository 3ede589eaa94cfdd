"""A tour of the whole machine under checked locks: every device, every wait, one after the other.

It sees each edge that the program can make in the order graph, and always the same ones, whatever the timing: the page
`docs/lock-order.md` is made of what it sees. The harts do what the tour asks of them, by a mailbox each, so that an
access is that of a real VCPU thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.assembler import RAM_BASE, assemble
from tests.machine.files import elf
from vmm.bql import Policy
from vmm.devices.finisher import PASS
from vmm.devices.virtio import blk
from vmm.fabric.dma import Dma
from vmm.lockgraph import Edge
from vmm.machine import virt
from vmm.machine.config import MIN_MEM, Config, Drive
from vmm.machine.lifecycle import Reason
from vmm.machine.machine import Machine
from vmm.testing.virtio_driver import Buffer, Driver, DriverQueue

DEADLINE_S: Final = 60.0
PROGRAM: Final = RAM_BASE + 0x20_0000
BOXES: Final = RAM_BASE + 0x40_0000
BOX_BYTES: Final = 64
RINGS: Final = RAM_BASE + 0x50_0000
HSM: Final = 0x48534D
DBCN: Final = 0x4442434E

_OPERATIONS: Final = {
    "load1": "lbu a0, 0(a0)",
    "load2": "lhu a0, 0(a0)",
    "load4": "lwu a0, 0(a0)",
    "store1": "sb a1, 0(a0)",
    "store2": "sh a1, 0(a0)",
    "store4": "sw a1, 0(a0)",
    "call": "j call",
}

_GUEST = """
            # s0 mailbox: what to do (0: nothing), four arguments, the answer
    start:  li    s0, BOXES; slli t0, a0, 6; add s0, s0, t0
    next:   ld    t0, 0(s0); beqz t0, next
            la    t1, table; slli t0, t0, 4; add t1, t1, t0
            ld    a0, 8(s0); ld a1, 16(s0)
            jr    t1
    call:   ld    a6, 24(s0); ld a7, 32(s0)
            ecall
    done:   sd    a0, 40(s0)
            .word 0x0ff0000f                # fence iorw, iorw
            sd    zero, 0(s0)
            j     next
            .align 16
    table:  TABLE
"""


class Tour:
    """A machine with every device and two harts, of which the second rests until it is started."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        table = "\n".join(f"{text}; j done; .align 16" for text in ("nop", *_OPERATIONS.values()))
        code = assemble(_GUEST.replace("TABLE", table), PROGRAM, BOXES=BOXES)
        kernel, disk = folder / "kernel", folder / "disk"
        kernel.write_bytes(elf([(PROGRAM, code, len(code)), (BOXES, b"", 0x1000)]))
        for file in (disk, folder / "disk2"):
            file.write_bytes(bytes(1 << 20))
        self.folder = folder
        self.machine = Machine(
            Config(
                kernel=kernel,
                mem=MIN_MEM,
                smp=2,
                drive=(Drive(disk),),
                console="null",
                balloon=True,
                locking=policy,
                check_locks=True,
            )
        )
        self.board: Any = self.machine._board
        self.dma = Dma(self.board.ram)
        self._free = RINGS

    def edges(self) -> list[Edge]:
        """What was seen so far. Raises AssertionError if anything was reported."""
        checker = self.machine.locking.checker
        assert checker is not None
        assert not checker.reports, str(checker.reports[0])
        return checker.graph.edges()

    # -- what a Driver needs of its bench -----------------------------------------------------------------------------

    def allocate(self, length: int, alignment: int = 16) -> int:
        at = self._free + -self._free % alignment
        self._free = at + length
        return at

    def run(self) -> None:
        """The machine runs by itself."""

    # -- the harts ----------------------------------------------------------------------------------------------------

    def ask(self, hart: int, operation: str, *arguments: int) -> int:
        """Have a hart do something, and wait for it."""
        self.tell(hart, operation, *arguments)
        box = BOXES + hart * BOX_BYTES
        until(lambda: not self.dma.u64(box))
        return self.dma.u64(box + 40)

    def tell(self, hart: int, operation: str, *arguments: int) -> None:
        """The same for what no hart comes back from."""
        box = BOXES + hart * BOX_BYTES
        for at, argument in enumerate(arguments):
            self.dma.put_u64(box + 8 + 8 * at, argument)
        self.dma.put_u64(box, 1 + list(_OPERATIONS).index(operation))

    def call(self, hart: int, extension: int, function: int, *arguments: int) -> int:
        first, second = (*arguments, 0, 0)[:2]
        return self.ask(hart, "call", first, second, function, extension)

    def load(self, address: int, size: int = 4) -> int:
        return self.ask(0, f"load{size}", address)

    def store(self, address: int, value: int, size: int = 4) -> None:
        self.ask(0, f"store{size}", address, value)

    # -- the stops ----------------------------------------------------------------------------------------------------

    def serial_port(self) -> None:
        """Output, input, and input too little to fill the FIFO, which a timer tells of."""
        base = virt.UART.base
        self.store(base, ord("x"), 1)
        self.store(base + 2, 0xC1, 1)  # FIFOs on, interrupt at 14 characters
        self.store(base + 1, 1, 1)
        self.machine.serial.send("abc")
        until(lambda: self.load(base + 2, 1) & 0xF == 12)  # a receive timeout
        assert [self.load(base, 1) for _ in range(3)] == list(b"abc")

    def clock(self) -> None:
        """An alarm that is still to come when it has been set is the timer's to tell."""
        base = virt.RTC.base
        delay, running = 1_000_000, 0
        while not running:
            delay *= 2
            at = (self.load(base) | self.load(base + 4) << 32) + delay
            self.store(base + 12, at >> 32)
            self.store(base + 8, at & 0xFFFF_FFFF)
            running = self.load(base + 24)
        until(lambda: not self.load(base + 24))

    def second_hart(self) -> None:
        """Started, stopped by itself, started again."""
        for _ in range(2):
            self.dma.put_u64(BOXES + BOX_BYTES, 0)
            assert self.call(0, HSM, 0, 1, PROGRAM) == 0
            assert self.ask(1, "load4", virt.FINISHER.base) == 0
            self.tell(1, "call", 0, 0, 1, HSM)
            until(lambda: self.board.hart_states.status(1) == 1)

    def debug_console(self) -> None:
        self.call(0, DBCN, 2, ord("y"))

    def disk(self) -> None:
        """A read that needs no waiting, one that waits, and two of them at once, for the workers."""
        driver, (queue,) = self.driver("disk0")
        header = blk._HEADER.pack
        self.use(queue, (header(blk.Kind.IN, 0, 0),), (512, 1))
        self.use(queue, (header(blk.Kind.FLUSH, 0, 0),), (1,))
        flushes = [queue.add((header(blk.Kind.FLUSH, 0, 0),), (1,)) for _ in range(2)]
        self.finish(queue, *flushes)
        self.leave(driver)

    def entropy(self) -> None:
        driver, (queue,) = self.driver("rng")
        self.use(queue, (), (16,))
        self.leave(driver)

    def balloon(self) -> None:
        driver, (inflate, _, statistics) = self.driver("balloon")
        driver.device.set_target(4096)
        self.use(inflate, ((RAM_BASE + MIN_MEM - 4096 >> 12).to_bytes(4, "little"),))
        statistics.add((bytes(10),))
        statistics.kick()
        until(lambda: driver.device.ask_statistics())
        self.leave(driver)

    def port(self) -> None:
        """Both ways."""
        driver, (receive, transmit) = self.driver("console")
        self.use(transmit, (b"out",))
        buffer = receive.add((), (16,))
        receive.kick()
        self.board.slots._slots[self.machine.slots().index("console")].holds.part.chardev.send(b"in")
        self.finish(receive, buffer)
        self.leave(driver)

    def driver(self, name: str) -> tuple[Driver, list[DriverQueue]]:
        """A driver whose register accesses are hart 0's."""
        slot = self.machine.slots().index(name)
        device = self.board.slots._slots[slot].holds.device
        made = Driver(self, Slot(self, device, virt.VIRTIO[slot].base))  # type: ignore[arg-type]
        return made, made.start(size=16)

    def use(self, queue: DriverQueue, readable: tuple[bytes, ...], room: tuple[int, ...] = ()) -> None:
        self.finish(queue, queue.add(readable, room))

    def finish(self, queue: DriverQueue, *buffers: Buffer) -> None:
        """Make chains available and wait until they are used."""
        queue.want_interrupt()
        queue.kick()
        used: set[int] = set()

        def all_used() -> bool:
            used.update(head for head, _ in queue.collect())
            return used >= {buffer.head for buffer in buffers}

        until(all_used)

    def leave(self, driver: Driver) -> None:
        """Interrupts, configuration, the end of a queue, a reset: from a hart, and from outside a notification."""
        driver.write("InterruptACK", driver.read("InterruptStatus"))
        driver.read("ConfigGeneration")
        driver.config(0, 4)
        driver.set_config(0, 4, 0)
        driver.write("QueueSel", 0)
        driver.write("QueueReady", 0)
        driver.write("Status", 0)

    def come_and_go(self) -> None:
        """A disk, whose thread ends with it."""
        slot = self.machine.plug(Drive(self.folder / "disk2"))
        assert self.load(virt.VIRTIO[slot].base + 8) == blk.VirtioBlk.device_id
        self.machine.unplug(slot)
        assert self.load(virt.VIRTIO[slot].base + 8) == 0

    def lifecycle(self) -> None:
        self.machine.pause()
        self.machine.resume()
        self.machine.reset()
        self.machine.pause()
        self.machine.reset()
        self.machine.resume()
        assert self.load(virt.FINISHER.base) == 0

    def power_off(self) -> None:
        self.tell(0, "store4", virt.FINISHER.base, PASS)
        outcome = self.machine.wait(DEADLINE_S)
        assert outcome is not None
        assert outcome.reason is Reason.POWER_OFF, outcome

    def io_fails(self) -> None:
        """A callback that raises ends the machine."""
        self.board.io.call_soon(_fails)
        outcome = self.machine.wait(DEADLINE_S)
        assert outcome is not None
        assert "on purpose" in outcome.report

    STOPS: Final[tuple[Callable[[Tour], None], ...]] = (
        *(serial_port, clock, second_hart, debug_console, disk, entropy, balloon, port),
        *(come_and_go, lifecycle, power_off),
    )


class Slot:
    """A virtio-mmio window as a hart reaches it."""

    def __init__(self, tour: Tour, device: Any, base: int) -> None:
        self._tour, self.device, self._base = tour, device, base

    def read(self, offset: int, size: int) -> int:
        return self._tour.load(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._tour.store(self._base + offset, value, size)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("the machine does not do what the tour asked of it")


def _fails() -> None:
    raise OSError("on purpose")


@contextmanager
def started(folder: Path, policy: Policy) -> Iterator[Tour]:
    tour = Tour(folder, policy)
    with tour.machine:
        tour.machine.start()
        yield tour


def tour(folder: Path, policy: Policy) -> list[Edge]:
    """Every edge in the order in which it was first seen, and again from a second machine."""
    edges: list[Edge] = []
    for stops in (Tour.STOPS, (Tour.io_fails,)):
        with started(folder, policy) as machine:
            for stop in stops:
                stop(machine)
        edges += machine.edges()
    return edges
