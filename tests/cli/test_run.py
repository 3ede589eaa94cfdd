from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.programs import FAIL, FOREVER, ILLEGAL, PASS, RESET, SPIN, finish, program, say
from tests.machine.files import cpio, elf, image
from vmm.cli import main
from vmm.cli.status import MEANINGS, Status, of_outcome
from vmm.machine.lifecycle import Outcome, Reason

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "vmm.cli"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


# -- how a run ends --------------------------------------------------------------------------------------------------


def test_a_guest_that_powers_off_ends_with_0_and_its_output_on_the_terminal(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, say("hello\n"), finish(PASS))))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


@pytest.mark.parametrize(("code", "status"), [(1, 1), (42, 42), (120, 120), (300, 120)])
def test_the_guests_exit_code_is_the_exit_status(tmp_path: Path, run: Run, code: int, status: int) -> None:
    done = run("--bios", str(program(tmp_path, finish(code << 16 | FAIL))))
    assert (done.returncode, done.stderr) == (status, f"vmm-run: the guest ended with code {code}\n")


def test_a_run_that_takes_too_long_is_stopped(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, SPIN)), "--timeout", "0.2", "--smp", "2")
    assert (done.returncode, done.stderr) == (Status.TIMEOUT, "vmm-run: --timeout: 0.2 s are over\n")


def test_a_run_ends_well_as_soon_as_the_expected_text_comes(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, say("tests: PASS"), FOREVER)), "--expect", "tests: P.SS")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tests: PASS", "")


@pytest.mark.parametrize(
    ("last", "more", "status"),
    [(finish(PASS), (), Status.NOT_EXPECTED), (FOREVER, ("--timeout", "0.3"), Status.TIMEOUT)],
)
def test_a_run_without_the_expected_text_does_not_end_well(
    tmp_path: Path, run: Run, last: list[int], more: tuple[str, ...], status: int
) -> None:
    done = run("--bios", str(program(tmp_path, say("tests: FAIL"), last)), "--expect", "PASS", *more)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1


def test_with_no_reboot_a_reset_ends_the_run(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, say("once\n"), finish(RESET))), "--no-reboot")
    assert (done.returncode, done.stdout) == (0, "once\n")


def test_a_reset_starts_the_program_over(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, say("again "), finish(RESET))), "--expect", "again again again")
    assert done.returncode == 0


def test_the_serial_port_can_be_a_file(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, say("to file\n"), finish(PASS))), "--serial", "file:log")
    assert (done.returncode, done.stdout, (tmp_path / "log").read_text()) == (0, "", "to file\n")


def test_output_that_could_not_be_written_is_told(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, say("lost\n"), finish(PASS))), "--serial", "file:/dev/full")
    assert done.returncode == 0
    assert done.stderr == "vmm-run: --serial: file:/dev/full: No space left on device; 5 bytes were lost\n"


