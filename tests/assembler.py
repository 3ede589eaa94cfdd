"""An assembler for small guests, with the encodings and spellings of the instruction tables.

    assemble('''
        start:  li    t0, 0x10000000
                la    t1, text
        again:  lbu   t2, 0(t1)
                beqz  t2, again
                sb    t2, 0(t0)
        text:   .ascii hello
    ''')

One statement to a line, or several with `;` between them. A number may be a Python expression of labels and of the
names given. All instructions are 32 bits wide, but for `.half`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from vmm.isa.csr import NUMBERS
from vmm.isa.disasm import register_names
from vmm.isa.encoding import WORDS
from vmm.isa.table import BASE

RAM_BASE = 0x8000_0000
T0 = 5

_INTEGER, _FLOATING = register_names()
_ROUNDING = {"rne": 0, "rtz": 1, "rdn": 2, "rup": 3, "rmm": 4, "dyn": 7}
_SIGNED = 1 << 63

#: Shorter spellings, as `gas` knows them.
_PSEUDO: dict[str, str] = {
    "nop": "addi zero, zero, 0",
    "mv": "addi {0}, {1}, 0",
    "neg": "sub {0}, zero, {1}",
    "j": "jal zero, {0}",
    "jr": "jalr zero, 0({0})",
    "ret": "jalr zero, 0(ra)",
    "beqz": "beq {0}, zero, {1}",
    "bnez": "bne {0}, zero, {1}",
    "bltz": "blt {0}, zero, {1}",
    "bgez": "bge {0}, zero, {1}",
    "csrr": "csrrs {0}, {1}, zero",
    "csrw": "csrrw zero, {0}, {1}",
    "csrs": "csrrs zero, {0}, {1}",
    "csrc": "csrrc zero, {0}, {1}",
}


def assemble(text: str, base: int = RAM_BASE, **names: int) -> bytes:
    """The bytes of a program that lies at `base`. ValueError, naming the line, for one that cannot be assembled."""
    known = {**names, **labels(text, base, **names)}
    output = bytearray()
    for _, statement in _statements(text):
        if statement:
            output += _assembled(statement, base + len(output), known, True)
    return bytes(output)


def labels(text: str, base: int = RAM_BASE, **names: int) -> dict[str, int]:
    """Where the labels of a program are."""
    found: dict[str, int] = {}
    statements = list(_statements(text))
    known = {**dict.fromkeys((name for name, _ in statements if name), base), **names}
    at = base
    for name, statement in statements:
        if name:
            found[name] = at
        else:
            at += len(_assembled(statement, at, known, False))
    return found


def load_immediate(register: int, value: int) -> list[int]:
    """Instructions that put any 64-bit value into a register."""
    value = (value & (1 << 64) - 1 ^ _SIGNED) - _SIGNED
    low = (value & 0xFFF ^ 0x800) - 0x800
    if -(1 << 11) <= value < 1 << 11:
        return [BASE["addi"].encode(rd=register, rs1=0, imm=value)]
    if -(1 << 31) <= value < 1 << 31:
        upper = ((value - low >> 12) + (1 << 19)) % (1 << 20) - (1 << 19)
        add = [BASE["addiw"].encode(rd=register, rs1=register, imm=low)] if low else []
        return [BASE["lui"].encode(rd=register, imm=upper), *add]
    shift = BASE["slli"].encode(rd=register, rs1=register, imm=12)
    add = [BASE["addi"].encode(rd=register, rs1=register, imm=low)] if low else []
    return [*load_immediate(register, value - low >> 12), shift, *add]


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """(label, "") or ("", statement), in order."""
    for line in re.sub(r"#.*", "", text).replace(";", "\n").splitlines():
        *before, statement = re.split(r"(\w+):", line)
        yield from ((name, "") for name in before[1::2])
        if statement.strip():
            yield "", statement.strip()


def _assembled(statement: str, pc: int, names: Mapping[str, int], final: bool) -> bytes:
    try:
        return _encode(statement, pc, names, final)
    except (ValueError, KeyError, NameError, SyntaxError) as error:
        raise ValueError(f"{statement}: {error}") from error


def _encode(statement: str, pc: int, names: Mapping[str, int], final: bool) -> bytes:
    """`final`: labels have their values. Until then all that counts is the length."""
    mnemonic, _, rest = statement.partition(" ")
    if mnemonic == ".align":
        return bytes(-pc % _number(rest, names))
    if mnemonic in _DIRECTIVES:
        return _DIRECTIVES[mnemonic](rest, names)
    arguments = [part.strip() for part in rest.split(",")]
    if mnemonic in _PSEUDO:
        return _encode(_PSEUDO[mnemonic].format(*arguments), pc, names, final)
    if mnemonic == "li":
        words = load_immediate(_INTEGER.index(arguments[0]), _number(arguments[1], names))
    elif mnemonic == "la":
        words = _load_address(_INTEGER.index(arguments[0]), _number(arguments[1], names) - pc)
    else:
        words = [_instruction(mnemonic, rest, pc, names, final)]
    return b"".join(word.to_bytes(4, "little") for word in words)


def _load_address(register: int, distance: int) -> list[int]:
    low = (distance & 0xFFF ^ 0x800) - 0x800
    upper = BASE["auipc"].encode(rd=register, imm=distance - low >> 12)
    return [upper, BASE["addi"].encode(rd=register, rs1=register, imm=low)]


def _instruction(mnemonic: str, rest: str, pc: int, names: Mapping[str, int], final: bool) -> int:
    name = re.sub(r"\.(aq|rl|aqrl)$", "", mnemonic)
    insn = BASE[name]
    operands = {flag: 1 for flag in ("aq", "rl") if name != mnemonic and flag in mnemonic.rpartition(".")[2]}
    shape = re.sub(r"\w+", "@", insn.syntax).replace(" ", "")
    pattern = re.escape(shape).replace("@", r"([^,()]+)")
    match = re.fullmatch(pattern, rest.replace(" ", ""))
    if match is None:
        raise ValueError(f"is not of the form {insn.syntax!r}")
    for word, text in zip(re.findall(r"\w+", insn.syntax), match.groups(), strict=True):
        operands[WORDS[word]] = _operand(word, text, pc, names, final)
    return insn.encode(**operands)


def _operand(word: str, text: str, pc: int, names: Mapping[str, int], final: bool) -> int:
    match word:
        case "rd" | "rs1" | "rs2" | "rs3":
            return _INTEGER.index(text)
        case "fd" | "fs1" | "fs2" | "fs3":
            return _FLOATING.index(text)
        case "csr" if text in NUMBERS:
            return NUMBERS[text]
        case "rm":
            return _ROUNDING[text]
        case "pred" | "succ":
            return sum(1 << "wroi".index(letter) for letter in text)
        case "target":
            return _number(text, names) - pc if final else 0
        case "upper":
            return (_number(text, names) + (1 << 19)) % (1 << 20) - (1 << 19)
        case _:
            return _number(text, names)


def _number(text: str, names: Mapping[str, int]) -> int:
    return int(eval(text, {"__builtins__": {}}, dict(names)))


def _data(size: int) -> Callable[[str, Mapping[str, int]], bytes]:
    def encode(rest: str, names: Mapping[str, int]) -> bytes:
        values = (_number(part, names) & (1 << 8 * size) - 1 for part in rest.split(","))
        return b"".join(value.to_bytes(size, "little") for value in values)

    return encode


_DIRECTIVES: dict[str, Callable[[str, Mapping[str, int]], bytes]] = {
    ".byte": _data(1),
    ".half": _data(2),
    ".word": _data(4),
    ".dword": _data(8),
    ".zero": lambda rest, names: bytes(_number(rest, names)),
    ".ascii": lambda rest, names: rest.encode() + b"\0",
}
