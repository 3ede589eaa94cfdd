"""A program for each device of the board: VCPUs, the host's side, timers, workers and resets use its doors.

What a program checks is what a guest may rely on whatever the order: nothing is lost, and no interrupt is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from vmm.devices import uart16550 as uart
from vmm.devices.finisher import FAIL, PASS, RESET, Finisher
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.devices.uart16550 import Uart16550
from vmm.devices.virtio.balloon import ACTUAL, STATS, VirtioBalloon
from vmm.devices.virtio.blk import Kind, VirtioBlk
from vmm.devices.virtio.console import PATIENCE, TRANSMIT, VirtioConsole
from vmm.devices.virtio.device import NEEDS_RESET
from vmm.devices.virtio.rng import VirtioRng
from vmm.fabric.ram import PAGE
from vmm.host.block import Buffers
from vmm.locks import Device
from vmm.machine.sbi import Error, HartStates, HartStatus
from vmm.testing.schedule import Scheduler
from vmm.testing.schedule.surroundings import (
    ScheduledClock,
    ScheduledHome,
    ScheduledLine,
    ScheduledVirtioBench,
    ScheduledWire,
)

SECTOR: Final = 512


# -- UART --------------------------------------------------------------------------------------------------------------


def make_uart(s: Scheduler, home: ScheduledHome) -> tuple[Uart16550, ScheduledLine, ScheduledWire, ScheduledClock]:
    clock = ScheduledClock(s, home)
    line, wire = ScheduledLine(s), ScheduledWire(s, "uart irq")
    device = s.locking().make(Uart16550, "uart", wire=wire, clock=clock, line=line, input_hz=3_686_400)
    line.connect(device)
    return device, line, wire, clock


def uart_receive(s: Scheduler) -> None:
    """A VCPU reads what the line brings, while the receive timeout runs."""
    home = ScheduledHome(s)
    device, line, wire, clock = make_uart(s, home)
    device.write(2, 1, uart.FCR_ENABLE | 0x80)  # the FIFO interrupts at eight characters, or after a timeout
    device.write(1, 1, uart.IER_RECEIVED)
    got = bytearray()

    def read_all() -> None:
        while device.read(5, 1) & uart.LSR_DATA_READY:
            got.append(device.read(0, 1))

    s.spawn("vcpu0", read_all)
    s.spawn("line", lambda: [line.type(byte) for byte in (b"a", b"bc", b"d")])
    s.spawn("time", clock.advance, 10**10)

    def end() -> None:
        clock.advance(10**10)
        home.run()
        left = bool(device.read(5, 1) & uart.LSR_DATA_READY)
        assert wire.level == left, "characters wait, and time has passed, but nothing tells the guest"
        read_all()
        assert got == b"abcd"
        assert not wire.level

    s.check(end)


def uart_transmit(s: Scheduler) -> None:
    """A VCPU writes while the line is congested and recovers, and another one reads what interrupts."""
    device, line, wire, _ = make_uart(s, ScheduledHome(s))
    line.congested = True
    device.write(1, 1, uart.IER_THR_EMPTY)

    def send() -> None:
        for byte in b"xy":
            while not device.read(5, 1) & uart.LSR_THR_EMPTY:
                pass
            device.write(0, 1, byte)

    s.spawn("vcpu0", send)
    s.spawn("vcpu1", device.read, 2, 1)
    s.spawn("line", line.relieve)

    def end() -> None:
        assert line.sent == b"xy"
        assert not line.lost_bytes
        iir = device.read(2, 1)
        assert iir in (uart.IIR_THR_EMPTY, uart.IIR_NONE)
        assert not wire.level  # acknowledged by that read, if it was still pending

    s.check(end)


def uart_reset(s: Scheduler) -> None:
    """The machine resets the UART while its line brings input and a timeout is due: it ends silent."""
    device, line, wire, clock = make_uart(s, ScheduledHome(s))
    device.write(2, 1, uart.FCR_ENABLE | 0xC0)
    device.write(1, 1, uart.IER_RECEIVED)
    s.spawn("line", line.type, b"hello")
    s.spawn("time", clock.advance, 10**10)
    s.spawn("reset", device.reset)

    def end() -> None:
        assert not wire.level, "interrupts are off after a reset"
        assert device.read(2, 1) == uart.IIR_NONE

    s.check(end)


# -- RTC ---------------------------------------------------------------------------------------------------------------


def rtc_alarm(s: Scheduler) -> None:
    """A VCPU sets an alarm while time passes; another one reads the clock."""
    home = ScheduledHome(s)
    clock = ScheduledClock(s, home, 5 << 32)
    wire = ScheduledWire(s, "rtc irq")
    rtc = s.locking().make(GoldfishRtc, "rtc", wire=wire, clock=clock)

    def set_alarm() -> None:
        rtc.write(0x0C, 4, 5)
        rtc.write(0x08, 4, 1000)
        rtc.write(0x10, 4, 1)

    def read_time() -> None:
        low, high = rtc.read(0x00, 4), rtc.read(0x04, 4)
        assert (high, low) in ((5, 0), (5, 600), (5, 1200))

    s.spawn("vcpu0", set_alarm)
    s.spawn("vcpu1", read_time)
    s.spawn("time", lambda: [clock.advance(600) for _ in range(2)])

    def end() -> None:
        assert rtc.read(0x18, 4) == 0, "the alarm is still to come"
        assert wire.level, "it is due, and does not interrupt"

    s.check(end)


def rtc_acknowledged(s: Scheduler) -> None:
    """The alarm is disarmed, and its interrupt acknowledged, while it comes due."""
    home = ScheduledHome(s)
    clock = ScheduledClock(s, home)
    wire = ScheduledWire(s, "rtc irq")
    rtc = s.locking().make(GoldfishRtc, "rtc", wire=wire, clock=clock)
    rtc.write(0x10, 4, 1)
    rtc.write(0x08, 4, 1000)

    def disarm() -> None:
        rtc.write(0x14, 4, 0)
        rtc.write(0x1C, 4, 0)

    s.spawn("vcpu0", disarm)
    s.spawn("time", clock.advance, 2000)

    def end() -> None:
        assert not rtc.read(0x18, 4)
        assert not wire.level, "an alarm that was disarmed and acknowledged interrupts"

    s.check(end)


# -- finisher ----------------------------------------------------------------------------------------------------------


def finisher(s: Scheduler) -> None:
    """Three VCPUs end the machine at once: each is passed on once, with the device's lock free."""
    asked: list[object] = []
    device: Finisher

    def power_off(code: int) -> None:
        assert not device._lock.held()
        s.point("asked write")
        asked.append(code)

    def restart() -> None:
        assert not device._lock.held()
        s.point("asked write")
        asked.append("restart")

    device = s.locking().make(Finisher, "finisher", power_off=power_off, restart=restart)
    for index, value in enumerate((PASS, FAIL | 7 << 16, RESET)):
        s.spawn(f"vcpu{index}", device.write, 0, 4, value)
    s.check(lambda: sorted(map(str, asked)) == ["0", "7", "restart"])


