"""The lint of guest memory: what copies byte by byte lets a hart see half a word, and promises no order."""

from __future__ import annotations

import ast

UNORDERED = frozenset({"pack_into", "unpack_from", "cast", "from_buffer", "from_address"})


def unordered_accesses(source: str) -> set[str]:
    """What a module uses that packs words into memory, or takes them out of it, by hand; `Dma.u16` and its kin do not.

    By whatever name: as an attribute, imported, or under another name.
    """
    used = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name):
                used.add(name)
    return used & UNORDERED
