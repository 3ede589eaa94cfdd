"""The control and status registers of a hart: numbers, names, and who may touch them.

Privilege and access are in the number itself (priv. spec, "CSR Address Mapping Conventions"), and are read from it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Privilege(enum.IntEnum):
    """Lowest privilege level that may access a register, with the encoding of mstatus.MPP."""

    U = 0
    S = 1
    M = 3


@dataclass(frozen=True, slots=True)
class Csr:
    """One register."""

    number: int
    name: str
    doc: str
    section: str  #: where the unprivileged (u:) or privileged (p:) specification describes it

    @property
    def privilege(self) -> Privilege:
        return Privilege((self.number >> 8) & 3)

    @property
    def read_only(self) -> bool:
        return self.number >> 10 == 3


#: Physical memory protection entries.
PMP_ENTRIES = 16

# fmt: off
_ROWS = [
    # floating point
    (0x001, "fflags",        "accrued floating-point exceptions",                        "u: F, fcsr"),
    (0x002, "frm",           "dynamic rounding mode",                                    "u: F, fcsr"),
    (0x003, "fcsr",          "both of these",                                            "u: F, fcsr"),
    # counters
    (0xC00, "cycle",         "cycles; here, instructions retired",                       "u: Zicntr"),
    (0xC01, "time",          "real time, in ticks of the timebase",                      "u: Zicntr"),
    (0xC02, "instret",       "instructions retired",                                     "u: Zicntr"),
    # supervisor
    (0x100, "sstatus",       "the part of mstatus that S-mode may see",                  "p: Supervisor, sstatus"),
    (0x104, "sie",           "the delegated interrupts that are enabled",                "p: Supervisor, sip and sie"),
    (0x105, "stvec",         "where S-mode traps go",                                    "p: Supervisor, stvec"),
    (0x106, "scounteren",    "counters that U-mode may read",                            "p: Supervisor, scounteren"),
    (0x10A, "senvcfg",       "what U-mode may do: cache block instructions",             "p: Supervisor, senvcfg"),
    (0x140, "sscratch",      "a word for the trap handler",                              "p: Supervisor, sscratch"),
    (0x141, "sepc",          "pc of the instruction that trapped",                       "p: Supervisor, sepc"),
    (0x142, "scause",        "why it trapped",                                           "p: Supervisor, scause"),
    (0x143, "stval",         "the faulting address or the illegal instruction",          "p: Supervisor, stval"),
    (0x144, "sip",           "the delegated interrupts that are pending",                "p: Supervisor, sip and sie"),
    (0x14D, "stimecmp",      "the S-mode timer is pending when time reaches this",       "p: Sstc"),
    (0x180, "satp",          "root page table, ASID and paging mode",                    "p: Supervisor, satp"),
    # machine: identity
    (0xF11, "mvendorid",     "vendor of the core; 0, as for any non-commercial one",     "p: Machine, mvendorid"),
    (0xF12, "marchid",       "microarchitecture",                                        "p: Machine, marchid"),
    (0xF13, "mimpid",        "version of the implementation",                            "p: Machine, mimpid"),
    (0xF14, "mhartid",       "number of this hart",                                      "p: Machine, mhartid"),
    (0xF15, "mconfigptr",    "address of a configuration structure; 0, there is none",   "p: Machine, mconfigptr"),
    # machine: traps
    (0x300, "mstatus",       "interrupt enables, previous modes, state of the FPU",      "p: Machine, mstatus"),
    (0x301, "misa",          "base and extensions",                                      "p: Machine, misa"),
    (0x302, "medeleg",       "exceptions that go to S-mode",                             "p: Machine, medeleg"),
    (0x303, "mideleg",       "interrupts that go to S-mode",                             "p: Machine, mideleg"),
    (0x304, "mie",           "interrupts that are enabled",                              "p: Machine, mip and mie"),
    (0x305, "mtvec",         "where M-mode traps go",                                    "p: Machine, mtvec"),
    (0x306, "mcounteren",    "counters that S-mode may read",                            "p: Machine, mcounteren"),
    (0x30A, "menvcfg",       "what S-mode may do: stimecmp, page types, A/D updates",    "p: Machine, menvcfg"),
    (0x320, "mcountinhibit", "counters that stand still; always 0",                      "p: Machine, mcountinhibit"),
    (0x340, "mscratch",      "a word for the trap handler",                              "p: Machine, mscratch"),
    (0x341, "mepc",          "pc of the instruction that trapped",                       "p: Machine, mepc"),
    (0x342, "mcause",        "why it trapped",                                           "p: Machine, mcause"),
    (0x343, "mtval",         "the faulting address or the illegal instruction",          "p: Machine, mtval"),
    (0x344, "mip",           "interrupts that are pending",                              "p: Machine, mip and mie"),
    # machine: counters
    (0xB00, "mcycle",        "cycles; here, instructions retired",                       "p: Machine, performance monitor"),
    (0xB02, "minstret",      "instructions retired",                                     "p: Machine, performance monitor"),
    # families
    *((0xC00 + n, f"hpmcounter{n}",  "an event counter; always 0",                       "u: Zihpm") for n in range(3, 32)),
    *((0xB00 + n, f"mhpmcounter{n}", "an event counter; always 0",                       "p: Machine, performance monitor") for n in range(3, 32)),
    *((0x320 + n, f"mhpmevent{n}",   "what it would count; always 0",                    "p: Machine, performance monitor") for n in range(3, 32)),
    *((0x3A0 + n, f"pmpcfg{n}",      "permissions of eight PMP entries",                 "p: Machine, PMP") for n in range(0, PMP_ENTRIES // 4, 2)),
    *((0x3B0 + n, f"pmpaddr{n}",     "address of a PMP entry, bits 55 to 2",             "p: Machine, PMP") for n in range(PMP_ENTRIES)),
]
# fmt: on

#: Every register by number.
CSRS: dict[int, Csr] = {row[0]: Csr(*row) for row in _ROWS}

#: Number of a register by name.
NUMBERS: dict[str, int] = {csr.name: csr.number for csr in CSRS.values()}
