"""The board `virt`: which device answers where, and how they are wired. No other module names concrete devices,
but for `vmm.machine.slots`, which fills the virtio slots.

Addresses, interrupt sources and device tree nodes are those of QEMU's riscv64 `virt` board, without the devices that
this board does not have (flash, fw_cfg, the platform bus, PCIe).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from vmm.devices.finisher import Finisher
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.devices.uart16550 import Uart16550
from vmm.devices.virtio.device import VirtioDevice
from vmm.errors import ConfigError, HostError
from vmm.fabric.bus import Bus
from vmm.fabric.clock import Clock
from vmm.fabric.iothread import IoThread, io_thread
from vmm.fabric.ram import Ram
from vmm.fabric.workers import Workers
from vmm.host.chardev import Chardev
from vmm.host.consoles import open_chardev
from vmm.host.terminal import Command, TerminalChardev
from vmm.host.transcript import Transcript
from vmm.locks import Locking
from vmm.machine import boot
from vmm.machine.boot import ROM_BASE, ROM_SIZE, BootPlan
from vmm.machine.config import VIRTIO_SLOTS, Balloon, Config, Console, Pluggable, Rng
from vmm.machine.fdt import Chosen, Soc, Window, device_tree
from vmm.machine.harts import Make, Surroundings
from vmm.machine.lifecycle import Outcome, Reason
from vmm.machine.sbi import Answer, HartStates, Power, Sbi
from vmm.machine.slots import DEADLINE_S, Plugged, Slots, SlotState
from vmm.watchdog import Reports

RAM_BASE = 0x8000_0000
PLIC_SOURCES = 96
"""Interrupt sources including source 0, which does not exist."""

EXTENSIONS = (
    *("i", "m", "a", "f", "d", "c"),
    *("zicbom", "zicboz", "zicsr", "zifencei", "zba", "zbb", "zbs"),
    *("sstc", "svpbmt"),
)
"""What the harts implement, in the canonical order of ISA strings."""

FINISHER = Window("test", 0x10_0000, 0x1000, compatible=("sifive,test1", "sifive,test0", "syscon"))
RTC = Window("rtc", 0x10_1000, 0x1000, irq=11, compatible=("google,goldfish-rtc",))
CLINT = Window("clint", 0x200_0000, 0x1_0000, compatible=("sifive,clint0", "riscv,clint0"))
PLIC = Window(
    "plic",
    0xC00_0000,
    0x60_0000,
    compatible=("sifive,plic-1.0.0", "riscv,plic0"),
    properties={"riscv,ndev": PLIC_SOURCES - 1},
)
UART_CLOCK_HZ = 3_686_400
UART = Window(
    "serial", 0x1000_0000, 0x100, irq=10, compatible=("ns16550a",), properties={"clock-frequency": UART_CLOCK_HZ}
)
VIRTIO = tuple(
    Window("virtio_mmio", 0x1000_1000 + 0x1000 * slot, 0x1000, irq=1 + slot, compatible=("virtio,mmio",))
    for slot in range(VIRTIO_SLOTS)
)

SOC = Soc(
    plic=PLIC,
    clint=CLINT,
    syscon=FINISHER,
    syscon_actions=(("poweroff", 0x5555), ("reboot", 0x7777)),
    stdout=UART,
    peripherals=(RTC, UART, *VIRTIO),
)

WORKERS = 4


def extensions(*, svadu: bool) -> tuple[str, ...]:
    """The harts' extensions; with `svadu` the page walk sets A and D bits itself instead of faulting."""
    at = EXTENSIONS.index("svpbmt")
    return (*EXTENSIONS[:at], "svadu", *EXTENSIONS[at:]) if svadu else EXTENSIONS


def tree(config: Config, initrd: tuple[int, int] | None) -> bytes:
    """The device tree of a board made by `config`; `initrd` is (first, one past last) of its addresses."""
    return device_tree(
        SOC,
        harts=config.smp,
        ram_base=RAM_BASE,
        ram_size=config.mem,
        extensions=extensions(svadu=config.svadu),
        chosen=Chosen(config.append, initrd, config.rng_seed or os.urandom(32)),
    )


def plan(config: Config) -> BootPlan:
    """Checks the files to boot and lays them out; raises ConfigError."""
    return boot.plan(
        ram_base=RAM_BASE,
        ram_size=config.mem,
        kernel=config.kernel,
        initrd=config.initrd,
        bios=config.bios,
        append=config.append,
        describe=lambda initrd: tree(config, initrd),
    )


