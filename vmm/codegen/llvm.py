"""LLVM text to a native `Image`, through llvmlite. Imported only when code must really be generated."""

from __future__ import annotations

import struct
from typing import NamedTuple

try:
    import llvmlite.binding as llvm
except ImportError as e:  # no wheel for this build, or not installed
    raise ImportError("generating code needs llvmlite (pip install llvmlite)") from e

from vmm.codegen.image import Image
from vmm.errors import HostError, InternalError

_R_X86_64_64, _R_X86_64_PC32, _R_X86_64_PLT32, _R_X86_64_32, _R_X86_64_32S = 1, 2, 4, 10, 11
_RELATIVE = (_R_X86_64_PC32, _R_X86_64_PLT32)
_GAP_BYTES = {_R_X86_64_64: 8, _R_X86_64_PC32: 4, _R_X86_64_PLT32: 4, _R_X86_64_32: 4, _R_X86_64_32S: 4}
_SHT_SYMTAB, _SHT_RELA = 2, 4
_STT_FUNC = 2


def _target_machine(opt: int, reloc: str) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    triple = "x86_64-unknown-linux-gnu"
    features = llvm.get_host_cpu_features()
    # Instructions that leave the upper halves of vector registers dirty slow down the calls back into libc.
    text = ",".join(("+" if on else "-") + name for name, on in features.items() if not name.startswith("avx512"))
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=text, opt=opt, reloc=reloc, codemodel="small"
    )


def compile_module(text: str, opt: int = 1) -> Image:
    """Compile one module. `sroa`, `instcombine` and `simplifycfg` run first; codegen level `opt`.

    Raises InternalError when the text is not valid IR or needs anything that an image cannot hold.
    """
    return _image_of(_Object(_compile(text, opt, "pic")))


class Gap(NamedTuple):
    """Bytes that whoever places a piece of code fills in: four of them, or eight. They start `at` in the piece and are
    to hold the value of `symbol` plus `addend`."""

    at: int
    size: int
    symbol: str
    addend: int


def compile_pieces(text: str, opt: int = 1) -> dict[str, tuple[bytes, list[Gap]]]:
    """Compile one module whose functions are to be copied: the code of each, and its gaps in order.

    Raises InternalError, naming the function, if one needs anything else than its gaps.
    """
    obj = _Object(_compile(text, opt, "static"))
    pieces = {}
    for f in obj.functions:
        gaps = []
        for at, kind, symbol, addend in obj.relocations:
            if f.value <= at < f.value + f.size:
                if kind not in _GAP_BYTES or not symbol.name:
                    raise InternalError(f"{f.name} refers to {symbol.name or 'data'} in a way that cannot be placed")
                gaps.append(Gap(at - f.value, _GAP_BYTES[kind], symbol.name, addend))
        pieces[f.name] = (obj.code[f.value : f.value + f.size], sorted(gaps))
    return pieces


def _compile(text: str, opt: int, reloc: str) -> bytes:
    machine = _target_machine(opt, reloc)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as e:
        raise InternalError(f"generated IR is invalid: {e}") from e
    with module:
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        builder = llvm.create_pass_builder(machine, options)
        passes = llvm.create_new_module_pass_manager()
        for add in (passes.add_sroa_pass, passes.add_instruction_combine_pass, passes.add_simplify_cfg_pass):
            add()
        passes.run(module, builder)
        obj: bytes = machine.emit_object(module)
        return obj


class _Symbol(NamedTuple):
    name: str
    kind: int
    section: int
    value: int
    size: int


class _Object:
    """What `.text` of an ELF64 relocatable holds."""

    def __init__(self, obj: bytes) -> None:
        if obj[:5] != b"\x7fELF\x02":
            raise HostError("llvmlite made something that is not an ELF64 object")
        shoff, shentsize, shnum = struct.unpack_from("<Q", obj, 0x28)[0], *struct.unpack_from("<HH", obj, 0x3A)
        sections = [struct.unpack_from("<IIQQQQIIQQ", obj, shoff + i * shentsize) for i in range(shnum)]
        names_at = sections[struct.unpack_from("<H", obj, 0x3E)[0]][4]

        def string(at: int) -> str:
            return obj[at : obj.index(b"\0", at)].decode()

        self.section = next(i for i, s in enumerate(sections) if string(names_at + s[0]) == ".text")
        text = sections[self.section]
        self.code = obj[text[4] : text[4] + text[5]]
        symtab = next(s for s in sections if s[1] == _SHT_SYMTAB)
        strings_at = sections[symtab[6]][4]
        symbols = []
        for at in range(symtab[4], symtab[4] + symtab[5], 24):
            name, info, _other, shndx, value, size = struct.unpack_from("<IBBHQQ", obj, at)
            symbols.append(_Symbol(string(strings_at + name), info & 15, shndx, value, size))
        self.functions = [s for s in symbols if s.kind == _STT_FUNC and s.section == self.section]
        self.relocations = [
            (where, info & 0xFFFFFFFF, symbols[info >> 32], addend)
            for s in sections
            if s[1] == _SHT_RELA and s[7] == self.section
            for where, info, addend in struct.iter_unpack("<QQq", obj[s[4] : s[4] + s[5]])
        ]


def _image_of(obj: _Object) -> Image:
    """The code, with what little it may refer to within itself resolved."""
    code = bytearray(obj.code)
    for where, kind, symbol, addend in obj.relocations:
        if kind not in _RELATIVE or symbol.section != obj.section:
            raise InternalError(f"generated code refers to {symbol.name or 'data'} outside itself")
        struct.pack_into("<i", code, where, symbol.value + addend - where)
    return Image(bytes(code), {symbol.name: symbol.value for symbol in obj.functions})
