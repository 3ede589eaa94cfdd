"""Guest RAM, DMA and atomics."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fabric.unordered import unordered_accesses
from vmm.errors import ConfigError
from vmm.fabric.dma import Dma, DmaFault
from vmm.fabric.ram import CLEAN, CODE, MINIMUM, PAGE, Ram

BASE = 0x8000_0000
SIZE = MINIMUM
END = BASE + SIZE
PAGES = SIZE // PAGE
DEVICES = Path(__file__).parents[2] / "vmm" / "devices"

# Addresses that a guest would choose to hurt: around both ends of RAM, and around the end of the address space.
addresses = st.one_of(
    st.integers(BASE - 8 * PAGE, BASE + 8 * PAGE),
    st.integers(END - 8 * PAGE, END + 8 * PAGE),
    st.integers(2**64 - 8 * PAGE, 2**64 - 1),
    st.integers(0, PAGE),
)
lengths = st.one_of(st.integers(0, 4 * PAGE), st.integers(2**31, 2**64))


@pytest.fixture(scope="module")
def dma():
    with Ram(BASE, SIZE) as ram:
        yield Dma(ram)


def flag(ram: Ram, gpa: int) -> int:
    return ram.page_flags[(gpa - BASE) // PAGE]


def set_flag(ram: Ram, gpa: int, flags: int) -> None:
    ram.page_flags[(gpa - BASE) // PAGE] = flags


def test_memory_reads_as_zeros_and_costs_nothing_until_it_is_touched():
    with Ram(BASE, 512 << 20) as ram:
        assert os.fstat(ram.fd).st_blocks == 0
        ram.view[400 << 20] = 1
        assert ram.view[(400 << 20) - 1] == 0
        assert os.fstat(ram.fd).st_blocks * 512 <= 4 << 20


def test_threads_that_copy_at_once_do_not_take_the_memory_from_each_other():
    """CPython 3.13 without the GIL loses count of the slices of a memoryview that threads share, and releases it."""
    with Ram(BASE, SIZE) as ram:
        dma, failures = Dma(ram), []

        def copy() -> None:
            try:
                for _ in range(4_000):
                    dma.write(BASE, dma.read(BASE + 64, 8))
                    dma.view(BASE, 8)[:] = bytes(8)
                    assert len(ram.view[:8]) == 8
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=copy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


@pytest.mark.parametrize("size", [0, 4096, MINIMUM - PAGE, MINIMUM + 1, 1 << 60])
def test_an_impossible_size_is_the_users_error_in_one_line_that_names_the_option(size):
    with pytest.raises(ConfigError) as caught:
        Ram(BASE, size)
    assert "--mem" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_closed_memory_is_unmapped_with_the_last_window_that_a_worker_holds():
    ram = Ram(BASE, SIZE)
    window = Dma(ram).view(BASE, 16)
    ram.close()
    window[0] = 1
    assert window[0] == 1
    ram.close()


@given(gpa=addresses, length=lengths)
def test_a_copy_or_window_is_either_all_ram_or_refused(dma, gpa, length):
    inside = gpa >= BASE and gpa + length <= END
    for access in (dma.read, dma.view, dma.written):
        if inside:
            access(gpa, length)
        else:
            with pytest.raises(DmaFault):
                access(gpa, length)


@given(gpa=addresses, data=st.binary(max_size=3 * PAGE))
def test_what_is_written_is_read_back_and_its_neighbours_are_left_alone(dma, gpa, data):
    if not (gpa >= BASE and gpa + len(data) <= END):
        with pytest.raises(DmaFault):
            dma.write(gpa, data)
        return
    low, high = max(BASE, gpa - 8), min(END, gpa + len(data) + 8)
    before = dma.read(low, high - low)
    dma.write(gpa, data)
    after = dma.read(low, high - low)
    at = gpa - low
    assert after == before[:at] + data + before[at + len(data) :]


@given(gpa=addresses, value=st.integers(0, 2**80), size=st.sampled_from([2, 4, 8]))
def test_a_word_is_aligned_and_in_ram_or_refused_and_keeps_its_low_bits(dma, gpa, value, size):
    load, store = {2: (dma.u16, dma.put_u16), 4: (dma.u32, dma.put_u32), 8: (dma.u64, dma.put_u64)}[size]
    if gpa % size or gpa < BASE or gpa + size > END:
        for access in (load, lambda gpa: store(gpa, value)):
            with pytest.raises(DmaFault):
                access(gpa)
        return
    store(gpa, value)
    assert load(gpa) == value % 2 ** (8 * size)
    assert dma.read(gpa, size) == (value % 2 ** (8 * size)).to_bytes(size, "little")


@given(page=st.integers(0, PAGES - 4), offset=st.integers(0, PAGE - 1), length=st.integers(0, 3 * PAGE))
def test_a_write_marks_each_page_it_touches_dirty_and_no_other(dma, page, offset, length):
    ram = dma.ram
    gpa = BASE + page * PAGE + offset
    touched = {at // PAGE for at in (gpa, gpa + length - 1)} if length else set()
    touched = set(range(min(touched), max(touched) + 1)) if touched else set()
    pages = range(page, page + 4)
    for each in pages:
        ram.page_flags[each] = CLEAN
    dma.write(gpa, bytes(length))
    assert {each + BASE // PAGE for each in pages if not ram.page_flags[each] & CLEAN} == touched
    for each in pages:
        ram.page_flags[each] = 0


def test_a_write_to_a_page_with_decoded_code_tells_whoever_decoded_it():
    with Ram(BASE, SIZE) as ram:
        dma = Dma(ram)
        told: list[tuple[int, int]] = []
        ram.on_code_written = lambda gpa, length: told.append((gpa, length))
        set_flag(ram, BASE + PAGE, CODE | CLEAN)
        dma.write(BASE, b"elsewhere")
        dma.put_u32(BASE + 2 * PAGE, 1)
        assert told == []
        dma.write(BASE + PAGE - 2, b"across")
        dma.put_u16(BASE + PAGE + 4, 7)
        dma.view(BASE + PAGE, 4)[:] = b"view"
        dma.written(BASE + PAGE, 4)
        assert told == [(BASE + PAGE - 2, 6), (BASE + PAGE + 4, 2), (BASE + PAGE, 4)]
        assert flag(ram, BASE + PAGE) == CODE


def test_discarded_pages_read_as_zeros_and_count_as_written():
    with Ram(BASE, SIZE) as ram:
        dma = Dma(ram)
        dma.write(BASE + PAGE, b"\xff" * 2 * PAGE)
        set_flag(ram, BASE + PAGE, CLEAN)
        ram.discard(BASE + PAGE, PAGE)
        assert dma.read(BASE + PAGE, PAGE) == bytes(PAGE)
        assert dma.read(BASE + 2 * PAGE, 1) == b"\xff"
        assert flag(ram, BASE + PAGE) == 0
        for gpa, length in ((BASE + 1, PAGE), (BASE, 100), (END, PAGE)):
            with pytest.raises(DmaFault):
                ram.discard(gpa, length)


def test_flag_bits_changed_by_two_threads_at_once_are_all_kept():
    with Ram(BASE, SIZE) as ram:
        atomics, address, rounds = ram._atomics, ram.page_flags_host, 3000
        lost = []

        def toggle(bit: int) -> None:
            for _ in range(rounds):
                if atomics.or8(address, bit) & bit:
                    lost.append(bit)
                if not atomics.and8(address, 0xFF & ~bit) & bit:
                    lost.append(bit)

        threads = [threading.Thread(target=toggle, args=(1 << n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lost == []
        assert ram.page_flags[0] == 0


def test_a_word_stored_by_one_thread_is_never_seen_half_written_by_another():
    with Ram(BASE, SIZE) as ram:
        dma = Dma(ram)
        patterns = {0, 0x1111_1111_1111_1111, 0xFFFF_FFFF_FFFF_FFFF}
        stop = threading.Event()

        def store() -> None:
            while not stop.is_set():
                for pattern in patterns:
                    dma.put_u64(BASE + 8, pattern)

        writer = threading.Thread(target=store)
        writer.start()
        seen = {dma.u64(BASE + 8) for _ in range(20_000)}
        stop.set()
        writer.join()
        assert seen <= patterns


@pytest.mark.parametrize("path", sorted(DEVICES.rglob("*.py")), ids=lambda path: path.stem)
def test_no_device_packs_words_into_guest_memory_by_hand(path):
    assert not unordered_accesses(path.read_text())
