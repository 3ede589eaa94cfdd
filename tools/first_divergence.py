"""Find the first instruction at which the software VCPU differs from QEMU, in a boot or whatever else runs on `virt`.

QEMU runs the guest to where the comparison begins. Its memory and registers are copied to a hart here, and then both
go on in single steps, comparing pc and x registers after each; at the end of a window, floating-point registers,
control registers and memory too. QEMU's time is the count of its instructions, and its devices answer for both: what
it loads from a device or reads from a counter the hart here is given too, and an interrupt that it takes is taken here.

Begin where the firmware begins (the default), at the first time that an address is reached (`--from`, hexadecimal), or
after some seconds of QEMU's running (`--after`). `--windows` compares several stretches of one run, `--every` seconds
apart: a whole boot can be looked through in samples, each of which starts anew from QEMU's state.

    python -m tools.first_divergence --count 100000 -- -bios program.bin
    python -m tools.first_divergence --from 80200000 -- -kernel Image -initrd initrd -append "console=ttyS0 no5lvl"
    python -m tools.first_divergence --debian --after 1 --windows 20 --every 0.5 --count 5000

Everything behind `--` is QEMU's. Some thousand instructions are compared in a second. A guest must not use Sv57, which
is not here. Exit status: 0 no difference, 1 a difference was found, 2 it could not be looked for.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tools.gdb_remote import Stub, qemu_command
from vmm.errors import ConfigError, VmmError
from vmm.fabric.clock import Clock
from vmm.fabric.ram import Ram
from vmm.isa.csr import CSRS
from vmm.isa.disasm import disassemble, register_names
from vmm.isa.encoding import Flag
from vmm.isa.table import decode
from vmm.testing.fakes import FakeIoThread
from vmm.vcpu.emulate import emulate
from vmm.vcpu.layout import PAGE, Exit
from vmm.vcpu.software import SoftwareBackend

RAM = 0x8000_0000
#: QEMU's processor without what the one here lacks.
CPU = "rv64,h=off,zbc=off,sstc=on"
_NOWHERE = 1 << 60  # where no guest finds an interrupt controller: QEMU's answers for both
_WORD = (1 << 64) - 1
_INTERRUPT = 1 << 63
_WFI = 0x1050_0073
#: Registers that count or tell the time: QEMU's values are taken over without a word.
_CLOCKS = frozenset({"time", "cycle", "instret", "mcycle", "minstret", "mip", "sip"})
#: Registers that make up a hart's state; the rest follows from them, or is the same on every hart.
_STATE = (
    *("mstatus", "medeleg", "mideleg", "mie", "mtvec", "mscratch", "mepc", "mcause", "mtval", "mcounteren", "menvcfg"),
    *("stvec", "sscratch", "sepc", "scause", "stval", "scounteren", "senvcfg", "satp"),
    *(f"pmpaddr{n}" for n in range(16)),
    *("pmpcfg0", "pmpcfg2"),
)
_TRAP = ("mstatus", "mepc", "mcause", "mtval", "sepc", "scause", "stval")
_ADUE = 1 << 61  # QEMU before 9.0 always sets A and D
_X, _F = register_names()


class Different(Exception):
    """The two harts are not in the same state any more."""


@dataclass
class Report:
    """What was compared, and what was taken over from QEMU on the way."""

    compared: int = 0
    interrupts: int = 0
    accesses: int = 0
    registers: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        csrs = ", ".join(f"{name} ({n})" for name, n in sorted(self.registers.items()))
        return (
            f"{self.compared} instructions compared; {self.interrupts} interrupts and {self.accesses} loads from"
            f" devices were QEMU's{f'; so were the control registers {csrs}' if csrs else ''}"
        )


class Comparison:
    """QEMU's hart and one of ours, in lock step."""

    def __init__(self, qemu: Stub, megabytes: int, history: int) -> None:
        self.qemu = qemu
        self.report = Report()
        self.ram = Ram(RAM, megabytes << 20)
        clock = Clock(FakeIoThread())
        self.backend = SoftwareBackend(
            self.ram, clock, 1, plic_base=_NOWHERE, clint_base=_NOWHERE + (1 << 32), sbi=False
        )
        self.hart = self.backend.vcpus[0]
        shared = self.backend.shared
        shared["clock_gettime"] = shared["sched_yield"]  # answers nothing: no time passes, no timer fires
        self._past: deque[tuple[int, int | None]] = deque(maxlen=history)
        self._x: tuple[int, ...] = ()
        self._narrower: set[str] = set()  # control registers that do not hold all that QEMU's do

    def close(self) -> None:
        self.ram.close()

    # -- QEMU's state, copied -----------------------------------------------------------------------------------------

    def copy(self) -> None:
        """Start again from where QEMU is."""
        q, h = self.qemu, self.hart
        self.backend.reset()
        self.ram.view[:] = q.memory(RAM, self.ram.size)
        h.set_csr("mstatus", 3 << 13)
        for n, name in enumerate(_F):
            h.f[n] = q.register(name) or 0
        self._take_csrs(_STATE)
        if h.csr("satp") != (q.register("satp") or 0):
            raise ConfigError("the guest uses Sv57, which is not here: append no5lvl to a Linux command line")
        self._take_registers(q.registers())
        h.privilege = q.register("priv") or 0
        self._narrower = {name for name, wanted, got in self._csrs() if wanted != got}

    def _csrs(self) -> Iterator[tuple[str, int, int]]:
        """Control registers that both have: QEMU's value, and that here."""
        for name in _STATE:
            wanted = self.qemu.register(name)
            if wanted is not None:
                yield name, wanted, self.hart.csr(name) & ~(_ADUE if name == "menvcfg" else 0)

    def _take_registers(self, values: Sequence[int]) -> None:
        for n in range(1, 32):
            self.hart.x[n] = values[n]
        self.hart.pc = values[32]
        self._x = tuple(values)

    def _take_csrs(self, names: Sequence[str]) -> None:
        for name in names:
            value = self.qemu.register(name)
            if value is not None:
                self.hart.set_csr(name, value | _ADUE if name == "menvcfg" else value)

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One instruction of both; Different if they did not do the same."""
        q, h = self.qemu, self.hart
        pc = h.pc
        word = h.fetch(pc)
        self._past.append((pc, word))
        q.step()
        wanted = q.registers()
        if word == _WFI:
            h.pc = pc + 4  # it would wait for an interrupt that only QEMU will have
        elif not self._is_interrupt(wanted, pc):
            self._run(word, wanted)
        if (h.pc, *h.x[1:32]) != (wanted[32], *wanted[1:32]) and not self._settle(word, wanted):
            raise Different(self._explain(wanted))
        self._x = wanted
        self.report.compared += 1

    def _is_interrupt(self, wanted: Sequence[int], pc: int) -> bool:
        """Whether QEMU took an interrupt in place of the instruction at pc."""
        for prefix in ("s", "m"):
            vector = self.hart.words[f"{prefix}tvec"]
            if not 0 <= wanted[32] - (vector & ~3) <= (4 * 63 if vector & 1 else 0) or wanted[1:32] != self._x[1:32]:
                continue
            cause, epc = self.qemu.register(f"{prefix}cause") or 0, self.qemu.register(f"{prefix}epc")
            if cause & _INTERRUPT and epc == pc:
                return True
        return False

    def _run(self, word: int | None, wanted: Sequence[int]) -> None:
        """The instruction here. QEMU has the answers of devices."""
        h = self.hart
        steps = h.instructions
        while h.instructions == steps:
            reason = h.run(1)
            if reason == Exit.EMULATE:
                emulate(h)
            elif reason == Exit.MMIO_READ:
                insn = decode(word) if word is not None else None
                register = insn.sources["rd"].extract(word or 0) if insn and "rd" in insn.sources else 0
                h.mmio_value[0] = wanted[register] & ((1 << 8 * h.mmio_size[0]) - 1)
                h.mmio_state[0] = 1
                self.report.accesses += 1
            elif reason == Exit.MMIO_WRITE:
                h.mmio_state[0] = 1
            elif reason == Exit.CODE_FULL:
                self.backend.forget_code()
            elif reason != Exit.BUDGET:
                raise Different(f"the hart here left with {Exit(reason).name}")

    def _settle(self, word: int | None, wanted: tuple[int, ...]) -> bool:
        """Whether the two differ in a way in which they may: then the hart here follows."""
        insn = decode(word) if word is not None else None
        pc = self._past[-1][0]
        if insn is not None and insn.flags & Flag.CSR:
            name = CSRS[insn.extract(word or 0)["imm"]].name if insn.extract(word or 0)["imm"] in CSRS else "unknown"
            if name not in _CLOCKS:
                self.report.registers[name] += 1
            if self.hart.pc == wanted[32]:
                self._take_registers(wanted)
            else:  # one of the two lacks the register
                self._follow(wanted)
            return True
        if self._is_interrupt(wanted, pc + 4 if word == _WFI else pc):
            self.report.interrupts += 1
            self._follow(wanted)
            return True
        if (
            self.hart.pc != wanted[32]
            and self.hart.csr("mcause" if self.hart.privilege == 3 else "scause") & _INTERRUPT
        ):
            self.qemu.step()  # an interrupt that software raised, taken here as part of what enabled it
            after = self.qemu.registers()
            return (self.hart.pc, *self.hart.x[1:32]) == (after[32], *after[1:32])
        return False

    def _follow(self, wanted: Sequence[int]) -> None:
        """Into a trap that only QEMU took, or out of one that it did not take."""
        self._take_csrs(_TRAP)
        self._take_registers(wanted)
        self.hart.privilege = self.qemu.register("priv") or 0

    # -- what the steps do not show -----------------------------------------------------------------------------------

    def compare_all(self) -> None:
        """Everything else; Different if something is not the same."""
        q, h = self.qemu, self.hart
        rows = []
        for n, name in enumerate(_F):
            wanted = q.register(name)
            if wanted is not None and wanted != h.f[n]:
                rows.append(_row(name, wanted, h.f[n]))
        excused = self._narrower | self.report.registers.keys()
        rows += [_row(name, wanted, got) for name, wanted, got in self._csrs() if wanted != got and name not in excused]
        if rows:
            raise Different("\n".join([f"after {self.report.compared} instructions, registers differ:", *rows]))
        theirs, ours = memoryview(q.memory(RAM, self.ram.size)), self.ram.view
        pages = [at for at in range(0, self.ram.size, PAGE) if theirs[at : at + PAGE] != ours[at : at + PAGE]]
        if pages:
            at = next(n for n in range(pages[0], pages[0] + PAGE, 8) if theirs[n : n + 8] != ours[n : n + 8])
            row = _row(f"{RAM + at:#x}", *(int.from_bytes(side[at : at + 8], "little") for side in (theirs, ours)))
            raise Different(f"after {self.report.compared} instructions, {len(pages)} pages of memory differ:\n{row}")

    def _explain(self, wanted: Sequence[int]) -> str:
        h = self.hart
        lines = [f"after {self.report.compared} instructions they differ. The last ones:"]
        for pc, word in self._past:
            text = "cannot be fetched" if word is None else f"{word:08x}  {disassemble(word, pc)}"
            lines.append(f"    {pc:016x}  {text}")
        lines.append("                    before            QEMU              here")
        for n in range(1, 32):
            if wanted[n] != h.x[n]:
                lines.append(f"    {_X[n]:14}{self._x[n]:016x}  {wanted[n]:016x}  {h.x[n]:016x}")
        if wanted[32] != h.pc:
            lines.append(f"    {'pc':14}{self._past[-1][0]:016x}  {wanted[32]:016x}  {h.pc:016x}")
        for name in ("mcause", "mtval", "scause", "stval", "mstatus", "satp"):
            lines.append(f"    {name:32}{self.qemu.register(name) or 0:016x}  {h.csr(name):016x}")
        return "\n".join(lines)


def _row(name: str, wanted: int, got: int) -> str:
    return f"    {name:14}QEMU {wanted:016x}  here {got:016x}"


def compare(
    comparison: Comparison, count: int, windows: int, between: Callable[[], None], progress: Callable[[str], None]
) -> None:
    """Windows of `count` instructions; between two of them QEMU goes on by itself. Different when they are."""
    for window in range(windows):
        if window:
            between()
        comparison.copy()
        progress(f"window {window + 1} of {windows} from pc {comparison.hart.pc:#x}")
        for _ in range(count):
            comparison.step()
        comparison.compare_all()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.first_divergence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--from", dest="start", metavar="ADDRESS", type=lambda text: int(text, 16), help="begin at this address"
    )
    start.add_argument("--after", metavar="SECONDS", type=float, help="begin when QEMU has run for so long")
    parser.add_argument("--count", type=int, default=20_000, help="instructions in a window (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=1, help="how many windows (default: %(default)s)")
    parser.add_argument("--every", metavar="SECONDS", type=float, default=0.2, help="QEMU's time between windows")
    parser.add_argument("--mem", metavar="MIB", type=int, default=128, help="memory (default: %(default)s)")
    parser.add_argument(
        "--shift", type=int, default=0, help="an instruction takes 2**SHIFT ns: more of them, more interrupts"
    )
    parser.add_argument("--history", type=int, default=12, help="instructions shown (default: %(default)s)")
    parser.add_argument("--debian", action="store_true", help="boot Debian's kernel, fetched as `vmm-run debian` does")
    parser.add_argument("--qemu", metavar="PROGRAM", default="qemu-system-riscv64", help="default: %(default)s")
    parser.add_argument("--cpu", default=CPU, help="QEMU's processor (default: %(default)s)")
    parser.add_argument("qemu_arguments", nargs="*", metavar="ARGUMENT", help="more arguments of QEMU's, behind `--`")
    options = parser.parse_args(arguments)
    try:
        return _compare(options)
    except VmmError as error:
        print(error, file=sys.stderr)
        return 2


def _compare(options: argparse.Namespace) -> int:
    program = shutil.which(options.qemu)
    if program is None:
        raise ConfigError(f"--qemu {options.qemu}: not found; install the package qemu-system-misc")
    guest = list(options.qemu_arguments)
    if options.debian:
        from vmm.guests.debian import prepare

        debian = prepare()
        guest += [
            "-kernel",
            str(debian.kernel),
            "-initrd",
            str(debian.initrd),
            "-append",
            f"{debian.report_append} no5lvl",
        ]
    with Stub(qemu_command(program, guest, options.mem, options.cpu, options.shift)) as qemu:
        if options.after is not None:
            qemu.run_for(options.after)
        else:
            qemu.run_to(RAM if options.start is None else options.start)
        qemu.keep_time_while_stepping()
        comparison = Comparison(qemu, options.mem, options.history)
        try:
            compare(
                comparison,
                options.count,
                options.windows,
                lambda: qemu.run_for(options.every),
                lambda text: print(text, file=sys.stderr),
            )
        except Different as difference:
            print(difference)
            return 1
        finally:
            print(comparison.report)
            comparison.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