# -- virtio ------------------------------------------------------------------------------------------------------------


class MemoryDisk:
    """A disk in memory. What it can do without waiting is up to `ready`."""

    name = "memory"
    size = 64 * SECTOR
    readonly = False
    cached = True
    block_size = physical_block_size = SECTOR

    def __init__(self, s: Scheduler, *, ready: bool) -> None:
        self.data = bytearray(self.size)
        self._ready = ready
        self._s = s

    def read(self, buffers: Buffers, offset: int) -> None:
        for buffer in buffers:
            self._s.point("disk read")
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        for buffer in buffers:
            self._s.point("disk write")
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def read_now(self, buffers: Buffers, offset: int) -> bool:
        if self._ready:
            self.read(buffers, offset)
        return self._ready

    def write_now(self, buffers: Buffers, offset: int) -> bool:
        if self._ready:
            self.write(buffers, offset)
        return self._ready

    def flush(self) -> None:
        self._s.point("disk write")

    def discard(self, offset: int, length: int) -> None:
        """It keeps everything."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        """It has nothing to give back."""


def erase(bench: ScheduledVirtioBench) -> None:
    """Use all memory for something else."""
    bench.ram.memory[:] = bytes(bench.ram.size)


def erased(bench: ScheduledVirtioBench) -> bool:
    return bench.ram.memory[:] == bytes(bench.ram.size)


def blk_requests(s: Scheduler, *, ready: bool = False) -> None:
    """A driver writes two sectors; another hart acknowledges interrupts and changes the cache mode."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    disk = MemoryDisk(s, ready=ready)
    driver = bench.make(VirtioBlk, disk=disk, workers=bench.workers)
    (queue,) = driver.start(size=8)
    queue.want_interrupt()

    def ask() -> None:
        for sector in (1, 2):
            header = struct.pack("<IIQ", Kind.OUT, 0, sector)
            queue.add([header, bytes([sector]) * SECTOR], [1])
            queue.kick()

    def acknowledge() -> None:
        driver.set_config(32, 1, 0)
        driver.interrupt()

    s.spawn("vcpu0", ask)
    s.spawn("vcpu1", acknowledge)

    def end() -> None:
        assert len(queue.collect()) == 2
        assert disk.data[SECTOR : 3 * SECTOR] == b"\1" * SECTOR + b"\2" * SECTOR
        assert bench.wire.level == bool(driver.read("InterruptStatus"))
        driver.device.quiesce(0)

    s.check(end)


