"""An assembler for tests, from the instruction tables: the disassembler's spelling, with registers as x5 and f5."""

from __future__ import annotations

import re
from functools import cache

from vmm.isa.csr import NUMBERS
from vmm.isa.encoding import WORDS
from vmm.isa.table import INSTRUCTIONS, length

_WORD = re.compile(r"\w+")
_ROUNDING = {"rne": 0, "rtz": 1, "rdn": 2, "rup": 3, "rmm": 4, "dyn": 7}


@cache
def _reader(name: str) -> tuple[re.Pattern[str], list[str]]:
    """What the operands look like, and the words of the spelling that they stand for."""
    syntax = INSTRUCTIONS[name].syntax.replace(" ", "").removesuffix(",rm")
    words = [w for w in _WORD.findall(syntax) if w in WORDS]
    pattern = re.escape(syntax)
    for w in words:
        pattern = pattern.replace(w, r"([-\w.]+)", 1)
    return re.compile(pattern + r"(?:,(\w+))?"), words


def assemble(text: str) -> bytes:
    """Instructions, one a line or between semicolons; `name:` before one marks a place that branches can go to.

    A line may also be data: `.word 0x123`, `.half 0x12`.
    """
    lines: list[tuple[int, str]] = []
    places: dict[str, int] = {}
    at = 0
    for raw in re.split(r"[;\n]", text):
        line = raw.partition("#")[0].strip()
        while m := re.match(r"(\w+):\s*", line):
            places[m[1]] = at
            line = line[m.end() :]
        if line:
            lines.append((at, line))
            name = line.split()[0]
            at += {".word": 4, ".half": 2}.get(name) or INSTRUCTIONS[name.removesuffix(".aqrl")].length
    return b"".join(_line(line, here, places) for here, line in lines)


def _line(line: str, here: int, places: dict[str, int]) -> bytes:
    name, _, rest = line.partition(" ")
    if name.startswith("."):
        return int(rest, 0).to_bytes(4 if name == ".word" else 2, "little")
    ordered = name.endswith(".aqrl")
    insn = INSTRUCTIONS[name.removesuffix(".aqrl")]
    pattern, words = _reader(insn.name)
    m = pattern.fullmatch(rest.replace(" ", ""))
    if m is None:
        raise ValueError(f"{line!r} is not like {insn.name} {insn.syntax}")
    operands = {WORDS[w]: _value(w, text, here, places) for w, text in zip(words, m.groups(), strict=False)}
    if "rm" in insn.operands:
        operands["rm"] = _ROUNDING[m.groups()[-1] or "dyn"]
    if ordered:
        operands["aq"] = operands["rl"] = 1
    word = insn.encode(**operands)
    return word.to_bytes(length(word), "little")


def _value(word: str, text: str, here: int, places: dict[str, int]) -> int:
    match word:
        case "rd" | "rs1" | "rs2" | "rs3" | "fd" | "fs1" | "fs2" | "fs3":
            return int(text[1:])
        case "csr" if text in NUMBERS:
            return NUMBERS[text]
        case "target" if text in places:
            return places[text] - here
        case "upper":
            return (int(text, 0) + 0x80000) % 0x100000 - 0x80000
        case "pred" | "succ":
            return sum({"w": 1, "r": 2, "o": 4, "i": 8}[c] for c in text)
        case _:
            return int(text, 0)
