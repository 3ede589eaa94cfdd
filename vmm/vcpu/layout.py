"""The native structs that generated code and Python share, and the constants that both speak.

`HART` is one software hart, `SHARED` what all harts of a machine have in common. Python reads and writes fields
through `Words`, generated code through `ir.Ref`; the rows below are the only description of either.
"""

from __future__ import annotations

import ctypes
import mmap
from enum import IntEnum

from vmm.codegen.ir import Struct

MAX_HARTS = 32
PAGE = 4096

# -- translation look-aside buffers -------------------------------------------------------------------------------
#: Data TLB: direct-mapped, one array per translation mode, so that traps need no flush.
TLB_ENTRIES = 256
TLB_ENTRY = 32  # read tag, write tag, host address minus virtual address, spare
TLB_MODES = 4  # U; S with SUM clear; S with SUM set; bare (M, or satp off)
MODE_U, MODE_S, MODE_S_SUM, MODE_BARE = range(TLB_MODES)
#: Fetch TLB: direct-mapped, one array per mode of fetching (U, S, bare).
XTLB_ENTRIES = 256
XTLB_ENTRY = 16  # tag, pre-decoded records of the page
XTLB_MODES = 3
XMODE_U, XMODE_S, XMODE_BARE = range(XTLB_MODES)
NO_TAG = -1  # equals no page address, whatever alignment bits are compared

