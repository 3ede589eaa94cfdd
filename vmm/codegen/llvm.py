"""LLVM text to a native `Image`, through llvmlite. Imported only when code must really be generated."""

from __future__ import annotations

import struct

try:
    import llvmlite.binding as llvm
except ImportError as e:  # no wheel for this build, or not installed
    raise ImportError("generating code needs llvmlite (pip install llvmlite)") from e

from vmm.codegen.image import Image
from vmm.errors import HostError, InternalError

_R_X86_64_PC32, _R_X86_64_PLT32 = 2, 4
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_RELA = 1, 2, 4


def _target_machine(opt: int) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    triple = "x86_64-unknown-linux-gnu"
    features = llvm.get_host_cpu_features()
    # Instructions that leave the upper halves of vector registers dirty slow down the calls back into libc.
    text = ",".join(("+" if on else "-") + name for name, on in features.items() if not name.startswith("avx512"))
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=text, opt=opt, reloc="pic", codemodel="small"
    )


def compile_module(text: str, opt: int = 1) -> Image:
    """Compile one module. `sroa`, `instcombine` and `simplifycfg` run first; codegen level `opt`.

    Raises InternalError when the text is not valid IR or needs anything that an image cannot hold.
    """
    machine = _target_machine(opt)
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
        obj = machine.emit_object(module)
    return _image_of_object(obj)


def _image_of_object(obj: bytes) -> Image:
    """Lay out `.text` of an ELF64 relocatable, resolving what little it may refer to within itself."""
    if obj[:5] != b"\x7fELF\x02":
        raise HostError("llvmlite made something that is not an ELF64 object")
    shoff, shentsize, shnum = struct.unpack_from("<Q", obj, 0x28)[0], *struct.unpack_from("<HH", obj, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", obj, shoff + i * shentsize) for i in range(shnum)]
    names_at = sections[struct.unpack_from("<H", obj, 0x3E)[0]][4]

    def string(at: int) -> str:
        return obj[at : obj.index(b"\0", at)].decode()

    text_index = next(i for i, s in enumerate(sections) if string(names_at + s[0]) == ".text")
    text = sections[text_index]
    code = bytearray(obj[text[4] : text[4] + text[5]])
    symtab = next(s for s in sections if s[1] == _SHT_SYMTAB)
    strings_at = sections[symtab[6]][4]
    symbols = []
    for at in range(symtab[4], symtab[4] + symtab[5], 24):
        name, info, _other, shndx, value, _size = struct.unpack_from("<IBBHQQ", obj, at)
        symbols.append((string(strings_at + name), info & 15, shndx, value))
    for s in sections:
        if s[1] != _SHT_RELA or s[7] != text_index:
            continue
        for at in range(s[4], s[4] + s[5], 24):
            where, info, addend = struct.unpack_from("<QQq", obj, at)
            name, _, shndx, value = symbols[info >> 32]
            if info & 0xFFFFFFFF not in (_R_X86_64_PC32, _R_X86_64_PLT32) or shndx != text_index:
                raise InternalError(f"generated code refers to {name or 'data'} outside itself")
            struct.pack_into("<i", code, where, value + addend - where)
    functions = {name: value for name, kind, shndx, value in symbols if kind == 2 and shndx == text_index}
    return Image(bytes(code), functions)
