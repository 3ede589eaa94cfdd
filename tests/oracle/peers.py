"""The two that run a test program: QEMU's user-mode emulator, and the software VCPU in one of several modes."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.oracle.generate import BLOCKS
from tests.oracle.program import END, OUTPUTS, SCRATCH, SCRATCH_PAGES, STATE, Outcome, Program, code, op
from vmm.errors import VmmError
from vmm.fabric.clock import Clock
from vmm.fabric.ram import CODE, Ram
from vmm.guests.apt import archive
from vmm.testing.fakes import FakeIoThread
from vmm.vcpu.emulate import emulate
from vmm.vcpu.layout import PAGE, Cause, Exit
from vmm.vcpu.software import SoftwareBackend

_SCRATCH_SIZE = SCRATCH_PAGES * PAGE


class Disagreement(AssertionError):
    """A program that one of the two could not run to its end."""


class Qemu:
    """`qemu-riscv64`. `without` names the instructions that this version lacks, or does wrong."""

    def __init__(self, program: str) -> None:
        self._program: Final = program
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        self.version: Final = tuple(int(n) for n in told.split()[2].split("."))
        new = self.version >= (8, 0)
        # In user mode it has cbo.zero alone of the cache block instructions. Before 8.0 not even that, and ctzw counts
        # the zeros of the high word too.
        self.without: Final = BLOCKS - {"cbo.zero"} if new else BLOCKS | {"ctzw"}
        self._cpu = "rv64,zba=on,zbb=on,zbs=on" + (",zicboz=on" if new else "")

    def __repr__(self) -> str:
        return f"QEMU {'.'.join(map(str, self.version))}"

    @classmethod
    def installed(cls) -> Qemu | None:
        found = shutil.which("qemu-riscv64-static") or shutil.which("qemu-riscv64")
        return cls(found) if found else None

    @classmethod
    def newer(cls) -> Qemu | None:
        """That of Debian trixie, from the cache or fetched; None if neither can be."""
        try:
            with archive("trixie", "amd64") as debian:
                return cls(str(debian.fetch_file("qemu-user", "usr/bin/qemu-riscv64")))
        except (VmmError, OSError, subprocess.SubprocessError):
            return None

    def run(self, program: Program) -> Outcome:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "program")
            path.write_bytes(program.elf())
            path.chmod(0o700)
            done = subprocess.run(
                [self._program, "-cpu", self._cpu, path], capture_output=True, check=False, timeout=60
            )
        size = program.states_size
        if done.returncode or len(done.stdout) != size + _SCRATCH_SIZE:
            raise Disagreement(f"QEMU ended with {done.returncode} after {len(done.stdout)} bytes: {done.stderr!r}")
        return Outcome(done.stdout[:size], done.stdout[size:])


class Here:
    """The software VCPU: `bare` in M-mode, or U-mode under `sv39` or `sv48` with every page in another place.

    With `translated` a program runs twice: interpreted, and again from all that was decoded then, translated.
    """

    _RAM = 64 << 20
    _TABLES = 0x280_0000
    _SHUFFLED = 0x300_0000  # where the pages are that are mapped one by one
    _HANDLER = 0x2F0_0000
    _DOOR = 0x1000_0000  # a device: a store there ends the run
    _FS = 3 << 13

    def __init__(self, mode: str = "bare", translated: bool = False) -> None:
        self.mode = mode
        self.translated = translated
        self.ram = Ram(0, self._RAM)
        clock = Clock(FakeIoThread())
        self.backend = SoftwareBackend(
            self.ram, clock, 1, plic_base=0x2000_0000, clint_base=0x3000_0000, sbi=False, jit=translated
        )
        self.vcpu = self.backend.vcpus[0]
        self._moved: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"here ({self.mode}{', translated' if self.translated else ''})"

    def close(self) -> None:
        self.ram.close()

    def run(self, program: Program) -> Outcome:
        self.load(program)
        self.go()
        if self.translated:
            self.backend.translate()
            self._begin(program, again=True)
            self.go()
        return self.outcome(program)

    def load(self, program: Program) -> None:
        """Memory and registers as at the program's beginning."""
        self.ram.discard(0, self._RAM)
        self.backend.reset()
        self._begin(program)

    def _begin(self, program: Program, again: bool = False) -> None:
        """`again`: what was decoded stays, so only memory that is not code is as at the beginning."""
        v = self.vcpu
        v.reset()
        handler = [op("csrrw", rd=5, rs1=5, imm=0x340), op("sw", rs1=5)]  # mscratch
        self._put(self._HANDLER, code(handler))
        v.set_csr("mtvec", self._HANDLER)
        v.set_csr("mscratch", self._DOOR)
        v.set_csr("mstatus", self._FS)
        for name in ("menvcfg", "senvcfg"):
            v.set_csr(name, v.csr(name) | 0xF0)  # cache block instructions
        self._moved = {}
        if self.mode != "bare":
            self._map(program)
            v.set_csr("pmpaddr0", (1 << 54) - 1)
            v.set_csr("pmpcfg0", 0x1F)
            v.privilege = 0
        for address, data in program.segments.items():
            at = 0
            while at < len(data):  # page by page: neighbours here need not be neighbours there
                here = min(len(data) - at, PAGE - (address + at) % PAGE)
                place = self.physical(address + at)
                if not (again and self.ram.page_flags[place // PAGE] & CODE):
                    self._put(place, data[at : at + here])
                at += here
        v.pc = program.entry

    def go(self, budget: int | None = None) -> bool:
        """Run on to the program's end (True), or for so many instructions."""
        v = self.vcpu
        end = None if budget is None else v.instructions + budget
        while True:
            reason = v.run(None if end is None else end - v.instructions)
            if reason == Exit.EMULATE:
                emulate(v)
            elif reason == Exit.BUDGET:
                return False
            elif reason == Exit.MMIO_WRITE and v.mmio_addr[0] == self._DOOR:
                break
            else:
                raise Disagreement(f"{v!r} left with {Exit(reason).name}")
        if v.csr("mcause") not in (Cause.ECALL_U, Cause.ECALL_M):
            raise Disagreement(f"trap {v.csr('mcause')} at {v.csr('mepc'):#x}, mtval {v.csr('mtval'):#x}")
        return True

    def outcome(self, program: Program) -> Outcome:
        pages = [self.physical(SCRATCH + at) for at in range(0, _SCRATCH_SIZE, PAGE)]
        states = bytes(self.ram.view[OUTPUTS : OUTPUTS + len(program.blocks) * STATE])
        return Outcome(states, b"".join(bytes(self.ram.view[at : at + PAGE]) for at in pages))

    def physical(self, address: int) -> int:
        page = address // PAGE
        return self._moved.get(page, page) * PAGE + address % PAGE

    def _put(self, address: int, data: bytes) -> None:
        self.ram.view[address : address + len(data)] = data
        self.ram.written(address, len(data))

    # -- page tables (priv. spec 4.4, 4.5) ----------------------------------------------------------------------------

    def _map(self, program: Program) -> None:
        """Tables of user pages without A and D, which the walk sets; the outputs lie in one superpage, in place."""
        used = {0, *range(SCRATCH // PAGE - 1, SCRATCH // PAGE + SCRATCH_PAGES)}
        for address, data in program.segments.items():
            used |= set(range(address // PAGE, (address + len(data) - 1) // PAGE + 1))
        places = list(range(self._SHUFFLED // PAGE, self._SHUFFLED // PAGE + len(used)))
        random.Random(len(used)).shuffle(places)
        self._moved = dict(zip(sorted(used), places, strict=True))
        self._next_table = self._TABLES
        levels = 3 if self.mode == "sv39" else 4
        root = self._table()
        for page in sorted(used):
            table = root
            for level in range(levels - 1, 0, -1):
                table = self._below(table + 8 * (page >> 9 * level & 511))
            self._entry(table + 8 * (page & 511), self._moved[page], 0x1F)
        for base in range(OUTPUTS, END, 2 << 20):
            table = root
            for level in range(levels - 1, 1, -1):
                table = self._below(table + 8 * (base >> 12 + 9 * level & 511))
            self._entry(table + 8 * (base >> 21 & 511), base // PAGE, 0x1F)
        self.vcpu.set_csr("satp", (8 if levels == 3 else 9) << 60 | root // PAGE)

    def _table(self) -> int:
        self._next_table += PAGE
        return self._next_table - PAGE

    def _entry(self, at: int, page: int, bits: int) -> None:
        struct.pack_into("<Q", self.ram.view, at, page << 10 | bits)

    def _below(self, at: int) -> int:
        """The table that the entry at `at` points to, made if there is none."""
        (entry,) = struct.unpack_from("<Q", self.ram.view, at)
        if not entry:
            self._entry(at, self._table() // PAGE, 1)
            (entry,) = struct.unpack_from("<Q", self.ram.view, at)
        return int(entry >> 10 << 12)
