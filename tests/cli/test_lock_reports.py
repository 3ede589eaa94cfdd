"""What `vmm-run --check-locks` tells, and with which status it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.programs import FAIL, PASS, finish, program, say
from vmm.cli import main
from vmm.cli.status import Status
from vmm.lockreport import Kind
from vmm.machine.virt import Board


@pytest.fixture
def mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that calls a private method of a device without its lock when the guest powers off, twice."""
    power_off = Board._power_off

    def touch_and_go(self: Board, code: int) -> None:
        self.uart._decoder()
        self.uart._decoder()
        power_off(self, code)

    monkeypatch.setattr(Board, "_power_off", touch_and_go)


def vmm_run(folder: Path, *more: str, end: int = PASS) -> int:
    guest = program(folder, say("up\n"), finish(end))
    return main(["--bios", str(guest), "--serial", "null", *more])


def written(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.usefixtures("mistaken")
@pytest.mark.parametrize("policy", ["device", "bql"])
def test_a_run_goes_on_after_a_report_and_ends_with_3(
    tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "locks.json"
    status = vmm_run(tmp_path, "--check-locks", "--locking", policy, "--lock-report", str(report))
    assert status == Status.LOCK_REPORTS == 3
    told = capsys.readouterr().err
    assert "[private] thread vcpu0 runs Uart16550._decoder of uart without its lock" in told
    assert "touch_and_go: self.uart._decoder()" in told
    assert told.endswith("\nvmm-run: --check-locks: 1 report, see above\n")
    found = written(report)
    assert (found["checked"], found["locking"]) == (True, policy)
    (only,) = found["reports"]
    assert (only["kind"], only["classes"], only["instances"], only["count"]) == (
        Kind.PRIVATE,
        ["Uart16550"],
        ["uart"],
        2,
    )
    assert only["witnesses"][0]["stack"][0]["function"].endswith("touch_and_go")
    assert ["harts at the gate", "Uart16550"] in [[edge["outer"], edge["inner"]] for edge in found["graph"]["edges"]]


@pytest.mark.usefixtures("mistaken")
def test_the_guests_own_code_goes_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmm_run(tmp_path, "--check-locks", end=7 << 16 | FAIL) == 7
    assert "[private]" in capsys.readouterr().err


def test_a_run_without_a_report_says_nothing_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "locks.json"
    assert vmm_run(tmp_path, "--check-locks", "--lock-report", str(report)) == 0
    assert capsys.readouterr().err == ""
    assert written(report)["checked"]
    assert written(report)["reports"] == []


def test_a_checker_that_was_switched_off_does_not_look_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "locks.json"
    assert vmm_run(tmp_path, "--lock-report", str(report)) == 0
    why = "the locks were not checked: give --check-locks too"
    assert capsys.readouterr().err == f"vmm-run: --lock-report: {why}\n"
    assert written(report) == {"version": 1, "checked": False, "locking": "device", "why": why}


@pytest.mark.parametrize("file", ["missing/locks.json", "."])
def test_a_report_that_cannot_be_written_stops_the_run_before_it_begins(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serial"
    guest = program(tmp_path, say("up\n"), finish(PASS))
    arguments = ["--bios", str(guest), "--serial", f"file:{out}", "--lock-report", str(tmp_path / file)]
    assert main(arguments) == Status.BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"vmm-run: --lock-report {tmp_path / file}: ")
    assert told.count("\n") == 1
    assert not out.exists()


def test_a_full_disk_leaves_no_half_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmm_run(tmp_path, "--check-locks", "--lock-report", "/dev/full") == Status.BAD_INPUT
    assert capsys.readouterr().err == "vmm-run: --lock-report /dev/full: No space left on device: it was not written\n"


def test_a_run_that_does_not_begin_leaves_no_file(tmp_path: Path) -> None:
    assert main(["--bios", str(tmp_path / "nothing"), "--lock-report", str(tmp_path / "locks.json")]) == 2
    assert not list(tmp_path.iterdir())
