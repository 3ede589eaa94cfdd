"""The software VCPU: harts that run in native code which Python generated (`vmm/vcpu/native`), outside of the GIL.

The protocol has the shape of KVM's run loop: `run()` executes guest code until something needs Python and says what
(`layout.Exit`); the caller answers in the hart's exit fields and runs on. A hart is run by one thread at a time; `kick`
and the interrupt wires are for any thread.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vmm import codegen, isa
from vmm.codegen.cache import cached_image, source_key
from vmm.codegen.image import CodeMemory, Image, LoadedImage
from vmm.errors import ConfigError, HostError, InternalError
from vmm.fabric.bus import BusDoorbell
from vmm.fabric.clock import Clock
from vmm.fabric.ram import Ram
from vmm.isa.csr import NUMBERS, PMP_ENTRIES
from vmm.vcpu import layout, native
from vmm.vcpu.layout import HART, MAX_DOORBELLS, MAX_HARTS, PLIC_SOURCES, POLL_EXIT, SHARED, Exit, Mmio, Words

ARENA = 96 << 20  # bytes of address space for pre-decoded pages: about 4700 pages of guest code
CODE = 32 << 20  # the same for translated code
UNLIMITED = 1 << 62
_FATAL = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_SA_SIGINFO, _SA_ONSTACK = 4, 0x0800_0000
_MISA = (2 << 62) | sum(1 << (ord(letter) - ord("A")) for letter in "ACDFIMSU")
_NEVER = (1 << 64) - 1
_MAP_NORESERVE = 0x4000  # Linux on x86-64; `mmap` names it from Python 3.13 on


def _sources() -> list[Path]:
    packages = (Path(p.__file__ or "").parent for p in (codegen, isa, native))
    return [Path(layout.__file__), *(path for package in packages for path in package.glob("*.py"))]


def _build() -> Image:
    from vmm.codegen.llvm import compile_module
    from vmm.vcpu.native.build import native_text

    return compile_module(native_text())


@cache
def native_code() -> LoadedImage:
    """The native code, generated on this user's first run and cached (see `vmm.codegen.cache`)."""
    return LoadedImage(cached_image("vcpu", source_key(_sources()), _build))


def _build_stencils() -> Image:
    from vmm.vcpu.native.stencils import table

    return table(native_code().symbols)


@cache
def stencil_table() -> tuple[ctypes.Array[ctypes.c_char], dict[str, int]]:
    """What the baseline translator makes code of, and what begins where in it; made and cached like the native code."""
    image = cached_image("stencils", source_key(_sources()), _build_stencils)
    return ctypes.create_string_buffer(image.code, len(image.code)), image.symbols


class Natives:
    """The functions of the image that Python calls. All but what `runner` gives are short, and keep the GIL."""

    def __init__(self, image: LoadedImage) -> None:
        address, word, half = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32
        run = ctypes.CFUNCTYPE(ctypes.c_int64, address)

        def short(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            return ctypes.PYFUNCTYPE(result, *arguments)(image.address(name))

        # One for each hart: on free-threaded builds all would count references to the same one, on one cache line.
        self.runner: Callable[[], Callable[[int], int]] = lambda: run(image.address("run"))
        self.wake = short("wake", None, address, half)
        self.set_level = short("plic_set_level", None, address, word, word)
        self.set_mode = short("set_mode", None, address)
        self.flush_data = short("flush_data", None, address)
        self.flush_fetch = short("flush_fetch", None, address)
        self.page_written = short("page_written", None, address, word, word)
        self.revoke_writes = short("revoke_writes", word, address, word)
        self.get_csr = short("get_csr", word, address, word)
        self.set_csr = short("set_csr", None, address, word, word)
        self.translate = short("translate", word, address, word, word)
        self.time = short("time", word, address)
        self.translate_page = short("translate_page", None, address, address)


class _SigAction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_uint64),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_uint64),
    )


@cache
def catch_host_faults() -> None:
    """Have a fault of the host in generated code end `run` with HOST_FAULT. Other faults still end the process."""
    action = _SigAction(handler=native_code().address("on_host_fault"), flags=_SA_SIGINFO | _SA_ONSTACK)
    libc = ctypes.CDLL(None, use_errno=True)
    for number in _FATAL:
        if libc.sigaction(int(number), ctypes.byref(action), None):
            raise HostError(f"sigaction({number.name}): {os.strerror(ctypes.get_errno())}")


