"""The list of what the big lock still covers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vmm import bql
from vmm.locks import Device, Locking, entry

CEILING = 0  # lower it whenever an entry goes; it never rises


def test_the_list_only_shrinks() -> None:
    assert len(bql.COVERED) <= CEILING


def test_what_is_listed_takes_the_big_lock_under_the_device_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Legacy(Device):
        @entry
        def touch(self) -> bool:
            return self._lock.held()

    monkeypatch.setattr(bql, "COVERED", {"Legacy": "shares its state with the monitor"})
    locking = Locking("device")
    legacy = locking.make(Legacy, "legacy0")
    assert legacy._lock is locking.big
    assert legacy.touch()
    assert "Legacy  shares its state with the monitor" in bql.listing()


def test_the_module_prints_the_list() -> None:
    printed = subprocess.run([sys.executable, "-m", "vmm.bql"], capture_output=True, text=True, check=True).stdout
    assert "--locking bql: all devices" in printed
    assert "still under the big lock with --locking device" in printed
