from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import fdt
import pytest

from vmm.machine import virt
from vmm.machine.fdt import Chosen, device_tree

DTC = shutil.which("dtc")
QEMU = shutil.which("qemu-system-riscv64")

ABSENT = {
    "/flash@20000000": "no flash on this board",
    "/fw-cfg@10100000": "no fw_cfg on this board",
    "/platform-bus@4000000": "no devices are plugged there by name",
    "/pmu": "tells OpenSBI of counters that these harts do not have",
    "/soc/pci@30000000": "no PCIe on this board",
}
"""Nodes of QEMU's tree that this board's has not, and why."""


def tree(harts: int = 2, chosen: Chosen | None = None, svadu: bool = False, ram: int = 256 << 20) -> bytes:
    return device_tree(
        virt.SOC,
        harts=harts,
        ram_base=virt.RAM_BASE,
        ram_size=ram,
        extensions=virt.extensions(svadu=svadu),
        chosen=chosen or Chosen("console=ttyS0", (0x8420_0000, 0x8470_0001), bytes(range(32))),
    )


def nodes(blob: bytes) -> dict[str, dict[str, object]]:
    """path -> property -> list of values; phandles are replaced by the path they name."""
    parsed = fdt.parse_dtb(blob)
    found: dict[str, dict[str, object]] = {}
    handles: dict[int, str] = {}
    for path, _, properties in parsed.walk():
        found[path] = {item.name: list(getattr(item, "data", [])) for item in properties}
        if "phandle" in found[path]:
            handles[found[path].pop("phandle")[0]] = path  # type: ignore[attr-defined]
    for properties in found.values():
        for name in ("interrupt-parent", "regmap", "cpu"):
            if name in properties:
                properties[name] = handles[properties[name][0]]  # type: ignore[index]
        if "interrupts-extended" in properties:
            cells = properties["interrupts-extended"]
            properties["interrupts-extended"] = [
                (handles[handle], cause)
                for handle, cause in zip(cells[::2], cells[1::2], strict=True)  # type: ignore[index]
            ]
    return found


@pytest.mark.skipif(DTC is None, reason="dtc is not installed")
@pytest.mark.parametrize("harts", [1, 2, 32])
@pytest.mark.parametrize("chosen", [Chosen(), None])
def test_dtc_accepts_the_tree_without_a_warning(tmp_path: Path, harts: int, chosen: Chosen | None) -> None:
    path = tmp_path / "tree.dtb"
    path.write_bytes(tree(harts, chosen))
    dtc = subprocess.run([DTC or "", "-I", "dtb", "-O", "dts", path], capture_output=True, text=True, check=False)
    assert (dtc.returncode, dtc.stderr) == (0, "")


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")
@pytest.mark.parametrize("harts", [1, 4])
def test_the_tree_has_the_nodes_of_qemus_board(tmp_path: Path, harts: int) -> None:
    path = tmp_path / "qemu.dtb"
    machine = ["-M", f"virt,dumpdtb={path}", "-smp", str(harts), "-m", "256M"]
    subprocess.run([QEMU or "", *machine, "-display", "none"], capture_output=True, check=True)
    theirs, ours = nodes(path.read_bytes()), nodes(tree(harts))
    assert set(ours) == set(theirs) - set(ABSENT)
    assert set(theirs) >= set(ABSENT)
    differ = {
        (node, name)
        for node in ours
        for name in theirs[node]
        if ours[node].get(name) != theirs[node][name] and not node.startswith("/cpus/cpu@")
    }
    # Another model, another seed, and QEMU 7.2 counts PLIC source 0 as usable.
    assert differ == {
        ("/", "model"),
        ("/chosen", "rng-seed"),
        ("/soc/plic@c000000", "riscv,ndev"),
    }


def test_each_hart_says_what_it_implements() -> None:
    cpu = nodes(tree(2, svadu=True))["/cpus/cpu@1"]
    assert cpu["riscv,isa"] == ["rv64imafdc_zicbom_zicboz_zicsr_zifencei_zba_zbb_zbs_sstc_svadu_svpbmt"]
    assert cpu["riscv,isa-extensions"] == list(virt.extensions(svadu=True))
    assert (cpu["riscv,cbom-block-size"], cpu["riscv,cboz-block-size"]) == ([64], [64])
    assert cpu["mmu-type"] == ["riscv,sv48"]
    assert "svadu" not in str(nodes(tree(2))["/cpus/cpu@1"])


def test_the_chosen_node_carries_what_the_loader_knows() -> None:
    chosen = nodes(tree())["/chosen"]
    assert bytes(fdt.parse_dtb(tree()).get_property("bootargs", "/chosen").value, "ascii") == b"console=ttyS0"
    assert chosen["linux,initrd-start"] == [0, 0x8420_0000]
    assert chosen["linux,initrd-end"] == [0, 0x8470_0001]
    assert chosen["stdout-path"] == ["/soc/serial@10000000"]
    assert "bootargs" not in nodes(tree(chosen=Chosen()))["/chosen"]


def test_a_command_line_beyond_ascii_arrives_in_utf_8() -> None:
    assert "grüße".encode() + b"\0" in tree(chosen=Chosen("grüße"))


def test_memory_beyond_4_gib_is_described_in_two_cells() -> None:
    assert nodes(tree(ram=6 << 30))["/memory@80000000"]["reg"] == [0, 0x8000_0000, 1, 0x8000_0000]
