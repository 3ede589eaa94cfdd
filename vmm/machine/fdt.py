"""The device tree handed to guests: memory, harts and peripherals as a flattened tree (Devicetree Specification 0.4).

The board lists its windows; this module turns rows into nodes and knows nothing of any device. Node names, compatible
strings and cell layouts are those of QEMU's riscv `virt` board, so that software written for that board finds its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import fdt as flattened

TIMEBASE_HZ = 10_000_000
CACHE_BLOCK = 64
"""Bytes that one cbo.* instruction covers (Zicbom, Zicboz)."""

Value = bool | int | str | bytes | Sequence[int] | Sequence[str]
"""A property: True is an empty one, ints are 32-bit cells, strings are NUL-terminated, bytes go in as they are."""


@dataclass(frozen=True)
class Window:
    """One row of a memory map: the addresses a device answers, the PLIC source it raises, what its node says."""

    name: str
    base: int
    size: int
    irq: int = 0
    compatible: tuple[str, ...] = ()
    properties: Mapping[str, Value] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.base + self.size

    @property
    def node_name(self) -> str:
        return f"{self.name}@{self.base:x}"


@dataclass(frozen=True)
class Soc:
    """What is on the board beside harts and RAM.

    `plic` and `clint` are the two controllers wired to every hart; `syscon` is the window behind poweroff and reboot,
    each a (name, value) that a guest writes to its first register.
    """

    plic: Window
    clint: Window
    syscon: Window
    syscon_actions: tuple[tuple[str, int], ...]
    stdout: Window
    peripherals: tuple[Window, ...]


@dataclass(frozen=True)
class Chosen:
    """The /chosen node: what the loader tells the kernel. `initrd` is (first, one past last) in guest addresses."""

    bootargs: str = ""
    initrd: tuple[int, int] | None = None
    rng_seed: bytes = b""


class _Phandles:
    """Hands out phandle numbers by what they stand for, so that a reference may be made before its node."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, thing: str) -> int:
        return self._numbers.setdefault(thing, len(self._numbers) + 1)


def device_tree(
    soc: Soc,
    *,
    harts: int,
    ram_base: int,
    ram_size: int,
    extensions: Sequence[str],
    chosen: Chosen,
) -> bytes:
    """The flattened tree, version 17. `extensions` are lower-case names in canonical order, single letters first.

    There is no spare space inside: the loader leaves room behind it.
    """
    handles = _Phandles()
    tree = flattened.FDT()
    tree.root = _node(
        "/",
        {
            "#address-cells": 2,
            "#size-cells": 2,
            "compatible": "riscv-virtio",
            "model": "riscv-virtio,vmm",
        },
        _chosen(chosen, soc.stdout),
        _node(
            f"memory@{ram_base:x}",
            {"device_type": "memory", "reg": (*_pair(ram_base), *_pair(ram_size))},
        ),
        _cpus(harts, extensions, handles),
        *(
            _node(
                action,
                {
                    "compatible": f"syscon-{action}",
                    "regmap": handles.of("syscon"),
                    "offset": 0,
                    "value": value,
                },
            )
            for action, value in soc.syscon_actions
        ),
        _soc(soc, harts, handles),
    )
    return bytes(tree.to_dtb(version=17, last_comp_version=16, boot_cpuid_phys=0))


def isa_string(extensions: Sequence[str]) -> str:
    """The deprecated one-string form: rv64 and the single letters run together, the others joined by underscores."""
    letters = "".join(name for name in extensions if len(name) == 1)
    return "_".join(["rv64" + letters, *(name for name in extensions if len(name) > 1)])


def _chosen(chosen: Chosen, stdout: Window) -> flattened.Node:
    properties: dict[str, Value] = {"stdout-path": f"/soc/{stdout.node_name}"}
    if chosen.bootargs:
        properties["bootargs"] = chosen.bootargs.encode() + b"\0"
    if chosen.initrd is not None:
        first, end = chosen.initrd
        properties["linux,initrd-start"] = _pair(first)
        properties["linux,initrd-end"] = _pair(end)
    if chosen.rng_seed:
        properties["rng-seed"] = chosen.rng_seed
    return _node("chosen", properties)


