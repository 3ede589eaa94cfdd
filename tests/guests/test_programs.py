"""The bare-metal programs do on QEMU what they say: a failure elsewhere is the fault of the machine they ran on."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.guests import qemu
from tests.programs.build import CHECKS, SPEED, program
from vmm.errors import VmmError
from vmm.guests.apt import archive, command

pytestmark = [qemu.needs_qemu, qemu.needs_cross_compiler]

#: Where QEMU 7.2 departs from the specification, by program. What QEMU 10.0 departs in is a part of it.
DEPARTURES = {
    "interrupts": {
        # Without the AIA it takes the pending interrupt with the lowest number.
        "mideleg: SEIP, set by M-mode, comes first in S-mode",
        "of three interrupts the external one comes first",
        # Its PLIC looks at lines when they change, and does not look at what is enabled when that changes.
        "a line that stays up is pending again when completed",
        "and interrupts when it is enabled",
    },
    "paging": {
        "Svpbmt: types NC and IO work",  # menvcfg.PBMTE can be set although this CPU has no Svpbmt
        "a table where no memory is: access faults of the access's own kind",
    },
    "traps": {
        "mret to a lower mode clears MPRV",
        "an AMO on nowhere is cause 7",
        "a misaligned SC is cause 6 or 7",
        "mepc keeps no odd address",
        "mstatus.MPP never holds the reserved 2",
    },
}
DEPARTURES_OF_10 = {
    "interrupts": DEPARTURES["interrupts"],
    "traps": {"mepc keeps no odd address"},
}
# With one hart QEMU 7.2 runs atomics as loads and stores, with the traps of those.
HARTS = {"litmus": 2, "interrupts": 3, "atomics": 2, "smc": 2, "traps": 2, "pmp": 2}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_on_qemu(name: str) -> None:
    ran = qemu.run("-bios", program(name), harts=HARTS.get(name, 1))
    assert set(ran.starting_with("FAIL")) <= DEPARTURES.get(name, set())
    assert len(ran.starting_with("PASS")) > 8
    assert ran.status == bool(ran.starting_with("FAIL"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_on_a_newer_qemu(name: str) -> None:
    if shutil.which("apt-get") is None or os.uname().machine != "x86_64":
        pytest.skip("fetched by apt for x86-64 hosts")
    try:
        with archive("trixie", "amd64") as debian:
            tree = debian.fetch_tree("qemu-system-riscv")
    except VmmError as error:
        pytest.skip(str(error))
    newer = (*command(tree, "usr/bin/qemu-system-riscv64"), "-L", str(tree / "usr/share/qemu"))
    ran = qemu.run("-bios", program(name), harts=4 if name == "litmus" else HARTS.get(name, 1), qemu=newer)
    assert set(ran.starting_with("FAIL")) == DEPARTURES_OF_10.get(name, set())
    assert len(ran.starting_with("PASS")) > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", SPEED)
def test_a_measuring_program_computes_what_it_should(name: str) -> None:
    ran = qemu.run("-bios", program(name), harts=2)
    assert ran.status == 0
    for line in ran.lines:
        _, iterations, ticks = line.split()
        assert int(iterations) > 0
        assert int(ticks) > 0


def test_the_generated_code_has_the_sizes_that_its_names_say() -> None:
    for name, size in (("branchy69k", 69_000), ("branchy685k", 685_000)):
        table = subprocess.run(["riscv64-unknown-elf-size", program(name)], capture_output=True, text=True, check=True)
        assert int(table.stdout.splitlines()[1].split()[0]) == pytest.approx(size, rel=0.1)
