from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmm.devices.registers import Register, RegisterDevice, register_page
from vmm.fabric.bus import BusFault
from vmm.state import DeviceState
from vmm.testing.bench import DeviceBench


@dataclass(slots=True)
class ToyState(DeviceState):
    left: int = 1
    right: int = 2


class Toy(RegisterDevice[ToyState]):
    """A toy.

    With one bank.
    """

    kind = "toy"
    State = ToyState
    span = 8
    sizes = frozenset((4,))

    def _sync(self) -> None:
        pass

    def _read_left(self) -> int:
        return self._state.left

    def _write_left(self, value: int) -> None:
        self._state.left = value

    def _read_right(self) -> int:
        return self._state.right

    registers = (
        Register(0, 4, "rw", "LEFT", "Left", _read_left, _write_left),
        Register(4, 4, "ro", "RIGHT", "Right", _read_right),
        Register(0, 4, "ro", "SWAPPED", "Right too", _read_right, bank="BANK = 1"),
    )


def bench() -> DeviceBench[Toy]:
    return DeviceBench(Toy, lambda _: {})


def test_rows_say_who_answers():
    with bench() as b:
        b.write(0, 9)
        assert (b.read(0), b.read(4)) == (9, 2)


def test_a_write_to_a_read_only_register_and_an_access_between_registers_are_refused_and_counted():
    with bench() as b:
        b.write(4, 9)
        assert b.read(4) == 2
        assert b.read(2) == 0
        assert b.device.refused == 2


@pytest.mark.parametrize(("offset", "size"), [(8, 4), (0, 1), (0, 8), (0xFFC, 4)])
def test_other_sizes_and_offsets_beyond_the_span_fault(offset, size):
    with bench() as b:
        with pytest.raises(BusFault):
            b.read(offset, size)
        with pytest.raises(BusFault):
            b.write(offset, 0, size)


def test_a_row_whose_methods_do_not_fit_its_access_is_refused_when_it_is_made():
    with pytest.raises(TypeError, match="RIGHT"):
        Register(4, 4, "rw", "RIGHT", "Right", Toy._read_right)


def test_the_page_of_a_device_shows_each_row_and_its_bank():
    page = register_page(Toy)
    assert "## Toy\n\nA toy.\n\nWith one bank.\n" in page
    assert "| 0x00 | 4 | rw | LEFT | Left |" in page
    assert "| 0x00 | 4 | ro | SWAPPED | Right too (BANK = 1) |" in page


def test_the_page_in_the_docs_is_up_to_date():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tools.docs_registers", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert checked.returncode == 0, checked.stderr
