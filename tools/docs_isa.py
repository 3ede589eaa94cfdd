"""Write docs/isa.md from the instruction and CSR tables; with --check, say whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby

from tools.pages import publish
from vmm.isa.csr import CSRS, Csr
from vmm.isa.encoding import Instruction
from vmm.isa.table import BASE, COMPRESSED

HEAD = """\
# Instructions and registers of a hart

RV64IMAFDC with Zicsr, Zifencei, Zba, Zbb, Zbs, Zicbom and Zicboz; M, S and U modes. Generated from the tables in
`vmm/isa` by `make docs`: the same rows make the decoder, the interpreter and the disassembler.

Encodings are written most significant bit first. `rd'` and the like are three bits, for registers 8 to 15; `nz` marks
an immediate that must not be zero; `-` is a bit that is ignored; `rd!=0` excludes a register number. Memory accesses
of A are always sequentially consistent, whatever `aq` and `rl` say.
"""

EXTENSIONS = {
    "I": "Base integer instructions",
    "M": "Multiplication and division",
    "A": "Atomic memory operations",
    "F": "Single-precision floating point",
    "D": "Double-precision floating point",
    "C": "Compressed instructions",
    "Zicsr": "Control and status registers",
    "Zifencei": "Instruction fetch fence",
    "privileged": "Privileged instructions",
    "Zba": "Address generation",
    "Zbb": "Basic bit manipulation",
    "Zbs": "Single-bit instructions",
    "Zicbom": "Cache block management",
    "Zicboz": "Cache block zero",
}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a Markdown table with aligned columns."""
    cells = [head, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for n, row in enumerate(cells):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        if n == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def instruction(insn: Instruction) -> tuple[str, ...]:
    meaning = insn.doc if insn.base is insn else code(insn.doc)
    return code(f"{insn.name} {insn.syntax}".rstrip()), code(" ".join(insn.pattern.split())), meaning


def register(csr: Csr) -> tuple[str, ...]:
    access = f"{csr.privilege.name}{', read only' if csr.read_only else ''}"
    return f"`{csr.number:#05x}`", code(csr.name), access, csr.doc, csr.section


def page() -> str:
    lines = [HEAD]
    by_extension = sorted(
        [*BASE.values(), *COMPRESSED.values()], key=lambda insn: list(EXTENSIONS).index(insn.extension)
    )
    for extension, insns in groupby(by_extension, key=lambda insn: insn.extension):
        last = "Stands for" if extension == "C" else "Meaning"
        lines += [
            f"## {EXTENSIONS[extension]} ({extension})" if extension != "privileged" else f"## {EXTENSIONS[extension]}"
        ]
        lines += ["", *table(("Instruction", "Encoding", last), map(instruction, insns)), ""]
    lines += ["## Control and status registers", ""]
    lines += ["The last column names the chapter of the unprivileged (u) or the privileged (p) specification.", ""]
    lines += table(
        ("Number", "Name", "Lowest mode", "Meaning", "Specified in"), (register(CSRS[n]) for n in sorted(CSRS))
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(publish(__doc__, {"isa.md": page}))