class _StackT(ctypes.Structure):
    _fields_ = (("base", ctypes.c_uint64), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


class SignalStack:
    """The calling thread's stack for signals, which tells the fault handler whose hart this thread runs."""

    def __init__(self, hart: int) -> None:
        size = layout.SIGNAL_STACK
        self._map = mmap.mmap(-1, 2 * size)
        base = (_address(self._map) + size - 1) & -size
        ctypes.c_uint64.from_address(base).value = layout.SIGNAL_MARK
        ctypes.c_uint64.from_address(base + 8).value = hart
        libc = ctypes.CDLL(None, use_errno=True)
        # the handler finds the mark by masking its stack pointer, so the top must stay inside
        if libc.sigaltstack(ctypes.byref(_StackT(base + 64, 0, size - 128)), None):
            raise HostError(f"sigaltstack: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """On the same thread, before it ends: the memory goes with this object."""
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_StackT(0, 2, 0)), None)  # SS_DISABLE


class PlicWire:
    """An interrupt source of the PLIC: `set` is one native call, and nothing when the level does not change."""

    __slots__ = ("_hart", "_level", "_set", "source")

    def __init__(self, set_level: Callable[..., Any], hart: int, source: int) -> None:
        self._set = set_level
        self._hart = hart
        self._level = False
        self.source = source

    def __repr__(self) -> str:
        return f"<PLIC source {self.source}: {'high' if self._level else 'low'}>"

    @property
    def level(self) -> bool:
        return self._level

    def set(self, level: bool) -> None:
        if level is not self._level:
            self._level = level
            self._set(self._hart, self.source, level)


class SoftwareVcpu:
    """One hart. `x`, `f` and the exit fields are one-element or longer memoryviews on its native state."""

    def __init__(self, backend: SoftwareBackend, index: int) -> None:
        self._natives = backend.natives
        self.index = index
        self.words = Words(HART)
        self.words["shared"] = backend.shared.address
        self.address = self.words.address
        self.x = self.words.view("x")
        self.f = self.words.view("f")
        self.mmio_addr = self.words.view("mmio_addr")
        self.mmio_size = self.words.view("mmio_size")
        self.mmio_value = self.words.view("mmio_value")
        self.mmio_state = self.words.view("mmio_state")
        self._budget = self.words.view("budget")
        self._run = backend.natives.runner()
        self._unlimited = int(str(UNLIMITED))  # an object of its own, as `_run` is, and for the same reason
        self._image = backend.image
        self._ram = backend.ram
        self._sbi = backend.sbi
        self._code = backend.code
        self.reset()

    def __repr__(self) -> str:
        return f"<SoftwareVcpu {self.index}: pc {self.pc:#x}, {self.instructions} instructions>"

    def reset(self) -> None:
        """The reset state (priv. spec 3.4), or with the built-in SBI what a kernel finds (SBI 2.0, 9.1)."""
        w = self.words
        for name, field in HART.fields.items():
            if name not in ("shared", "mip_hw", "fence_req", "fence_ack", "doorbell_count"):
                view = w.view(name)
                for i in range(field.count if field.count < 64 else 0):
                    view[i] = 0
        # Wires keep their levels over a reset; what timers and other harts raised goes.
        w["mip_hw"] &= 1 << layout.MEI | 1 << layout.SEI
        w["mhartid"] = self.index
        w["misa"] = _MISA
        w["mxcsr"] = 0x1F80
        w["res_addr"] = _NEVER
        w["mtimecmp"] = w["stimecmp"] = _NEVER
        w["menvcfg"] = 1 << 61  # ADUE: the page walk sets A and D
        w["prv"] = layout.PRV_M
        w["pmp_on"] = 1
        for i in range(PMP_ENTRIES):
            w["pmp_lo", i] = 1  # above pmp_hi: the entry is off
        if self._sbi:
            w["sbi_builtin"] = 1
            w["pmp_on"] = 0
            w["prv"] = layout.PRV_S
            w["medeleg"] = 0xB1FF  # all but the calls to SBI itself
            w["mideleg"] = 1 << layout.SSI | 1 << layout.STI | 1 << layout.SEI
            w["mcounteren"] = w["scounteren"] = 7  # the kernel's vDSO reads time in U-mode, and it sets none of these
            w["menvcfg"] |= 1 << 63 | 1 << 62 | 0xD0  # Sstc, Svpbmt, cache block instructions
        self.flush()
        self._natives.set_mode(self.address)

    def flush(self) -> None:
        """Forget all cached translations. The hart must not be in guest code."""
        self._natives.flush_data(self.address)
        self._natives.flush_fetch(self.address)

    # -- running --------------------------------------------------------------------------------------------------

    def run(self, budget: int | None = None) -> int:
        """Execute guest code; an `Exit`, as a plain int. With a `budget`, stop after exactly so many instructions.

        An instruction that traps counts. After MMIO_READ put the answer in `mmio_value`, after MMIO_WRITE nothing,
        and in both cases `Mmio.DONE` (or FAULT) in `mmio_state`, then run again.
        """
        self._budget[0] = self._unlimited if budget is None else budget
        return self._run(self.address)

    def kick(self) -> None:
        """Make `run` return KICK soon, now or when it is next called. Any thread."""
        self._natives.wake(self.address, POLL_EXIT)

    def set_doorbells(self, doorbells: Iterable[BusDoorbell]) -> None:
        """Stores that ring an eventfd instead of leaving guest code, in place of those before. On the hart's own
        thread: it is out of guest code then, and rings no other once this returns."""
        w, bells = self.words, list(doorbells)[:MAX_DOORBELLS]  # one too many still works, by an exit
        for i, bell in enumerate(bells):
            w["doorbell_addr", i], w["doorbell_size", i], w["doorbell_fd", i] = bell.gpa, bell.size, bell.fd
            w["doorbell_value", i] = _NEVER if bell.value is None else bell.value
        w["doorbell_count"] = len(bells)

    def fetch(self, pc: int) -> int | None:
        """The instruction at a virtual address, as the hart would fetch it; None where it cannot."""
        halves = []
        for at in (pc, pc + 2):
            offset = self._natives.translate(self.address, at & _NEVER, layout.EXEC) - self._ram.base
            if self.words["fault"] or not 0 <= offset < self._ram.size:
                return None
            halves.append(int.from_bytes(self._ram.view[offset : offset + 2], "little"))
            if halves[0] & 3 != 3:
                return halves[0]
        return halves[0] | halves[1] << 16

    def crash(self) -> str:
        """After HOST_FAULT: what happened, in a line."""
        w = self.words
        name = signal.Signals(w["crash_signal"]).name
        where = self._image.symbol_at(w["crash_rip"]) or "outside of the image"
        if self._code and self._code.base <= w["crash_rip"] < self._code.base + self._code.size:
            where = "of the translated block that begins at pc"
        if ip := w["crash_ip"]:
            self.pc = ((ip >> 2) + w["pcbias"]) & _NEVER
        return f"{name} at host address {w['crash_addr']:#x} in generated code {where} ({w['crash_rip']:#x})"

    # -- state, for whoever has stopped the hart ------------------------------------------------------------------

    @property
    def pc(self) -> int:
        return self.words["pc"]

    @pc.setter
    def pc(self, value: int) -> None:
        self.words["pc"] = value

    @property
    def privilege(self) -> int:
        return self.words["prv"]

    @privilege.setter
    def privilege(self, value: int) -> None:
        self.words["prv"] = value
        self._natives.set_mode(self.address)

    @property
    def instructions(self) -> int:
        """Steps since reset: instructions, and those that trapped instead."""
        return self.words["retired"]

    def csr(self, name: str) -> int:
        """A CSR by name, whatever the privilege. Raises KeyError for one that does not exist."""
        number = NUMBERS[name]
        self.words["fault"] = 0
        value: int = self._natives.get_csr(self.address, number)
        if self.words["fault"]:
            raise KeyError(name)
        return value

    def set_csr(self, name: str, value: int) -> None:
        self._natives.set_csr(self.address, NUMBERS[name], value)
        self.words["resync"] = 0

    def start_at(self, pc: int, a0: int, a1: int, a2: int = 0) -> None:
        """Entry registers of firmware and kernels: hart id and device tree (and fw_dynamic's info)."""
        self.pc = pc
        self.x[10], self.x[11], self.x[12] = a0, a1, a2

    def statistics(self) -> dict[str, int]:
        names = ("retired", "untaken", "trap_count", "irq_count", "wfi_count", "idle_ns")
        return {name: self.words[name] for name in names}


@dataclass(frozen=True, slots=True)
class JitStatistics:
    """What the translator has done so far."""

    pages: int
    """Translations of a page; one may be translated again when more of it was decoded."""
    instructions: int
    bytes: int
    """Of translated code, now."""
    emptied: int
    """How often code was thrown away because there was no room."""
    seconds: float
    """Of VCPU threads, spent translating."""
    problem: str
    """Why nothing is translated; empty if code is."""

    def __str__(self) -> str:
        if self.problem:
            return f"jit: interpreting only: {self.problem}"
        return (
            f"jit: {self.instructions} instructions in {self.pages} translations of pages, which took "
            f"{self.seconds * 1e3:.1f} ms; {self.bytes} bytes of code now; emptied {self.emptied} times"
        )


class SoftwareBackend:
    """All harts of a machine, their interrupt controllers, and the code they have in common."""

    def __init__(
        self,
        ram: Ram,
        clock: Clock,
        harts: int,
        *,
        plic_base: int,
        clint_base: int,
        sbi: bool,
        jit: bool = False,
    ) -> None:
        """With `jit`, warm code is translated, if the host has memory for that: `jit_statistics` says."""
        if not 1 <= harts <= MAX_HARTS:
            raise ConfigError(f"--smp {harts}: give 1 to {MAX_HARTS} harts")
        self.image = native_code()
        self.natives = Natives(self.image)
        self.ram = ram
        self.clock = clock  # generated code reads its words for as long as this lives
        self.sbi = sbi
        self.shared = shared = Words(SHARED)
        pages = ram.size // layout.PAGE
        # Sparse: what is never executed costs no memory.
        self._code_pages = _private(pages * 8)
        self._code_masks = _private(pages * 8)
        self._arena = _private(ARENA)
        self._handlers = self._handler_table()
        # Guards the arena and its tables while they are emptied: two VCPU threads may find it full at once.
        self._forgetting = threading.Lock()
        libc = ctypes.CDLL(None)
        shared["ram_base"], shared["ram_size"], shared["ram_host"] = ram.base, ram.size, ram.host
        shared["page_flags"] = ram.page_flags_host
        shared["code_pages"] = _address(self._code_pages)
        shared["code_masks"] = _address(self._code_masks)
        shared["handlers"] = _address(self._handlers)
        shared["clock"] = clock.words_host
        for name in ("clock_gettime", "syscall", "sched_yield"):
            shared[name] = ctypes.cast(getattr(libc, name), ctypes.c_void_p).value or 0
        shared["plic_base"], shared["clint_base"] = plic_base, clint_base
        shared["one"] = 1
        shared["nharts"] = harts
        self.code: CodeMemory | None = None
        self._jit_problem = "" if jit else "off"
        if jit:
            try:
                self.code = self._translator()
            except HostError as e:
                self._jit_problem = str(e)
        self._reset_arena()
        self.vcpus: Sequence[SoftwareVcpu] = [SoftwareVcpu(self, i) for i in range(harts)]
        for vcpu in self.vcpus:
            shared["hart", vcpu.index] = vcpu.address
        ram.on_code_written = self._code_written

    def _translator(self) -> CodeMemory:
        code = CodeMemory(CODE)
        shared = self.shared
        table, begins = stencil_table()
        self._stencils = table
        for name, at in begins.items():
            shared[name] = ctypes.addressof(table) + at
        self._scratch = _private(layout.PAGE * 8)
        shared["starts"] = _address(self._scratch)
        shared["fixups"] = _address(self._scratch) + layout.PAGE * 4
        shared["image"] = self.image.base
        shared["code_bias"] = code.bias
        shared["jit"] = 1
        return code

    def _handler_table(self) -> mmap.mmap:
        table = _private(layout.HANDLER_TABLE)
        fill = ctypes.PYFUNCTYPE(None, ctypes.c_uint64)(self.image.address("fill_handlers"))
        fill(_address(table))
        return table

    def wire(self, source: int) -> PlicWire:
        """The wire of interrupt source 1..95."""
        if not 0 < source < PLIC_SOURCES:
            raise InternalError(f"interrupt source {source} does not exist")
        return PlicWire(self.natives.set_level, self.vcpus[0].address, source)

    def interrupts(self) -> list[str]:
        """What is pending, as text. Any thread; harts that run change it meanwhile."""

        def sources(name: str) -> str:
            bits = self.shared[name, 0] | self.shared[name, 1] << 64
            return " ".join(str(source) for source in range(PLIC_SOURCES) if bits >> source & 1) or "none"

        lines = [f"PLIC sources: level high {sources('plic_level')}; claimed {sources('plic_claimed')}"]
        for vcpu in self.vcpus:
            words = vcpu.words
            pending = words["mip_hw"] | words["mip_sw"]
            names = [
                f"{name} {'enabled' if words['mie'] >> bit & 1 else 'masked'}"
                for bit, name in layout.INTERRUPTS.items()
                if pending >> bit & 1
            ]
            now = self.natives.time(vcpu.address)
            timers = [
                f"{name} {(words[name] - now) * layout.NS_PER_TICK / 1e6:+.3f} ms"
                for name in ("mtimecmp", "stimecmp")
                if words[name] != _NEVER
            ]
            lines.append(
                f"hart {vcpu.index}: pending {', '.join(names) or 'none'}; timers due in {', '.join(timers) or 'none'}"
            )
        return lines

    def _code_written(self, gpa: int, length: int) -> None:
        offset = gpa - self.ram.base
        end = offset + length
        while offset < end:
            here = min(end - offset, layout.PAGE - offset % layout.PAGE)
            self.natives.page_written(self.vcpus[0].address, offset, here)
            offset += here

    def _reset_arena(self) -> None:
        start = _address(self._arena)
        self.shared["arena_next"] = (start + 63) & ~63
        self.shared["arena_end"] = start + ARENA
        if self.code:
            self.shared["code_next"] = self.code.base
            self.shared["code_end"] = self.code.base + self.code.size
            self.shared["code_full"] = 0

    def jit_statistics(self) -> JitStatistics:
        s = self.shared
        used = s["code_next"] - self.code.base if self.code else 0
        seconds = s["translating_ns"] / 1e9
        return JitStatistics(s["translations"], s["translated"], used, s["emptied"], seconds, self._jit_problem)

    def translate(self) -> None:
        """Translate all that is decoded, warm or not. No hart may be in guest code."""
        for (records,) in struct.iter_unpack("<Q", self._code_pages):
            if records:
                self.natives.translate_page(self.vcpus[0].address, records)

    def forget_code(self) -> None:
        """Throw all pre-decoded and translated code away. No hart may be in guest code."""
        with self._forgetting:
            self.shared["emptied"] += 1
            self._forget_code()

    def _forget_code(self) -> None:
        for table in (self._code_pages, self._code_masks):
            table.madvise(mmap.MADV_DONTNEED)
        self._arena.madvise(mmap.MADV_DONTNEED)
        if self.code:
            self.code.give_back()
        flags = self.ram.page_flags
        for page, flag in enumerate(bytes(flags)):
            if flag & layout.PAGE_CODE:
                flags[page] = flag & ~layout.PAGE_CODE
        self._reset_arena()
        self.shared["young_count"] = 0
        for vcpu in self.vcpus:
            self.natives.flush_fetch(vcpu.address)

    def reset(self) -> None:
        """Harts, PLIC and ACLINT as at power-on; wires keep their levels. No hart may be in guest code."""
        for name in ("plic_claimed", "plic_priority", "plic_enable", "plic_threshold", "mtime_offset"):
            view = self.shared.view(name)
            for i in range(len(view)):
                view[i] = 0
        self._forget_code()
        for vcpu in self.vcpus:
            vcpu.reset()


def _private(size: int) -> mmap.mmap:
    """Zeroed memory whose pages `madvise(MADV_DONTNEED)` zeroes again."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


__all__ = ["Exit", "Mmio", "Natives", "PlicWire", "SoftwareBackend", "SoftwareVcpu", "native_code"]
