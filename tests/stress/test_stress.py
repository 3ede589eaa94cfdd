"""Many harts over all devices, while other threads pause, resume, reset, plug, unplug, type and fire timers.

`--stress-seconds` is the time of each of these tests, `--seed` the first machine's seed.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.machines import Machines
from tests.stress.busy import HARTS, Left, episode, lives
from vmm.bql import Policy

LONGEST_S = 60.0
GROWTH = 64 << 20
"""Bytes that the process may have grown by from the second machine's end to the last one's."""


@pytest.mark.stress
@pytest.mark.parametrize("checked", [True, False], ids=["checked", "plain"])
@pytest.mark.parametrize("locking", ["device", "bql"])
def test_nothing_hangs_leaks_or_is_reported(
    boot: Machines, tmp_path: Path, seed: int, seconds: float, say: list[str], locking: Policy, checked: bool
) -> None:
    began, total = time.monotonic(), Counter[str]()
    left: list[Left] = []
    for number, length in enumerate(lives(seconds, LONGEST_S)):
        folder = tmp_path / str(number)
        folder.mkdir()
        this = seed * 1000 + number
        try:
            total += episode(boot, folder, this, length, locking, checked)
        except BaseException as error:
            error.add_note(f"in machine {number} of --seed {seed}, whose own seed is {this}")
            raise
        left.append(Left.now())
    gil = "on" if getattr(sys, "_is_gil_enabled", lambda: True)() else "off"
    say.append(
        f"--locking {locking}, {'checked' if checked else 'plain'} locks, GIL {gil}, seed {seed}: {len(left)} machines "
        f"of {HARTS} harts in {time.monotonic() - began:.0f} s"
    )
    say.append(", ".join(f"{count} {what}" for what, count in sorted(total.items())))
    say.append(f"{left[-1].resident >> 20} MiB resident, {(left[-1].resident - left[0].resident) >> 20} MiB more")
    for what in ("pause", "reset", "plug", "unplug", "timer"):
        assert total[what] > 0, f"nobody did {what}"
    assert left[-1].files <= left[0].files
    assert left[-1].threads <= left[0].threads
    assert left[-1].resident - left[1].resident <= GROWTH