def blk_requests_at_once(s: Scheduler) -> None:
    """The same when the home thread can serve them without a worker."""
    blk_requests(s, ready=True)


def blk_reset(s: Scheduler, *, own_thread: bool = False) -> None:
    """A driver resets the disk with requests on their way: once the reset is done, memory is the driver's own."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    disk = MemoryDisk(s, ready=False)
    disk.data[:] = b"d" * disk.size
    driver = bench.make(VirtioBlk, disk=disk, workers=bench.workers, own_thread=own_thread)
    (queue,) = driver.start(size=8)
    buffers = [queue.add([struct.pack("<IIQ", Kind.IN, 0, sector)], [SECTOR, 1]) for sector in (1, 2)]

    def use() -> None:
        queue.kick()
        driver.write("Status", 0)
        assert driver.read("Status") == 0
        erase(bench)

    s.spawn("vcpu0", use)

    def end() -> None:
        assert erased(bench), "the device wrote to memory after its reset"
        assert not any(buffer.answer(SECTOR).strip(b"\0") for buffer in buffers)
        assert driver.read("InterruptStatus") == 0
        assert not bench.wire.level

    s.check(end)


def blk_reset_own_thread(s: Scheduler) -> None:
    """The same where the disk has a thread of its own, which waits for a lone request itself."""
    blk_reset(s, own_thread=True)


def blk_quiesce(s: Scheduler, *, own_thread: bool = False) -> None:
    """A pause, and the run after it, while requests are on their way: none is lost, and none done meanwhile."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    disk = MemoryDisk(s, ready=False)
    driver = bench.make(VirtioBlk, disk=disk, workers=bench.workers, own_thread=own_thread)
    (queue,) = driver.start(size=8)
    device: VirtioBlk = driver.device
    for sector in (1, 2):
        queue.add([struct.pack("<IIQ", Kind.OUT, 0, sector), b"w" * SECTOR], [1])

    def pause() -> None:
        device.quiesce(5.0)
        used = queue.dma.u16(queue.used + 2)
        device.save()
        assert queue.dma.u16(queue.used + 2) == used, "the device works although it is at rest"
        device.resume()

    s.spawn("vcpu0", queue.kick)
    s.spawn("lifecycle", pause)
    s.check(lambda: len(queue.collect()) == 2)


def blk_quiesce_own_thread(s: Scheduler) -> None:
    """The same where the disk has a thread of its own."""
    blk_quiesce(s, own_thread=True)


def blk_two_resets(s: Scheduler) -> None:
    """Two harts reset the disk, and a third stops its queue, with a request on its way: none of them is stuck."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    driver = bench.make(VirtioBlk, disk=MemoryDisk(s, ready=False), workers=bench.workers)
    (queue,) = driver.start(size=8)
    queue.add([struct.pack("<IIQ", Kind.IN, 0, 1)], [SECTOR, 1])

    def reset() -> None:
        driver.write("Status", 0)

    def use() -> None:
        queue.kick()
        driver.write("Status", 0)

    def stop() -> None:
        driver.write("QueueSel", 0)
        driver.write("QueueReady", 0)

    s.spawn("vcpu0", use)
    s.spawn("vcpu1", reset)
    s.spawn("vcpu2", stop)

    def end() -> None:
        assert driver.read("Status") == 0
        assert driver.read("QueueReady") == 0
        assert not bench.wire.level
        (again,) = driver.start(size=8)
        assert not driver.read("Status") & NEEDS_RESET
        assert again.size == 8

    s.check(end)


def rng_reset(s: Scheduler) -> None:
    """The driver asks, and stops the queue and resets at once."""
    bench = ScheduledVirtioBench(s, size=1 << 18)

    def entropy(count: int) -> bytes:
        s.point("entropy read")
        return b"r" * count

    driver = bench.make(VirtioRng, entropy=entropy)
    (queue,) = driver.start(size=4)
    queue.add([], [16])

    def use() -> None:
        queue.kick()
        driver.write("QueueSel", 0)
        driver.write("QueueReady", 0)
        assert driver.read("QueueReady") == 0
        erase(bench)
        driver.write("Status", 0)

    s.spawn("vcpu0", use)
    s.spawn("vcpu1", driver.interrupt)

    def end() -> None:
        assert erased(bench), "the device wrote to memory of a queue that was stopped"
        assert not bench.wire.level

    s.check(end)


def rng_requests(s: Scheduler) -> None:
    """Two buffers, added while the device works on the first: the notification that it asks for is enough."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    driver = bench.make(VirtioRng, entropy=bytes)
    (queue,) = driver.start(size=4)
    queue.want_interrupt()

    def ask() -> None:
        for _ in range(2):
            queue.add([], [4])
            queue.kick()

    s.spawn("vcpu0", ask)
    s.spawn("vcpu1", driver.interrupt)

    def end() -> None:
        assert len(queue.collect()) == 2

    s.check(end)


