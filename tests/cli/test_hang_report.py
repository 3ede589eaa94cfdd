"""`vmm-run` as a process whose guest hangs in a device: the report, on standard error and in a file, and on SIGQUIT."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.cli.programs import PASS, T0, T1, finish, li, program, say
from vmm.cli import main

ROOT = Path(__file__).parents[2]
LOAD = [T1 << 7 | T0 << 15 | 2 << 12 | 0x03]
"""lw t1, 0(t0)"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    os.mkfifo(tmp_path / "fifo")
    bios = program(tmp_path, say("hello"), li(T0, 0x2000_0000), LOAD, finish(PASS))

    def call(*arguments: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.cli.blocked", "--bios", str(bios), *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "FIFO": str(tmp_path / "fifo")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def report(stream: IO[str] | None) -> list[str]:
    """The next report, when it is all there."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line.rstrip("\n"))
        if lines[-1] == "-- end of report":
            return lines
    raise AssertionError("\n".join(["no report, but", *lines]))


def test_a_guest_that_hangs_in_a_device_is_reported_and_goes_on_when_the_device_does(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start("--watchdog", "0.2")
    lines = report(process.stderr)
    assert lines[0] == "vmm: HANG: no progress"
    assert lines[1].startswith("  vcpu0 is in an exit: read of 4 bytes at 0x20000000 (blocked), at every look for 0.")
    assert any(line.startswith("      in Blocked.read, at tests/cli/blocked.py:") for line in lines)
    stacks = lines[lines.index("-- stacks") :]
    assert stacks[1].startswith(("  by py-spy", "  by faulthandler, since py-spy "))
    assert any("blocked.py" in line for line in stacks)
    (tmp_path / "fifo").write_text("go on")
    out, errors = process.communicate()
    assert (process.returncode, out) == (0, "hello")
    assert all(line.startswith("vmm: hang over: ") for line in errors.splitlines())


def test_sigquit_has_a_report_written_to_the_file_and_the_run_goes_on(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "reports")
    process = start("--watchdog", "off", "--hang-report", str(tmp_path / "reports"))
    with open(tmp_path / "reports"):
        """It has opened the file, to see whether it can."""
    assert process.stdout is not None
    assert process.stdout.read(5) == "hello"
    process.send_signal(signal.SIGQUIT)
    with open(tmp_path / "reports") as file:
        assert report(file)[0] == "vmm: state of all threads: asked for by SIGQUIT"
    (tmp_path / "fifo").write_text("go on")
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--watchdog", "soon"), "--watchdog: 'soon' is not a time: give seconds above 0, such as 60"),
        (("--watchdog", "0.01"), "--watchdog: '0.01' is too short: give seconds from 0.1, or off"),
        (
            ("--hang-report", "/none/file"),
            "--hang-report /none/file: No such file or directory: give a file that can be written",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    arguments: tuple[str, ...], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bios", str(program(tmp_path, finish(PASS))), "--serial", "null", *arguments]) == 2
    assert capsys.readouterr().err == f"vmm-run: {problem}\n"