def test_a_machine_that_fails_says_what_it_knows_and_ends_with_its_own_status() -> None:
    assert of_outcome(Outcome(Reason.FAILED)) == 125
    assert of_outcome(Outcome(Reason.CONSOLE_GONE)) == 141
    assert {status for status, _ in MEANINGS} >= {"125", "141"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_machine_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    path = program(tmp_path, say("up\n"), SPIN)
    process = subprocess.Popen(
        [*COMMAND, "--bios", str(path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors.decode() == f"vmm-run: stopped by {number.name}\n"


def test_a_run_whose_reader_goes_away_ends(tmp_path: Path) -> None:
    path = program(tmp_path, say("up\n"), say("down\n") * 20, SPIN)
    process = subprocess.Popen(
        [*COMMAND, "--bios", str(path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGPIPE
    assert b"Broken pipe" in errors


# -- the terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """`vmm-run` on a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        self.controller, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.text = b""
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )

    def until(self, pattern: bytes) -> None:
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.text):
            ready, _, _ = select.select([self.controller], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.text!r}"
            self.text += os.read(self.controller, 4096)

    def type(self, data: bytes) -> None:
        os.write(self.controller, data)

    def raw(self) -> bool:
        return not termios.tcgetattr(self.terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def end(self) -> int:
        status = self.process.wait(30)
        assert termios.tcgetattr(self.terminal) == self.before
        os.close(self.controller)
        os.close(self.terminal)
        return status


def test_the_escape_key_ends_the_run_and_the_terminal_is_as_it_was(tmp_path: Path) -> None:
    terminal = Terminal("--bios", str(program(tmp_path, say("up\n"), SPIN)))
    terminal.until(b"up\r\n")
    assert terminal.raw()
    terminal.type(b"\x01h")
    terminal.until(b"C-a x +stop the machine")
    terminal.type(b"\x01s")
    terminal.until(b"vcpu0")
    terminal.type(b"\x01x")
    assert terminal.end() == 0


def test_the_escape_key_works_when_the_guest_takes_no_input(tmp_path: Path) -> None:
    terminal = Terminal("--bios", str(program(tmp_path, say("up\n"), SPIN)))
    terminal.until(b"up\r\n")
    terminal.type(b"more than the sixteen bytes that a UART has room for\x01h")
    terminal.until(b"C-a x")
    terminal.type(b"and more\x01x")
    assert terminal.end() == 0


def test_the_terminal_is_as_it_was_after_a_signal_and_after_the_guest_ends(tmp_path: Path) -> None:
    terminal = Terminal("--bios", str(program(tmp_path, say("up\n"), SPIN)))
    terminal.until(b"up\r\n")
    terminal.process.terminate()
    assert terminal.end() == 128 + signal.SIGTERM
    terminal = Terminal("--bios", str(program(tmp_path, finish(PASS))))
    assert terminal.end() == 0


def test_the_shell_has_its_terminal_while_the_run_is_stopped_and_the_guest_after_that(tmp_path: Path) -> None:
    terminal = Terminal("--bios", str(program(tmp_path, say("up\n"), SPIN)))
    terminal.until(b"up\r\n")
    pid = terminal.process.pid
    os.kill(pid, signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    assert termios.tcgetattr(terminal.terminal) == terminal.before
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while not terminal.raw():
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)
    terminal.type(b"\x01x")
    assert terminal.end() == 0


# -- other work ------------------------------------------------------------------------------------------------------


def test_the_device_tree_can_be_written_without_a_guest(tmp_path: Path, run: Run) -> None:
    done = run("--dump-dtb", "tree.dtb", "--smp", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "tree.dtb").read_bytes()[:4] == b"\xd0\x0d\xfe\xed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree.dtb"]


def test_the_device_tree_of_a_guest_names_its_command_line(tmp_path: Path, run: Run) -> None:
    (tmp_path / "Image").write_bytes(image())
    assert run("--kernel", "Image", "--append", "quiet splash", "--dump-dtb", "tree.dtb").returncode == 0
    assert b"quiet splash\0" in (tmp_path / "tree.dtb").read_bytes()


def test_a_device_tree_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, run: Run) -> None:
    done = run("--dump-dtb", "missing/tree.dtb")
    assert done.returncode == 2
    assert done.stderr.startswith("vmm-run: --dump-dtb missing/tree.dtb: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["debian", "--help"], ["demo", "--help"], ["--version"]])
def test_help_is_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "vmm-run" in capsys.readouterr().out


# -- bad input: each is one line on standard error, status 2, and nothing left behind ---------------------------------

FILES: dict[str, bytes] = {
    "Image": image(),
    "initrd": cpio(("init", b"x")),
    "empty": b"",
    "foreign": b"just some text\n" * 99,
    "x86": bytes(0x202) + b"HdrS" + bytes(99),
    "short.elf": elf()[:-1],
    "short.cpio": cpio(("init", b"x" * 999))[:-200],
    "big.cpio": cpio(("init", bytes(64 << 20))),
    "disk.img": bytes(1 << 20),
    "odd.img": bytes(1000),
    "disk.qcow2": b"QFI\xfb" + bytes(1020),
}

BAD_INPUT: list[tuple[list[str], str]] = [
    ([], "--kernel: nothing to boot: give --kernel FILE or --bios FILE"),
    (["--kernel", "missing"], "--kernel missing: there is no such file"),
    (["--kernel", "empty"], "--kernel empty: is empty"),
    (["--kernel", "foreign"], "--kernel foreign: is not a kernel of a known format"),
    (["--kernel", "x86"], "--kernel x86: is an x86 kernel"),
    (["--kernel", "short.elf"], "--kernel short.elf: is cut short"),
    (["--kernel", "."], "--kernel .: is not a regular file"),
    (["--bios", "missing"], "--bios missing: there is no such file"),
    (["--bios", "empty"], "--bios empty: is empty"),
    (["--bios", "Image"], "--bios Image: is a Linux kernel"),
    (["--bios", "short.elf"], "--bios short.elf: is cut short"),
    (["--kernel", "Image", "--initrd", "missing"], "--initrd missing: there is no such file"),
    (["--kernel", "Image", "--initrd", "empty"], "--initrd empty: is empty"),
    (["--kernel", "Image", "--initrd", "foreign"], "--initrd foreign: is neither a cpio archive"),
    (["--kernel", "Image", "--initrd", "short.cpio"], "--initrd short.cpio: is cut short"),
    (["--kernel", "Image", "--initrd", "big.cpio", "--mem", "64M"], "--mem: 64M is too little for --initrd big.cpio"),
    (["--initrd", "initrd", "--bios", "Image"], "--initrd: there is no kernel"),
    (["--kernel", "Image", "--drive", "file=missing"], "--drive missing: No such file"),
    (["--kernel", "Image", "--drive", "file=empty"], "--drive empty: the disk is empty"),
    (["--kernel", "Image", "--drive", "file=odd.img"], "--drive odd.img: 1000 bytes are not a multiple"),
    (["--kernel", "Image", "--drive", "file=disk.qcow2"], "--drive disk.qcow2: this is a qcow2 image"),
    (["--kernel", "Image", "--drive", "file=disk.img", "--drive", "file=disk.img"], "--drive disk.img: "),
    (["--kernel", "Image", "--drive", "file=."], "--drive .: a disk must be"),
    (["--kernel", "Image", "--drive", "file=disk.img,format=qcow2"], "--drive: format=qcow2 is not known"),
    (["--kernel", "Image", "--smp", "0"], "--smp: 0 harts cannot be: give 1 to 32"),
    (["--kernel", "Image", "--smp", "33"], "--smp: 33 harts cannot be"),
    (["--kernel", "Image", "--mem", "1M"], "--mem: 1048576 bytes are too little"),
    (["--kernel", "Image", "--mem", "9999T"], "--mem 10238976G is more than this host has"),
    (["--kernel", "Image", "--serial", "tape"], "--serial 'tape' is no character device"),
    (["--kernel", "Image", "--serial", "file:missing/log"], "--serial missing/log"),
    (["--kernel", "Image", "--serial", "pipe:missing"], "--serial missing"),
    (["--kernel", "Image", "--trace-exec", "missing/trace"], "--trace-exec missing/trace"),
    (["--kernel", "Image", "--bogus"], "--bogus: is not an option here"),
    (["--config", "missing"], "--config missing: cannot be read"),
    (["--config", "foreign"], "--config foreign: is not TOML"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    status = main(arguments)
    written = capsys.readouterr()
    assert status == 2
    assert written.out == ""
    assert written.err.startswith(f"vmm-run: {words}")
    assert written.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == FILES


def test_a_disk_that_may_only_be_read_says_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, disk = tmp_path / "Image", tmp_path / "disk.img"
    kernel.write_bytes(image())
    disk.write_bytes(bytes(1 << 20))
    whole_open = os.open

    def refuse_writing(path: object, flags: int, *more: int, **named: int) -> int:
        if str(path) == str(disk) and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return whole_open(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse_writing)
    assert main(["--kernel", str(kernel), "--drive", f"file={disk}"]) == 2
    written = capsys.readouterr().err
    assert written.startswith(f"vmm-run: --drive {disk}: Permission denied")
    assert "readonly" in written


def test_an_illegal_instruction_is_the_guests_own_business(tmp_path: Path, run: Run) -> None:
    done = run("--bios", str(program(tmp_path, ILLEGAL)), "--timeout", "0.3")
    assert done.returncode == Status.TIMEOUT