def _cpus(harts: int, extensions: Sequence[str], handles: _Phandles) -> flattened.Node:
    cpus = [
        _node(
            f"cpu@{hart:x}",
            {
                "device_type": "cpu",
                "reg": hart,
                "status": "okay",
                "compatible": "riscv",
                "riscv,isa": isa_string(extensions),
                "riscv,isa-base": "rv64i",
                "riscv,isa-extensions": tuple(extensions),
                "riscv,cbom-block-size": CACHE_BLOCK,
                "riscv,cboz-block-size": CACHE_BLOCK,
                "mmu-type": "riscv,sv48",
                "phandle": handles.of(f"cpu{hart}"),
            },
            _node(
                "interrupt-controller",
                {
                    "#address-cells": 0,
                    "#interrupt-cells": 1,
                    "interrupt-controller": True,
                    "compatible": "riscv,cpu-intc",
                    "phandle": handles.of(f"intc{hart}"),
                },
            ),
        )
        for hart in range(harts)
    ]
    cores = [_node(f"core{hart}", {"cpu": handles.of(f"cpu{hart}")}) for hart in range(harts)]
    return _node(
        "cpus",
        {"#address-cells": 1, "#size-cells": 0, "timebase-frequency": TIMEBASE_HZ},
        *cpus,
        _node("cpu-map", {}, _node("cluster0", {}, *cores)),
    )


def _soc(soc: Soc, harts: int, handles: _Phandles) -> flattened.Node:
    plic = _peripheral(
        soc.plic,
        {
            "#address-cells": 0,
            "#interrupt-cells": 1,
            "interrupt-controller": True,
            # Context 2h is hart h in M-mode (cause 11), 2h + 1 in S-mode (cause 9).
            "interrupts-extended": _per_hart(harts, (11, 9), handles),
            "phandle": handles.of("plic"),
        },
    )
    clint = _peripheral(soc.clint, {"interrupts-extended": _per_hart(harts, (3, 7), handles)})
    syscon = _peripheral(soc.syscon, {"phandle": handles.of("syscon")})
    others = (
        _peripheral(
            window,
            {"interrupts": window.irq, "interrupt-parent": handles.of("plic")} if window.irq else {},
        )
        for window in soc.peripherals
    )
    return _node(
        "soc",
        {"#address-cells": 2, "#size-cells": 2, "compatible": "simple-bus", "ranges": True},
        *sorted([plic, clint, syscon, *others], key=lambda node: int(node.name.partition("@")[2], 16)),
    )


def _per_hart(harts: int, causes: tuple[int, int], handles: _Phandles) -> tuple[int, ...]:
    return tuple(cell for hart in range(harts) for cause in causes for cell in (handles.of(f"intc{hart}"), cause))


def _peripheral(window: Window, extra: Mapping[str, Value]) -> flattened.Node:
    return _node(
        window.node_name,
        {
            "compatible": window.compatible,
            "reg": (*_pair(window.base), *_pair(window.size)),
            **window.properties,
            **extra,
        },
    )


def _node(name: str, properties: Mapping[str, Value], *children: flattened.Node) -> flattened.Node:
    return flattened.Node(name, *(_property(key, value) for key, value in properties.items()), *children)


def _property(name: str, value: Value) -> flattened.Property:
    if value is True:
        return flattened.Property(name)
    if isinstance(value, bytes):
        return flattened.PropBytes(name, data=value)
    items = (value,) if isinstance(value, (int, str)) else tuple(value)
    if all(isinstance(item, str) for item in items):
        return flattened.PropStrings(name, *items)
    return flattened.PropWords(name, *items)


def _pair(value: int) -> tuple[int, int]:
    """A 64-bit number as two cells, high one first."""
    return value >> 32, value & 0xFFFF_FFFF