# -- pre-decoded code ---------------------------------------------------------------------------------------------
#: One record per halfword of a page: handler address (u32) and four operand bytes.
RECORD = 8
RECORDS_HEADER = 64  # in front of a page's records: host address and index of the page
RECORDS_END = (PAGE // 2 + 2) * RECORD + 48  # two closing records; a multiple of 64
RECORDS_SIZE = RECORDS_HEADER + RECORDS_END + PAGE  # and behind them a u16 each: the number of its handler
HEAT = 16  # in the header, u32: how often a slice ended in the page, in code that was not translated
TRANSLATED = 1 << 15  # beside a handler's number: the instruction is part of translated code
#: Handlers that are no instruction's, first in the table of handler addresses.
UNDECODED, PAGE_END, RETIRED, ILLEGAL, STRADDLING, DISPATCH = range(6)
HANDLER_TABLE = PAGE  # bytes of the table of handler addresses
SINK = 32  # where a result for x0 goes

# -- page flags (fabric/ram.py) -----------------------------------------------------------------------------------
PAGE_CODE = 1
PAGE_CLEAN = 2
PAGE_DIRTY = 4

# -- requests to a hart (`poll`) ----------------------------------------------------------------------------------
POLL_IRQ = 1  # its interrupt lines or timers changed
POLL_EXIT = 2  # leave to Python
POLL_FENCE = 4  # `fence_req` is ahead of `fence_ack`: drop all cached translations

# -- interrupts, bit numbers of mip (priv. spec 3.1.9) ------------------------------------------------------------
SSI, MSI, STI, MTI, SEI, MEI = 1, 3, 5, 7, 9, 11
INTERRUPTS = {SSI: "SSI", MSI: "MSI", STI: "STI", MTI: "MTI", SEI: "SEI", MEI: "MEI"}
NS_PER_TICK = 100  # of mtime: the timebase is 10 MHz

PRV_U, PRV_S, PRV_M = 0, 1, 3


class Cause(IntEnum):
    """Exception codes (priv. spec table 3.6)."""

    FETCH_MISALIGNED = 0
    FETCH_ACCESS = 1
    ILLEGAL = 2
    BREAKPOINT = 3
    LOAD_MISALIGNED = 4
    LOAD_ACCESS = 5
    STORE_MISALIGNED = 6
    STORE_ACCESS = 7
    ECALL_U = 8
    ECALL_S = 9
    ECALL_M = 11
    FETCH_PAGE = 12
    LOAD_PAGE = 13
    STORE_PAGE = 15


#: In `fault`, instead of a cause: the access needs Python (`exit_reason` says why). Nothing was done yet.
FAULT_EXIT = 64

READ, WRITE, EXEC = 0, 1, 2


class Exit(IntEnum):
    """Why `run` came back (`exit_reason`)."""

    NONE = 0
    MMIO_READ = 1  # mmio_addr, mmio_size -> mmio_value
    MMIO_WRITE = 2  # mmio_addr, mmio_size, mmio_value
    SBI = 3  # a0..a7 of the environment call; pc is past it
    KICK = 4
    BUDGET = 5
    EMULATE = 6  # the instruction at pc is left to Python (floating point rounded to nearest, ties away)
    CODE_FULL = 7  # no room for pre-decoded pages
    HOST_FAULT = 8  # generated code met a signal of the host: crash_* tell where; the hart cannot go on


class Mmio(IntEnum):
    """State of the access that Python completes (`mmio_state`)."""

    IDLE = 0
    DONE = 1  # Python has answered: the instruction runs again and consumes the answer
    FAULT = 2  # Python refused: it runs again and takes an access fault


MAX_DOORBELLS = 128

HART = Struct(
    "hart",
    [
        ("x", "i64", 33),  # x0..x31 and the sink
        ("poll", "i32"),  # POLL_* requests of others; also the futex that WFI sleeps on
        ("fp_fast", "i32"),  # FS is on and frm is one that the host's MXCSR can hold
        ("pcbias", "i64"),  # pc = (record address >> 2) + pcbias
        ("xtlb_now", "ptr"),
        ("dtlb_now", "ptr"),
        ("pc", "i64"),  # valid outside of handlers
        ("f", "i64", 32),
        ("mstatus", "i64"),
        # -- counting ---------------------------------------------------------------------------------------------
        ("slice", "i64"),  # instructions granted at the last slice's start
        ("retired", "i64"),  # instructions before the current slice
        ("budget", "i64"),  # what `run(budget)` still grants beyond the current slice
        ("untaken", "i64"),  # steps that trapped: counted in `retired`, not in minstret
        ("instret_base", "i64"),  # what the guest wrote to minstret, minus the count then
        ("cycle_base", "i64"),
        # -- privilege and CSRs -----------------------------------------------------------------------------------
        ("prv", "i64"),
        ("misa", "i64"),
        ("mhartid", "i64"),
        ("medeleg", "i64"),
        ("mideleg", "i64"),
        ("mie", "i64"),
        ("mip_sw", "i64"),  # bits of mip that software owns
        ("mip_hw", "i64"),  # bits that wires and timers own; atomic, other threads write it
        ("mtvec", "i64"),
        ("mscratch", "i64"),
        ("mepc", "i64"),
        ("mcause", "i64"),
        ("mtval", "i64"),
        ("mcounteren", "i64"),
        ("mcountinhibit", "i64"),
        ("menvcfg", "i64"),
        ("senvcfg", "i64"),
        ("stvec", "i64"),
        ("sscratch", "i64"),
        ("sepc", "i64"),
        ("scause", "i64"),
        ("stval", "i64"),
        ("scounteren", "i64"),
        ("satp", "i64"),
        ("stimecmp", "i64"),
        ("mtimecmp", "i64"),
        ("pmpcfg", "i64", 2),
        ("pmpaddr", "i64", 16),
        ("pmp_lo", "i64", 16),  # decoded bounds, first and last byte; lo > hi: the entry is off
        ("pmp_hi", "i64", 16),
        ("pmp_on", "i64"),  # 0: no check at all (built-in SBI)
        ("sbi_builtin", "i64"),
        # -- floating point ---------------------------------------------------------------------------------------
        ("mxcsr", "i32"),  # the guest's, while the hart is out
        ("host_mxcsr", "i32"),
        ("frm", "i64"),
        ("fflags", "i64"),  # raised by hand; the rest accrues in MXCSR
        # -- reservation ------------------------------------------------------------------------------------------
        ("res_addr", "i64"),  # virtual address, -1: none (a trap drops it, so it cannot outlive its mapping)
        ("res_value", "i64"),
        # -- memory -----------------------------------------------------------------------------------------------
        ("fault", "i64"),
        ("fault_addr", "i64"),
        ("resync", "i64"),  # a CSR was written that decides about interrupts (1) or timers (2)
        ("big_lo", "i64"),  # virtual range that may hold entries of superpages
        ("big_hi", "i64"),
        ("mmio_state", "i64"),
        ("mmio_addr", "i64"),
        ("mmio_size", "i64"),
        ("mmio_value", "i64"),
        # -- the outside ------------------------------------------------------------------------------------------
        ("exit_reason", "i64"),
        ("in_guest", "i32"),
        ("waiting", "i32"),  # asleep in WFI
        ("fence_req", "i64"),
        ("fence_ack", "i64"),
        ("code_epoch", "i64"),  # the newest SHARED.code_epoch this hart has seen between two instructions
        ("host_sp", "i64"),  # where `run` was entered, for leaving it after a fault of the host
        ("host_landing", "i64"),
        ("crash_signal", "i64"),
        ("crash_addr", "i64"),
        ("crash_rip", "i64"),
        ("crash_ip", "i64"),  # the record being executed, 0 if unknown
        ("shared", "ptr"),
        ("ts", "i64", 2),  # struct timespec
        ("idle_ns", "i64"),  # time asleep in WFI
        ("wfi_count", "i64"),
        ("irq_count", "i64"),
        ("trap_count", "i64"),
        ("scratch", "i64", 4),  # records of an instruction that straddles two pages
        ("dtlb", "i64", TLB_MODES * TLB_ENTRIES * TLB_ENTRY // 8),
        ("xtlb", "i64", XTLB_MODES * XTLB_ENTRIES * XTLB_ENTRY // 8),
        # -- doorbells: stores that only write an eventfd ---------------------------------------------------------
        ("doorbell_count", "i64"),
        ("doorbell_addr", "i64", MAX_DOORBELLS),
        ("doorbell_size", "i64", MAX_DOORBELLS),
        ("doorbell_value", "i64", MAX_DOORBELLS),  # -1: any
        ("doorbell_fd", "i64", MAX_DOORBELLS),
    ],
    align=PAGE,
)

PLIC_SOURCES = 96
PLIC_CONTEXTS = 2 * MAX_HARTS
YOUNG_PAGES = 512

SHARED = Struct(
    "shared",
    [
        ("ram_base", "i64"),
        ("ram_size", "i64"),
        ("ram_host", "i64"),
        ("page_flags", "ptr"),  # u8 per page of RAM
        ("code_pages", "ptr"),  # records of each page of RAM, or null
        ("code_masks", "ptr"),  # u64 per page: which 64-byte chunks hold decoded instructions
        ("arena_next", "i64"),  # bump allocator of records
        ("arena_end", "i64"),
        ("clock", "ptr"),  # fabric/clock.py: word 0 is guest time minus CLOCK_MONOTONIC, ns
        ("mtime_offset", "i64"),  # what writes to mtime added, ticks
        ("nharts", "i64"),
        ("hart", "ptr", MAX_HARTS),
        ("handlers", "ptr"),  # u32 address per (operation, variant), see native/decoder.py
        ("code_epoch", "i64"),  # advanced whenever a page becomes code
        ("code_lock", "i32"),
        ("young_count", "i32"),
        ("young_page", "i64", YOUNG_PAGES),
        # -- libc -------------------------------------------------------------------------------------------------
        ("clock_gettime", "ptr"),
        ("syscall", "ptr"),
        ("sched_yield", "ptr"),
        # -- PLIC (sifive, plic spec 1.0) -------------------------------------------------------------------------
        ("plic_base", "i64"),
        ("plic_lock", "i32"),
        ("plic_level", "i64", 2),
        ("plic_claimed", "i64", 2),
        ("plic_priority", "i32", PLIC_SOURCES),
        ("plic_enable", "i64", 2 * PLIC_CONTEXTS),
        ("plic_threshold", "i32", PLIC_CONTEXTS),
        # -- ACLINT -----------------------------------------------------------------------------------------------
        ("clint_base", "i64"),
        ("one", "i64"),  # what is written to an eventfd
        # -- translated code --------------------------------------------------------------------------------------
        ("jit", "i64"),  # 0: off
        ("image", "i64"),  # where the handlers' image is
        ("stencils", "ptr"),
        ("holes", "ptr"),
        ("pieces", "ptr"),  # the stencils' bytes
        ("code_next", "i64"),  # where the next block goes, and where that ends: as executable addresses
        ("code_end", "i64"),
        ("code_bias", "i64"),  # what to add to write there
        ("code_full", "i64"),  # a page found no room
        ("starts", "ptr"),  # scratch of a translation, under `code_lock`: u32 per halfword, its block's address
        ("fixups", "ptr"),  # the same: u32 pairs, where a jump is and which halfword it goes to
        ("translations", "i64"),
        ("translated", "i64"),  # instructions
        ("translating_ns", "i64"),
        ("emptied", "i64"),
    ],
)

# -- translated code ----------------------------------------------------------------------------------------------
#: A piece of machine code to be copied (native/stencils.py), one for each handler and a few more.
STENCIL = Struct(
    "stencil",
    [
        ("code", "i32"),  # where it is in the table's bytes
        ("size", "i16"),
        ("own", "i16"),  # number of the handler that does the instruction alone (a fused pair's: its first half)
        ("holes", "i32"),  # index of the first
        ("hole_count", "i16"),
        ("length", "i8"),  # of the instruction
        ("flags", "i8"),  # PLACED ...
        ("variants", "i16"),  # row of the first that takes an operand from the instruction before; 0: there is none
        ("reads", "i8", 2),  # of each variant, where its operand's number is: a bit of the record's operand bytes
    ],
    align=4,
)
PLACED, ENDS, NEAR, WIDE_IMM = 1, 2, 4, 8  # may be in a block; ends it; has a target in its page; of 24 bits
WRITES = 16  # has an integer result, which its first operand byte names
NO_READ = 32  # in `reads`: no such variant; beyond the operand bytes
HOLE = Struct(
    "hole",
    [
        ("addend", "i32"),
        ("at", "i16"),  # byte offset in the piece
        ("fill", "i8"),  # what goes in
        ("size", "i8"),  # bytes
        ("low", "i8"),
        ("width", "i8"),
        ("signed", "i8"),
        ("scale", "i8"),
    ],
    align=4,
)
BLOCK = 64  # instructions of a translated block, at most

#: A VCPU thread's signal stack, aligned to its size; its first words are this mark and the hart's address.
SIGNAL_STACK = 64 << 10
SIGNAL_MARK = 0x6D6D_765F_6861_7274

SLICE = 100_000  # instructions between two looks at the clock, at most: 0.3 ms


class Words:
    """A zeroed native struct that Python owns: `w["pc"]`, `w["pc"] = v`, arrays as `w["x", 5]`.

    Single fields are also served as one-element memoryviews by `view(name)` for hot paths.
    """

    def __init__(self, layout: Struct) -> None:
        self.layout = layout
        self._map = mmap.mmap(-1, (layout.size + PAGE - 1) // PAGE * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        whole = memoryview(self._map)
        self._q = whole[: layout.size].cast("Q")
        self._i = whole[: layout.size].cast("I")

    def _slot(self, key: str | tuple[str, int]) -> tuple[memoryview, int]:
        name, index = (key, 0) if isinstance(key, str) else key
        field = self.layout.fields[name]
        if not 0 <= index < field.count:
            raise IndexError(f"{self.layout.name}.{name}[{index}]")
        view = self._i if field.size == 4 else self._q
        return view, (field.offset // field.size) + index

    def __getitem__(self, key: str | tuple[str, int]) -> int:
        view, at = self._slot(key)
        value: int = view[at]
        return value

    def __setitem__(self, key: str | tuple[str, int], value: int) -> None:
        view, at = self._slot(key)
        view[at] = value & (0xFFFF_FFFF if view is self._i else 0xFFFF_FFFF_FFFF_FFFF)

    def at(self, name: str, index: int = 0) -> int:
        """Host address of a field."""
        return self.address + self.layout.at(name, index)

    def view(self, name: str) -> memoryview:
        """The field's elements as unsigned integers."""
        view, at = self._slot(name)
        return view[at : at + self.layout.fields[name].count]
