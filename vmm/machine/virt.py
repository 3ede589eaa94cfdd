"""The board `virt`: which device answers where, and how they are wired. No other module names concrete devices.

Addresses, interrupt sources and device tree nodes are those of QEMU's riscv64 `virt` board, without the devices that
this board does not have (flash, fw_cfg, the platform bus, PCIe).
"""

from __future__ import annotations

from vmm.machine.fdt import Soc, Window

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
    for slot in range(8)
)

SOC = Soc(
    plic=PLIC,
    clint=CLINT,
    syscon=FINISHER,
    syscon_actions=(("poweroff", 0x5555), ("reboot", 0x7777)),
    stdout=UART,
    peripherals=(RTC, UART, *VIRTIO),
)


def extensions(*, svadu: bool) -> tuple[str, ...]:
    """The harts' extensions; with `svadu` the page walk sets A and D bits itself instead of faulting."""
    at = EXTENSIONS.index("svpbmt")
    return (*EXTENSIONS[:at], "svadu", *EXTENSIONS[at:]) if svadu else EXTENSIONS
