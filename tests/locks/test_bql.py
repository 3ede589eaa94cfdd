"""The list of what the big lock still covers, and that there is no other way to it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vmm import bql
from vmm.locks import Device, Locking, entry, lockfree

PACKAGE = Path(bql.__file__).parent


class Legacy(Device):
    span = 0x20

    @entry
    def touch(self) -> bool:
        return self._lock.held()

    @lockfree("takes the lock by hand")
    def serve(self) -> None:
        with self._lock:
            pass

    @lockfree("a constant")
    def size(self) -> int:
        return self.span


@pytest.fixture
def covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bql, "COVERED", {"Legacy": "shares its state with the monitor"})


def test_the_ways_in_are_as_many_as_the_budget_says() -> None:
    assert len(list(bql.ways_in(bql.device_classes()))) == bql.BUDGET


def test_every_device_class_of_the_package_is_looked_at() -> None:
    names = {cls.__name__ for cls in bql.device_classes()}
    assert {"Uart16550", "GoldfishRtc", "Finisher", "VirtioBlk", "VirtioRng", "VirtioConsole", "HartStates"} <= names


def test_what_is_listed_takes_the_big_lock_under_the_device_policy(covered: None) -> None:
    locking = Locking("device")
    legacy = locking.make(Legacy, "legacy0")
    assert legacy._lock is locking.big
    assert legacy.touch()


def test_the_listing_shows_region_doors_and_handlers_with_the_reason(covered: None) -> None:
    found = list(bql.ways_in([Legacy]))
    assert [(way.kind, way.name) for way in found] == [
        ("region", "registers, 0x20 bytes"),
        ("handler", "serve"),
        ("entry point", "touch"),
    ]
    text = bql.listing([Legacy])
    assert "under the big lock with --locking device: 3, the budget is 0" in text
    assert "  Legacy: shares its state with the monitor\n    region " in text


def test_more_than_the_budget_is_an_error(covered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bql, "device_classes", lambda: [Legacy])
    assert bql.main() == 1


def test_the_module_prints_the_list() -> None:
    printed = subprocess.run([sys.executable, "-m", "vmm.bql"], capture_output=True, text=True, check=True).stdout
    assert "--locking bql: all devices" in printed
    assert "under the big lock with --locking device: nothing, the budget is 0" in printed


def test_nothing_but_the_policy_reaches_the_big_lock() -> None:
    """`Locking.outside_guest` is nothing under `device`, and `Locking.device_lock` goes by `COVERED`."""
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "big"
    }
    assert users == {"locks.py"}
