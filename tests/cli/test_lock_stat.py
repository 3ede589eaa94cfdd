"""`--lock-stat` and `--trace`: what is told, where, and when it cannot be."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.programs import FOREVER, PASS, finish, program, say
from tests.timelines import tracks
from vmm.cli import main
from vmm.cli.lockstat import table
from vmm.locks import Rank
from vmm.lockstat import Meter

ROOT = Path(__file__).parents[2]
NULL = ["--serial", "null", "--bios"]
COMMAND = [sys.executable, "-m", "vmm.cli"]


@pytest.fixture
def hello(tmp_path: Path) -> str:
    return str(program(tmp_path, say("hello\n"), finish(PASS)))


def told(file: Path, lock: str) -> dict[str, object]:
    return next(entry for entry in json.loads(file.read_text())["locks"] if entry["name"] == lock)


# -- the figures -------------------------------------------------------------------------------------------------------


def test_json_goes_to_a_file_and_nothing_to_the_terminal(
    tmp_path: Path, hello: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "locks.json"
    assert main([*NULL, hello, "--lock-stat", str(file)]) == 0
    assert capfd.readouterr() == ("", "")
    uart = told(file, "uart")
    assert (uart["acquired"], list(uart["causes"])) == (6, ["exit MMIO_WRITE"])  # type: ignore[call-overload]
    assert told(file, "bql")["acquired"] == 0
    stalls = json.loads(file.read_text())["outside_guest"]["vcpu0"]
    assert stalls["causes"]["exit MMIO_WRITE"]["count"] >= 6
    assert sum(count for _, count in stalls["buckets"]) == stalls["count"]


def test_a_table_goes_to_standard_error(hello: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*NULL, hello, "--lock-stat", "--check-locks"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "Locks"
    (uart,) = (line.split() for line in lines if line.split()[:2] == ["uart", "Uart16550"])
    assert uart[2:5] == ["6", "0", "0"]
    assert any(line.split()[:2] == ["vcpu0", "all"] for line in lines)


def test_under_the_big_lock_each_exit_takes_it_and_devices_show_for_whom(tmp_path: Path, hello: str) -> None:
    file = tmp_path / "locks.json"
    assert main([*NULL, hello, "--lock-stat", str(file), "--locking", "bql"]) == 0
    causes = told(file, "bql")["causes"]
    assert causes["exit MMIO_WRITE"]["acquired"] == 7  # type: ignore[index]  # 6 letters, and the finisher
    assert told(file, "uart")["around"] == "bql"
    assert told(file, "uart")["acquired"] == 6


def test_a_table_names_who_held_what_others_waited_for() -> None:
    meter = Meter()
    for name in ("disk0", "disk1"):
        with meter.lock(name, "VirtioBlk", Rank.DEVICE):
            pass
    text = table(meter.report())
    assert "Classes of several locks" in text
    assert text.splitlines()[-1].split()[0] == "disk1"


def test_sigusr1_asks_a_run_for_its_figures(tmp_path: Path) -> None:
    endless = str(program(tmp_path, say("ready"), FOREVER))
    file = tmp_path / "locks.json"
    with subprocess.Popen(
        [*COMMAND, "--bios", endless, "--lock-stat", str(file), "--timeout", "50"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]
        process.stdout.read(5)
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 30
        while not file.exists():
            assert time.monotonic() < deadline
        assert told(file, "uart")["acquired"] == 5
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 143


@pytest.mark.parametrize("option", ["--lock-stat", "--trace"])
@pytest.mark.parametrize("name", ["missing/file", "."])
def test_a_file_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, hello: str, capfd: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    assert main([*NULL, hello, option, str(tmp_path / name)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"vmm-run: {option} {tmp_path / name}: ")
    assert err.endswith(": give a file that can be written\n")
    assert len(err.splitlines()) == 1


def test_figures_that_do_not_fit_on_the_disk_leave_no_half_file(
    tmp_path: Path, hello: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "locks.json"

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main([*NULL, hello, "--lock-stat", str(file)]) == 2
    complaint = f"vmm-run: --lock-stat {file}: No space left on device: it was not written"
    assert capfd.readouterr() == ("", complaint + "\n")
    assert [path.name for path in tmp_path.iterdir()] == ["program.elf"]


# -- the trace ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["device", "bql"])
def traced(request: pytest.FixtureRequest, tmp_path: Path, hello: str) -> Path:
    file = tmp_path / "trace.json"
    assert main([*NULL, hello, "--trace", str(file), "--locking", request.param]) == 0
    return file


def test_a_trace_shows_guest_exits_locks_and_pauses_one_inside_the_other(traced: Path) -> None:
    found = tracks(traced)
    assert {"vcpu0", "io", "lifecycle"} <= set(found)
    hart = [span for span in found["vcpu0"] if span.category in ("guest", "exit")]
    assert [span.category for span in hart[:4]] == ["guest", "exit", "guest", "exit"]
    letters = [span for span in found["vcpu0"] if span.name == "exit MMIO_WRITE uart"]
    assert len(letters) == 6
    for letter in letters:
        assert any(
            span.name == "uart" and span.category == "hold" and letter.began <= span.began <= span.ended <= letter.ended
            for span in found["vcpu0"]
        )
    assert any(span.category == "idle" for span in found["io"])
    assert any(span.category.startswith("posted by") for span in found["io"])
    assert any(span.category == "work" for span in found["lifecycle"])


def test_a_trace_and_figures_may_be_had_together_with_the_checker_and_the_other_traces(
    tmp_path: Path, hello: str
) -> None:
    files = [tmp_path / name for name in ("trace.json", "locks.json", "exits", "instructions")]
    options = ["--trace", "--lock-stat", "--trace-exits", "--trace-exec"]
    more = [word for pair in zip(options, map(str, files), strict=True) for word in pair]
    assert main([*NULL, hello, "--check-locks", *more]) == 0
    assert len([span for span in tracks(files[0])["vcpu0"] if span.name == "exit MMIO_WRITE uart"]) == 6
    assert told(files[1], "uart")["acquired"] == 6
    assert files[2].read_text().count("MMIO_WRITE") == 7


def test_a_run_that_cannot_be_made_leaves_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    assert main([*NULL, str(tmp_path / "missing"), "--trace", str(file)]) == 2
    assert not file.exists()


def test_a_trace_that_was_cut_is_told_and_the_run_goes_on(hello: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*NULL, hello, "--trace", "/dev/full"]) == 0
    assert (
        capfd.readouterr().err
        == "vmm-run: --trace /dev/full: No space left on device: the trace is cut after 0 bytes\n"
    )
