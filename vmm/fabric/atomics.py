"""Native loads, stores and fences on memory that several threads share.

`struct` and `memoryview` copy bytes: another thread may see half of a word, and no order is promised. These are single
instructions of generated code, bound so that ctypes keeps the GIL (releasing it would cost more than the access).

All of them take host addresses and trust them; `Dma` and `Clock` are the ones that check.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from vmm.codegen import ir
from vmm.codegen.cache import cached_image, source_key
from vmm.codegen.image import Image, LoadedImage

_BITS = (8, 16, 32, 64)


def _text() -> str:
    m = ir.Module("atomics")
    for bits in _BITS:
        word = f"i{bits}"

        f = m.function(f"load{bits}", word, [("address", "i64")])
        f.ret(f.load(word, f.args[0].to_ptr(), order="acquire"))

        f = m.function(f"store{bits}", "void", [("address", "i64"), ("value", word)])
        f.store(f.args[1], f.args[0].to_ptr(), order="release")
        f.ret()

        f = m.function(f"publish{bits}", "i8", [("address", "i64"), ("value", word), ("flag", "i64")])
        f.store(f.args[1], f.args[0].to_ptr(), order="release")
        f.fence("seq_cst")
        f.ret(f.load("i8", f.args[2].to_ptr(), order="acquire"))
    for op in ("and", "or"):
        f = m.function(f"{op}8", "i8", [("address", "i64"), ("mask", "i8")])
        f.ret(f.rmw(op, f.args[0].to_ptr(), f.args[1]))
    f = m.function("fence", "void", [])
    f.fence("seq_cst")
    f.ret()
    return m.text()


def _build() -> Image:
    from vmm.codegen.llvm import compile_module

    return compile_module(_text())


class Atomics:
    """The native helpers, as attributes that can be called.

    `load16(address)` acquires, `store16(address, value)` releases; also 8, 32 and 64. Addresses must be aligned.
    `publish16(address, value, flag)` releases `value`, fences (sequentially consistent) and returns the byte at `flag`.
    `and8(address, mask)`, `or8(address, mask)` change one byte atomically and return its old value.
    `fence()` is sequentially consistent.
    """

    def __init__(self) -> None:
        sources = [Path(__file__), Path(ir.__file__)]
        self._image = image = LoadedImage(cached_image("atomics", source_key(sources), _build))
        address = ctypes.c_uint64
        words: dict[int, Any] = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}

        def bind(name: str, result: Any, *arguments: Any) -> Callable[..., int]:
            function: Callable[..., int] = ctypes.PYFUNCTYPE(result, *arguments)(image.address(name))
            return function

        def load(bits: int) -> Callable[[int], int]:
            return bind(f"load{bits}", words[bits], address)

        def store(bits: int) -> Callable[[int, int], object]:
            return bind(f"store{bits}", None, address, words[bits])

        def publish(bits: int) -> Callable[[int, int, int], int]:
            return bind(f"publish{bits}", ctypes.c_uint8, address, words[bits], address)

        self.load8, self.load16, self.load32, self.load64 = load(8), load(16), load(32), load(64)
        self.store8, self.store16, self.store32, self.store64 = store(8), store(16), store(32), store(64)
        self.publish8, self.publish16 = publish(8), publish(16)
        self.publish32, self.publish64 = publish(32), publish(64)
        self.and8: Callable[[int, int], int] = bind("and8", ctypes.c_uint8, address, ctypes.c_uint8)
        self.or8: Callable[[int, int], int] = bind("or8", ctypes.c_uint8, address, ctypes.c_uint8)
        self.fence: Callable[[], object] = bind("fence", None)


@cache
def atomics() -> Atomics:
    """The helpers of this process: code without state, so one copy serves every machine."""
    return Atomics()