class Rom:
    """Read-only bytes on the bus. Writes are ignored, as by the real thing."""

    def __init__(self, contents: bytes) -> None:
        self._contents = contents

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._contents[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """It is not writable."""


class UartConsole:
    """The debug console of the built-in SBI: the UART, by doors of its own. Harts call at the same time, and between a
    look at line status and the access that it allows, the other's access would take the room or the character."""

    def __init__(self, uart: Uart16550) -> None:
        self._uart = uart

    def write(self, data: bytes) -> int:
        return self._uart.transmit(data)

    def read(self, limit: int) -> bytes:
        return self._uart.fetch(limit)


class Board:
    """One machine's hardware. Its methods are the lifecycle's actions (`vmm.machine.lifecycle.Actions`).

    Making it opens and checks everything; raises ConfigError or HostError, and then nothing stays open.
    """

    def __init__(
        self,
        config: Config,
        *,
        locking: Locking,
        make_harts: Make,
        ended: Callable[[Outcome], None],
        restart: Callable[[], None],
        commands: Mapping[str, Command],
    ) -> None:
        """`ended` and `restart` post to the lifecycle. `commands` are the terminal's."""
        config.check()
        # -- fixed configuration
        self.config = config
        # -- wiring
        self.locking = locking
        self._ended = ended
        self._restart = restart
        self.transcript = Transcript()
        self._serial_end = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._build(stack, make_harts, commands)
            self._closing = stack.pop_all()

    def _build(self, stack: contextlib.ExitStack, make_harts: Make, commands: Mapping[str, Command]) -> None:
        """What closes last is opened first. What others can see, a terminal in raw mode or a file that was emptied,
        comes when nothing else can fail."""
        config = self.config
        self.boot = plan(config)
        stack.callback(self.boot.close)
        self.ram = stack.enter_context(Ram(RAM_BASE, config.mem))
        self.bus = Bus()
        kit = self.locking.kit
        self.io = io_thread("io", on_error=self._io_failed, around=self.locking.outside_guest, kit=kit)
        self.io.start()
        stack.callback(self._serial_end.close)
        stack.callback(self.io.stop, DEADLINE_S)
        self.clock = Clock(self.io)
        self.wall_clock = Clock(self.io, start=time.time_ns(), name="wall")
        self.workers = Workers(WORKERS, "worker", kit)
        stack.callback(self.workers.stop, DEADLINE_S)
        self.slots = Slots(
            VIRTIO,
            bus=self.bus,
            ram=self.ram,
            clock=self.clock,
            io=self.io,
            workers=self.workers,
            locking=self.locking,
            line=lambda source: self.harts.line(source),
            failed=self._io_failed,
        )
        stack.callback(self.slots.close)
        plugged = [self._opened(stack, "--drive", drive) for drive in config.drive]
        self.boot.load(self.ram)
        traces = [
            _open_trace(stack, "--trace-exits", config.trace_exits),
            _open_trace(stack, "--trace-exec", config.trace_exec),
        ]
        self.report_hang = Reports("--hang-report", config.hang_report)
        self.harts = make_harts(
            Surroundings(
                count=config.smp,
                ram=self.ram,
                bus=self.bus,
                clock=self.clock,
                locking=self.locking,
                firmware=self.boot.entry.machine_mode,
                svadu=config.svadu,
                jit=config.jit != "off",
                call=self._call,
                resumed=self._resumed,
                ended=self._ended,
                trace_exits=traces[0],
                trace_exec=traces[1],
            )
        )
        # Drives come first, so that adding another device renames no disk.
        if config.console:
            plugged.append(self._opened(stack, "--console", Console(config.console)))
        if config.rng:
            plugged.append(self._opened(stack, "--rng", Rng()))
        if config.balloon:
            plugged.append(self._opened(stack, "--balloon", Balloon()))
        with _naming("--serial"):
            self.serial = open_chardev(config.serial, self.io, self.transcript, commands, self._console_gone)
        self._serial_end.callback(self.serial.close)
        self._make_devices(self.serial)
        for one in plugged:
            self.slots.publish(one)
        self.harts.reset(self.boot.entry)

    def _opened(self, stack: contextlib.ExitStack, option: str, what: Pluggable) -> Plugged:
        with _naming(option):
            plugged = self.slots.open(what)
        stack.callback(self.slots.abandon, plugged)
        return plugged

    def _make_devices(self, serial: Chardev) -> None:
        make, line = self.locking.make, self.harts.line
        self.finisher = make(Finisher, "finisher", power_off=self._power_off, restart=self._restart)
        self.rtc = make(GoldfishRtc, "rtc", wire=line(RTC.irq), clock=self.wall_clock)
        self.uart = make(Uart16550, "uart", wire=line(UART.irq), clock=self.clock, line=serial, input_hz=UART_CLOCK_HZ)
        serial.connect(self.uart)
        self.hart_states = make(HartStates, "harts", harts=self.config.smp, control=self.harts)
        self._sbi = Sbi(
            harts=self.config.smp,
            states=self.hart_states,
            memory=self.ram,
            console=UartConsole(self.uart),
            power=self._power,
        )
        self.bus.map(FINISHER.base, FINISHER.size, self.finisher, "finisher")
        self.bus.map(RTC.base, RTC.size, self.rtc, "rtc")
        self.bus.map(UART.base, UART.size, self.uart, "uart")
        self.bus.map(ROM_BASE, ROM_SIZE, Rom(self.boot.rom), "rom")

    @property
    def virtio(self) -> list[VirtioDevice]:
        """The devices that are plugged, by slot."""
        return self.slots.devices(SlotState.OCCUPIED)

    # -- the lifecycle's actions --------------------------------------------------------------------------------------
    # Under the big lock they hold it, as the monitor of 2010 did; not while they wait for harts or threads, which need
    # it to come to rest.

    def start(self) -> None:
        self.clock.resume()
        self.wall_clock.resume()
        self.harts.start()

    def pause(self) -> None:
        """Harts first: with them at rest nothing new is asked of a device."""
        self.harts.pause(DEADLINE_S)
        with self.locking.outside_guest:
            self.clock.pause()
            self.wall_clock.pause()
            for device in self.slots.devices(SlotState.OCCUPIED, SlotState.LEAVING):
                device.quiesce(DEADLINE_S)

    def resume(self) -> None:
        with self.locking.outside_guest:
            for device in self.virtio:
                device.resume()
            self.wall_clock.set(time.time_ns())
            self.wall_clock.resume()
            self.clock.resume()
            self.harts.resume()

    def reset(self) -> None:
        with self.locking.outside_guest:
            for part in (self.finisher, self.rtc, self.uart, self.hart_states):
                part.reset()
            for device in self.virtio:
                device.reset()
            self.boot.load(self.ram)
            self.harts.reset(self.boot.entry)

    def plug(self, plugged: Plugged) -> None:
        """Publish what `slots.open` has opened; raises as `Slots.publish` does."""
        with self.locking.outside_guest:
            self.slots.publish(plugged)

    def unplug(self, slot: int) -> Plugged:
        """Raises as `Slots.unplug` does."""
        with self.locking.outside_guest:
            return self.slots.unplug(slot)

    def stop(self) -> None:
        """Ends the harts, lets I/O finish, gives everything back; raises DeadlineError, naming what does not end."""
        with contextlib.ExitStack() as stack:
            # A thread that is still in guest code needs the memory it runs in: then only the terminal is given back.
            stack.callback(self._serial_end.close)
            stack.callback(self.io.stop, DEADLINE_S)
            self.harts.stop(DEADLINE_S)
            stack.pop_all()
        self._closing.close()

    @property
    def io_threads(self) -> list[IoThread]:
        """The one of all devices, and those that single devices have."""
        return [self.io, *self.slots.homes()]

    def statistics(self) -> dict[str, Any]:
        return {
            "harts": self.harts.statistics(),
            self.io.name: self.io.statistics(),
            "jit": self.harts.jit_statistics(),
            "workers": self.workers.statistics(),
            "serial": self.serial.statistics(),
            "locks": self.locking.statistics(),
            **self.slots.statistics(),
        }

    def restore_terminal(self) -> None:
        """If the serial port has the terminal in raw mode; any thread, any time."""
        if isinstance(self.serial, TerminalChardev):
            self.serial.restore()

    def suspend_terminal(self) -> None:
        if isinstance(self.serial, TerminalChardev):
            self.serial.suspend()

    def resume_terminal(self) -> None:
        if isinstance(self.serial, TerminalChardev):
            self.serial.resume()

    # -- doors for devices, harts and threads: each posts and returns -------------------------------------------------

    def _call(self, hart: int, a: Sequence[int]) -> Answer:
        return self._sbi.call(hart, a)

    def _resumed(self, hart: int) -> None:
        self._sbi.resumed(hart)

    def _power(self, what: Power, code: int) -> None:
        if what is Power.RESET:
            self._restart()
        else:
            self._power_off(code)

    def _power_off(self, code: int) -> None:
        self._ended(Outcome(Reason.GUEST_EXIT, code) if code else Outcome(Reason.POWER_OFF))

    def _io_failed(self, error: BaseException) -> None:
        self._ended(Outcome(Reason.FAILED, report="".join(traceback.format_exception(error))))

    def _console_gone(self, _problem: str) -> None:
        self._ended(Outcome(Reason.CONSOLE_GONE))


@contextlib.contextmanager
def _naming(option: str) -> Iterator[None]:
    """Puts the option before a complaint of a part that does not know by which one it came to be."""
    try:
        yield
    except (ConfigError, HostError) as error:
        raise type(error)(f"{option} {error}") from error


def _open_trace(stack: contextlib.ExitStack, option: str, name: str) -> TextIO | None:
    if name in ("", "-"):
        return sys.stderr if name else None
    try:
        return stack.enter_context(open(name, "w", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{option} {name}: {error.strerror}: give a file that can be written") from None