def rng_interrupts(s: Scheduler) -> None:
    """A driver that sleeps until it is interrupted is interrupted, whenever it looked last (2.7.8)."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    driver = bench.make(VirtioRng, entropy=bytes)
    (queue,) = driver.start(size=4)
    queue.want_no_interrupt()
    seen: list[int] = []

    def ask() -> None:
        for _ in range(2):
            queue.add([], [4])
            queue.kick()

    def sleep() -> None:
        """Ask for an interrupt, and look again before sleeping."""
        while True:
            queue.want_interrupt()
            bench.dma.fence()
            new = queue.collect()
            if not new:
                return
            seen.extend(head for head, _ in new)

    s.spawn("vcpu0", ask)
    s.spawn("vcpu1", sleep)

    def end() -> None:
        left = len(queue.collect())
        assert len(seen) + left == 2
        assert bench.wire.level or not left, "the driver sleeps, and chains wait for it"

    s.check(end)


def console_transmit(s: Scheduler) -> None:
    """The driver sends while the line is congested and recovers; output comes out whole and in order."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    line = ScheduledLine(s)
    line.congested = True
    driver = bench.make(VirtioConsole, clock=bench.clock, line=line)
    line.connect(driver.device)
    queue = driver.start(size=4)[TRANSMIT]

    def send() -> None:
        for text in (b"one ", b"two"):
            queue.add([text])
            queue.kick()

    def relieve() -> None:
        line.congested = False
        bench.home.call_soon(driver.device.output_ready)

    s.spawn("vcpu0", send)
    s.spawn("host", relieve)
    s.spawn("resize", driver.device.resize, 80, 25)

    def end() -> None:
        assert line.sent == b"one two"
        assert not line.lost_bytes
        assert driver.read("InterruptStatus") & 2, "the driver is not told of the new size"

    s.check(end)


def console_impatient(s: Scheduler) -> None:
    """A line stays congested for longer than anybody waits, and recovers about then: no buffer stays with the device,
    and every byte is sent or counted as lost."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    line = ScheduledLine(s)
    line.congested = True
    driver = bench.make(VirtioConsole, clock=bench.clock, line=line)
    line.connect(driver.device)
    queue = driver.start(size=4)[TRANSMIT]

    def send() -> None:
        for text in (b"one ", b"two"):
            queue.add([text])
            queue.kick()

    def relieve() -> None:
        line.congested = False
        bench.home.call_soon(driver.device.output_ready)

    s.spawn("vcpu0", send)
    s.spawn("time", bench.clock.advance, 2 * PATIENCE)
    s.spawn("host", relieve)

    def end() -> None:
        assert len(queue.collect()) == 2
        assert len(line.sent) + line.lost_bytes == 7

    s.check(end)


def console_receive(s: Scheduler) -> None:
    """Input arrives while the driver adds buffers: all of it reaches the driver."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    line = ScheduledLine(s)
    driver = bench.make(VirtioConsole, clock=bench.clock, line=line)
    line.connect(driver.device)
    queue = driver.start(size=4)[0]
    buffers = []

    def pump() -> None:
        """What a real line does when there is room again."""
        bench.home.call_soon(line.pump)

    line.input_ready = pump  # type: ignore[method-assign]

    def add() -> None:
        for _ in range(3):
            buffers.append(queue.add([], [2]))
            queue.kick()

    s.spawn("vcpu0", add)
    s.spawn("host", bench.home.call_soon, line.type, b"hello")

    def end() -> None:
        used = dict(queue.collect())
        got = b"".join(buffer.answer(used[buffer.head]) for buffer in buffers if buffer.head in used)
        assert got == b"hello"[: len(got)]
        assert got == b"hello" or line.waiting == 0
        assert got == b"hello"

    s.check(end)


