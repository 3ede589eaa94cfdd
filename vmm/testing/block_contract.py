"""What any disk backend must do, as checks that its own tests call."""

from __future__ import annotations

import random
from collections.abc import Callable

from vmm.errors import HostError
from vmm.host.block import BlockBackend

#: Bytes of the images that `make` is asked for: enough for transfers that cross a 64 KiB cluster at both ends.
SIZE = 256 * 1024


def check_block_backend(make: Callable[[bytes], BlockBackend]) -> None:
    """`make(content)` opens a writable image that holds `content`; each call may reuse the same place."""
    for check in (
        _check_reads_back_what_it_was_made_of,
        _check_behaves_like_an_array_of_bytes,
        _check_zeroes_and_discards_whole_ranges_only,
        _check_refuses_to_read_past_its_end,
    ):
        content = random.Random(0).randbytes(SIZE)
        backend = make(content)
        try:
            check(backend, bytearray(content))
        finally:
            backend.close()


def read(backend: BlockBackend, offset: int, *lengths: int) -> bytes:
    """Read into one buffer per length."""
    data = bytearray(sum(lengths))
    backend.read(_split(data, lengths), offset)
    return bytes(data)


def write(backend: BlockBackend, offset: int, data: bytes, *lengths: int, durable: bool = False) -> None:
    """Write from one buffer per length; without lengths, from one."""
    backend.write(_split(bytearray(data), lengths or (len(data),)), offset, durable=durable)


def _split(data: bytearray, lengths: tuple[int, ...]) -> list[memoryview]:
    views, start = [], 0
    for length in lengths:
        views.append(memoryview(data)[start : start + length])
        start += length
    return views


def _check_reads_back_what_it_was_made_of(backend: BlockBackend, model: bytearray) -> None:
    assert backend.size == SIZE
    assert backend.size % backend.block_size == 0
    assert backend.physical_block_size >= backend.block_size
    assert not backend.readonly
    assert read(backend, 0, 1024, SIZE - 1024) == model


def _check_behaves_like_an_array_of_bytes(backend: BlockBackend, model: bytearray) -> None:
    choose = random.Random(1)
    block = backend.block_size
    for _ in range(300):
        start = choose.randrange(SIZE // block)
        count = min(choose.choice((1, 2, 7, 8, 130)), SIZE // block - start)
        offset, length = start * block, count * block
        cut = choose.randrange(length + 1)
        match choose.randrange(5):
            case 0:
                data = choose.randbytes(length)
                write(backend, offset, data, cut, length - cut, durable=choose.random() < 0.1)
                model[offset : offset + length] = data
            case 1:
                data = choose.randbytes(length)
                if not backend.write_now([memoryview(bytearray(data))], offset):
                    write(backend, offset, data)
                model[offset : offset + length] = data
            case 2:
                backend.write_zeroes(offset, length, unmap=choose.random() < 0.5)
                model[offset : offset + length] = bytes(length)
            case 3:
                got = bytearray(length)
                if backend.read_now([memoryview(got)], offset):
                    assert got == model[offset : offset + length]
            case 4:
                assert read(backend, offset, cut, length - cut) == model[offset : offset + length]
    backend.flush()
    assert read(backend, 0, SIZE) == model


def _check_zeroes_and_discards_whole_ranges_only(backend: BlockBackend, model: bytearray) -> None:
    block = backend.block_size
    offset, length = 3 * block, 20 * block
    backend.discard(offset, length)
    assert read(backend, 0, offset) == model[:offset]
    assert read(backend, offset + length, SIZE - offset - length) == model[offset + length :]
    backend.write_zeroes(offset, length, unmap=True)
    assert read(backend, offset, length) == bytes(length)


def _check_refuses_to_read_past_its_end(backend: BlockBackend, model: bytearray) -> None:
    refused = ""
    try:
        read(backend, SIZE, backend.block_size)
    except HostError as error:
        refused = str(error)
    assert backend.name in refused
