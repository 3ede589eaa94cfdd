"""Kernel modules: what each one says of itself, and the index that modprobe needs.

Debian ships no `modules.dep`; `depmod` makes it from the `.modinfo` section of each module (`key=value` strings).
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vmm.errors import HostError


@dataclass(frozen=True)
class Module:
    """One module: `name` with underscores, `path` below /lib/modules/VERSION, `compressed` its file, a .ko.xz."""

    name: str
    path: str
    compressed: bytes = field(repr=False)
    depends: tuple[str, ...]
    aliases: tuple[str, ...]

    @classmethod
    def parse(cls, path: str, compressed: bytes) -> Module:
        try:
            elf = lzma.decompress(compressed)
        except lzma.LZMAError as error:
            raise HostError(f"{path}: broken kernel module ({error})") from None
        info = [entry.partition("=") for entry in _section(path, elf, ".modinfo").decode().split("\0") if entry]
        depends = ",".join(value for key, _, value in info if key == "depends")
        return cls(
            name=module_name(path),
            path=path,
            compressed=compressed,
            depends=tuple(other.replace("-", "_") for other in depends.split(",") if other),
            aliases=tuple(value for key, _, value in info if key == "alias"),
        )


def module_name(path: str) -> str:
    """What a module file's name says, in modprobe's spelling: with underscores."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _section(path: str, elf: bytes, wanted: str) -> bytes:
    """Contents of a section of a 64-bit little-endian ELF file (ELF-64 object file format 1.5)."""
    try:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise ValueError
        (table,) = struct.unpack_from("<Q", elf, 0x28)
        entry_size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
        rows = [struct.unpack_from("<IIQQQQ", elf, table + entry_size * index) for index in range(count)]
        names = rows[names_index][4]
        for name, _, _, _, offset, size in rows:
            if elf[names + name : elf.index(b"\0", names + name)] == wanted.encode():
                return elf[offset : offset + size]
        raise ValueError
    except (struct.error, ValueError, IndexError, OverflowError):
        raise HostError(f"{path}: not a kernel module with a section {wanted}") from None


def in_load_order(find: Callable[[str], Module | None], wanted: Iterable[str]) -> list[Module]:
    """`wanted` and all that they depend on, each after its dependencies. `find` answers None for what is built in."""
    ordered: dict[str, Module | None] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        module = find(name)
        for other in module.depends if module else ():
            visit(other)
        ordered[name] = module

    for name in wanted:
        visit(name)
    return [module for module in ordered.values() if module]


def index_files(modules: list[Module]) -> dict[str, str]:
    """`modules.dep` and `modules.alias` (modules.dep(5)) of modules that are in load order."""
    find = {module.name: module for module in modules}.get
    # modprobe loads a line's modules from the right.
    dep = (
        " ".join([f"{module.path}:", *(other.path for other in reversed(in_load_order(find, module.depends)))])
        for module in modules
    )
    alias = (f"alias {alias} {module.name}" for module in modules for alias in module.aliases)
    return {"modules.dep": "\n".join(dep) + "\n", "modules.alias": "\n".join(alias) + "\n"}
