"""`vmm-run` as a process of its own, with whole guests: how it ends, and what is left of it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest

from tests.boot.linux import INIT_S, REPLY_S
from vmm.guests.debian import DebianGuest

ROOT = Path(__file__).parents[2]


class Run:
    """A process whose output is read while it runs. A run that a broken test leaves behind ends by itself."""

    def __init__(self, guest: str, *arguments: str) -> None:
        self.output = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vmm.cli", guest, "--timeout", "600", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def until(self, pattern: str, timeout: float = INIT_S) -> None:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while not re.search(pattern.encode(), self.output):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in time:\n{self.output[-2000:].decode(errors='replace')}"
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            assert data, f"no {pattern!r}:\n{self.output[-2000:].decode(errors='replace')}"
            self.output += data

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self, timeout: float = REPLY_S) -> tuple[int, str]:
        """Exit status and standard error."""
        output, errors = self._process.communicate(timeout=timeout)
        self.output += output
        return self._process.returncode, errors.decode()


def test_the_demo_passes(tmp_path: Path) -> None:
    with Run("demo", "--check-locks") as run:
        assert run.ended() == (0, "")
        assert b"PASS: powering off" in run.output


def test_the_demo_may_be_told_to_stop_at_once() -> None:
    with Run("demo") as run:
        run.until("hart")
        run.signal(signal.SIGINT)
        assert run.ended() == (130, "vmm-run: stopped by SIGINT\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "Linux version"), (signal.SIGTERM, "smp: Brought up"), (signal.SIGHUP, "init reached")],
)
def test_linux_is_stopped_by_a_signal(guest: DebianGuest, number: signal.Signals, moment: str) -> None:
    with Run("debian", "--smp", "4", "--report") as run:
        run.until(moment)
        run.signal(number)
        assert run.ended() == (128 + number, f"vmm-run: stopped by {number.name}\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--expect", "Linux version [0-9.]+"], 0, ""),
        (["--timeout", "1"], 124, "vmm-run: --timeout: 1 s are over\n"),
        (["--timeout", "1", "--expect", "never"], 124, "vmm-run: --timeout: 1 s are over\n"),
        (["--run", "echo from inside; exit 7"], 7, "vmm-run: the guest ended with code 7\n"),
        (["--report", "--expect", "never"], 123, "vmm-run: --expect: the run ended without 'never'\n"),
    ],
)
def test_how_linux_ends_is_the_exit_status(guest: DebianGuest, options: list[str], status: int, message: str) -> None:
    with Run("debian", *options) as run:
        assert run.ended(INIT_S) == (status, message)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_leaves_its_disk_usable(guest: DebianGuest, tmp_path: Path) -> None:
    """Whatever the process had locked or half written, the next one starts."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with Run(
        "debian", "--drive", f"file={disk}", "--run", "while :; do dd if=/dev/urandom of=/dev/vda bs=64k; done"
    ) as run:
        run.until("records out")
        run.signal(signal.SIGKILL)
    with Run("debian", "--drive", f"file={disk}", "--run", "dd if=/dev/vda of=/dev/null bs=64k") as run:
        assert run.ended(INIT_S) == (0, "")