def balloon(s: Scheduler) -> None:
    """The host asks for memory and statistics while the driver answers."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    driver = bench.make(VirtioBalloon)
    inflate, _, stats = driver.start(size=4)
    device: VirtioBalloon = driver.device

    def host() -> None:
        device.set_target(PAGE)
        device.ask_statistics()
        device.memory()

    def guest() -> None:
        stats.add([struct.pack("<HQ", 4, 1000)])
        stats.kick()
        inflate.add([struct.pack("<I", (bench.ram.base >> 12) + 50)])
        inflate.kick()
        driver.set_config(ACTUAL, 4, 1)

    s.spawn("monitor", host)
    s.spawn("vcpu0", guest)
    s.spawn("vcpu1", driver.interrupt)

    def end() -> None:
        assert device.given() == PAGE
        assert driver.config(0, 4) == 1
        assert device.memory() == {"free": 1000}
        assert len(inflate.collect()) == 1
        assert not driver.read("Status") & NEEDS_RESET
        device.ask_statistics()
        assert len(stats.collect()) == 1, "a statistics buffer was handed back twice, or not at all"

    s.check(end)
    assert stats.index == STATS


def balloon_config(s: Scheduler) -> None:
    """The driver reads the target while the host changes it: an unchanged generation means a value that was whole, and
    the last one is announced."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    driver = bench.make(VirtioBalloon)
    driver.start(size=4)
    device: VirtioBalloon = driver.device
    told: list[int] = []

    def host() -> None:
        for pages in (3, 5):
            device.set_target(pages * PAGE)

    def guest() -> None:
        """What Linux does: acknowledge first, then read."""
        if driver.interrupt():
            while True:
                generation = driver.read("ConfigGeneration")
                pages = driver.config(0, 4)
                if driver.read("ConfigGeneration") == generation:
                    break
            told.append(pages)

    s.spawn("monitor", host)
    s.spawn("vcpu0", lambda: [guest() for _ in range(2)])

    def end() -> None:
        guest()
        assert told[-1] == 5
        assert not bench.wire.level

    s.check(end)


def balloon_reset(s: Scheduler) -> None:
    """A reset while statistics are on their way: the buffer of the old driver is never handed back to the new."""
    bench = ScheduledVirtioBench(s, size=1 << 18)
    driver = bench.make(VirtioBalloon)
    stats = driver.start(size=4)[STATS]
    device: VirtioBalloon = driver.device
    stats.add([struct.pack("<HQ", 4, 1000)])

    def guest() -> None:
        stats.kick()
        driver.write("Status", 0)
        erase(bench)

    s.spawn("vcpu0", guest)
    s.spawn("monitor", device.ask_statistics)

    def end() -> None:
        assert not device.ask_statistics(), "it holds a buffer of before the reset"
        assert erased(bench)

    s.check(end)


# -- harts -------------------------------------------------------------------------------------------------------------


def hart_states(s: Scheduler) -> None:
    """Two harts start a third at once, which reports itself: exactly one of them does start it."""
    started: list[int] = []

    class Control:
        def start_hart(self, hart: int, pc: int, opaque: int) -> None:
            s.point("started write")
            started.append(hart)

    states = s.locking().make(HartStates, "harts", harts=3, control=Control())
    states.set(1, HartStatus.STARTED)
    answers: list[Error] = []
    for index in range(2):
        s.spawn(f"vcpu{index}", lambda: answers.append(states.start(2, 0x8000_0000, 0)))
    s.spawn("other", lambda: [states.status(2), states.set(1, HartStatus.SUSPENDED), states.status(1)])

    def end() -> None:
        assert started == [2]
        assert sorted(answers) == sorted([Error.SUCCESS, Error.ALREADY_AVAILABLE])
        assert states.status(2) == HartStatus.STARTED

    s.check(end)


PROGRAMS: Final[Mapping[type[Device], tuple[Callable[[Scheduler], None], ...]]] = {
    Uart16550: (uart_receive, uart_transmit, uart_reset),
    GoldfishRtc: (rtc_alarm, rtc_acknowledged),
    Finisher: (finisher,),
    VirtioBlk: (
        blk_requests,
        blk_requests_at_once,
        blk_reset,
        blk_reset_own_thread,
        blk_two_resets,
        blk_quiesce,
        blk_quiesce_own_thread,
    ),
    VirtioConsole: (console_transmit, console_impatient, console_receive),
    VirtioRng: (rng_requests, rng_interrupts, rng_reset),
    VirtioBalloon: (balloon, balloon_config, balloon_reset),
    HartStates: (hart_states,),
}

ALL: Final[tuple[Callable[[Scheduler], Any], ...]] = tuple(one for programs in PROGRAMS.values() for one in programs)
