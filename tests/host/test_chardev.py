"""Character devices over real descriptors, with the deterministic I/O thread where input matters."""

from __future__ import annotations

import os
import pty
import termios
import threading

import pytest

from vmm.errors import ConfigError, HostError
from vmm.fabric.iothread import IoThread
from vmm.host.chardev import Chardev, FileChardev, PipeChardev, PtyChardev, StreamChardev
from vmm.host.consoles import open_chardev
from vmm.host.terminal import Command, EscapeKey, TerminalChardev
from vmm.host.transcript import ExpectError, Transcript
from vmm.testing.fakes import FakeIoThread

SOON = 10.0


class Front:
    """A guest's side with room for `room` bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.got = b""
        self.breaks: list[int] = []
        self.ready = threading.Event()

    def receive(self, data: bytes) -> int:
        taken = data[: self.room]
        self.got += taken
        self.room -= len(taken)
        return len(taken)

    def line_break(self) -> None:
        self.breaks.append(len(self.got))

    def output_ready(self) -> None:
        self.ready.set()


@pytest.fixture
def io():
    return FakeIoThread()


@pytest.fixture
def pipe():
    r, w = os.pipe()
    yield r, w
    for fd in (r, w):
        try:
            os.close(fd)
        except OSError:
            pass


def read_all(fd: int) -> bytes:
    out = b""
    while chunk := os.read(fd, 1 << 16):
        out += chunk
    return out


# -- output ------------------------------------------------------------------------------------------------------------


def test_output_arrives_in_the_order_in_which_it_was_put(io, pipe):
    r, w = pipe
    chardev = StreamChardev("serial", io, output_fd=w)
    expected = b""
    for n in range(2000):
        chardev.put(b"%d\n" % n)
        expected += b"%d\n" % n
    chardev.close()
    os.close(w)
    assert read_all(r) == expected
    assert chardev.statistics().sent == len(expected)


def test_a_reader_that_stops_holds_nobody_up_and_congestion_ends_when_it_goes_on(pipe):
    r, w = pipe
    home = IoThread("io")
    home.start()
    chardev = StreamChardev("serial", home, output_fd=w, limit=100_000)
    front = Front()
    chardev.connect(front)
    put = 0
    while not chardev.congested:
        chardev.put(b"x" * 1000)
        put += 1000
    assert put >= 100_000
    assert chardev.write(b"more") == 0
    got = b""
    while len(got) < put - 50_000:
        got += os.read(r, 4096)
    assert front.ready.wait(SOON)
    assert not chardev.congested
    assert chardev.write(b"more") == 4
    drainer = threading.Thread(target=lambda: chardev.close(SOON))
    drainer.start()
    while len(got) < put + 4:
        got += os.read(r, 1 << 16)
    drainer.join()
    home.stop()
    assert got == b"x" * put + b"more"
    assert chardev.statistics().lost == 0


def test_output_that_nobody_takes_is_given_up_at_the_end_and_counted(io, pipe):
    r, w = pipe
    chardev = StreamChardev("serial", io, output_fd=w, limit=1 << 20)
    chardev.put(b"x" * (1 << 20))
    chardev.close(timeout=0.05)
    now = chardev.statistics()
    assert now.sent + now.lost == 1 << 20
    assert now.lost > 0
    assert "nobody took" in now.problem
    os.read(r, 1 << 20)


def test_a_peer_that_has_gone_is_told_once_and_output_is_counted_as_lost(pipe):
    r, w = pipe
    home = IoThread("io")
    home.start()
    gone: list[str] = []
    told = threading.Event()
    chardev = StreamChardev("serial", home, output_fd=w, on_gone=lambda why: (gone.append(why), told.set()))
    front = Front()
    chardev.connect(front)
    os.close(r)
    chardev.put(b"hello")
    assert told.wait(SOON)
    assert front.ready.wait(SOON)
    chardev.put(b"more")
    chardev.close()
    home.stop()
    assert gone == ["serial: Broken pipe"]
    assert chardev.statistics().lost == 9
    assert not chardev.congested


def test_a_file_that_another_made_non_blocking_still_gets_everything(io, pipe):
    r, w = pipe
    os.set_blocking(w, False)
    chardev = StreamChardev("serial", io, output_fd=w, limit=1 << 20)
    chardev.put(b"x" * 300_000)
    got = 0
    while got < 300_000:
        got += len(os.read(r, 1 << 16))
    chardev.close()
    assert chardev.statistics().lost == 0


def test_a_file_holds_the_output_and_is_emptied_first(io, tmp_path):
    path = tmp_path / "log"
    path.write_text("old")
    chardev = FileChardev(path, io)
    chardev.put(b"new")
    chardev.close()
    assert path.read_bytes() == b"new"


def test_what_a_guest_sends_without_waiting_is_counted_with_the_reason(io):
    chardev = Chardev("serial", io)
    chardev.lost(3)
    now = chardev.statistics()
    assert now.lost == 3
    assert "did not wait" in now.problem
    assert "did not wait" in repr(chardev)


# -- input -------------------------------------------------------------------------------------------------------------


def test_input_is_offered_and_what_there_is_no_room_for_waits(io, pipe):
    r, w = pipe
    front = Front(room=3)
    chardev = StreamChardev("serial", io, input_fd=r)
    chardev.connect(front)
    os.write(w, b"abcdef")
    io.run()
    assert front.got == b"abc"
    os.write(w, b"ghi")
    io.run()
    assert front.got == b"abc"
    front.room = 100
    chardev.input_ready()
    io.run()
    assert front.got == b"abcdefghi"
    chardev.close()


def test_the_end_of_input_leaves_output_alone(io, pipe):
    r, w = pipe
    out_r, out_w = os.pipe()
    front = Front()
    chardev = StreamChardev("serial", io, input_fd=r, output_fd=out_w)
    chardev.connect(front)
    os.write(w, b"last")
    os.close(w)
    io.run()
    assert front.got == b"last"
    chardev.put(b"still here")
    assert os.read(out_r, 100) == b"still here"
    chardev.close()
    os.close(out_r)
    os.close(out_w)


def test_input_from_a_regular_file_is_read_as_the_guest_takes_it(io, tmp_path):
    path = tmp_path / "script"
    path.write_bytes(bytes(range(256)) * 64)
    with path.open("rb") as f:
        front = Front(room=100)
        chardev = StreamChardev("serial", io, input_fd=f.fileno())
        io.add_reader = lambda fd, callback: (_ for _ in ()).throw(PermissionError)  # as epoll does
        chardev.connect(front)
        while len(front.got) < 64 * 256:
            io.run()
            front.room = 1000
            chardev.input_ready()
        assert front.got == path.read_bytes()
        chardev.close()


def test_input_that_cannot_be_read_ends_and_says_why(io, tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    chardev = StreamChardev("serial", io, input_fd=fd)
    chardev.connect(Front())
    io.run()
    assert "directory" in chardev.statistics().problem
    chardev.close()
    os.close(fd)


def test_what_a_program_sends_arrives_as_input(io):
    front = Front()
    chardev = Chardev("serial", io)
    chardev.send(b"typed")
    io.run()
    chardev.connect(front)
    io.run()
    assert front.got == b"typed"


# -- pipes and pseudo terminals ----------------------------------------------------------------------------------------


def test_a_pair_of_fifos_carries_both_ways_and_its_peers_may_come_and_go(io, tmp_path):
    for end in ("in", "out"):
        os.mkfifo(tmp_path / f"serial.{end}")
    chardev = PipeChardev(tmp_path / "serial", io)
    front = Front()
    chardev.connect(front)
    chardev.put(b"out")
    for text in (b"one ", b"two"):
        peer = os.open(tmp_path / "serial.in", os.O_WRONLY)
        os.write(peer, text)
        os.close(peer)
        io.run()
    reader = os.open(tmp_path / "serial.out", os.O_RDONLY)
    assert os.read(reader, 100) == b"out"
    assert front.got == b"one two"
    chardev.close()
    os.close(reader)


def test_a_pseudo_terminal_carries_bytes_unchanged_both_ways(io):
    chardev = PtyChardev(io)
    front = Front()
    chardev.connect(front)
    io.run()
    peer = os.open(chardev.path, os.O_RDWR | os.O_NOCTTY)
    chardev.put(b"a\nb\x03")
    assert os.read(peer, 100) == b"a\nb\x03"
    os.write(peer, b"in\n\x03\x04")
    io.run()
    assert front.got == b"in\n\x03\x04"
    os.close(peer)
    chardev.close()


# -- the terminal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (b"plain", [(b"plain", "")]),
        (b"a\x01xb", [(b"a", "x"), (b"b", "")]),
        (b"\x01\x01", [(b"\x01", "")]),
        (b"\x01c\x01h", [(b"", "c"), (b"", "h")]),
        (b"\x01", []),
        (b"", []),
    ],
)
def test_the_escape_key_splits_input_from_commands(typed, said):
    assert EscapeKey().feed(typed) == said
    byte_by_byte = EscapeKey()
    told = [part for byte in typed for part in byte_by_byte.feed(bytes([byte]))]
    assert [(b"".join(text for text, _ in told), "".join(key for _, key in told))] == [
        (b"".join(text for text, _ in said), "".join(key for _, key in said))
    ]


@pytest.fixture
def session(io, monkeypatch):
    """A terminal of its own: (controller, terminal, chardev, front, commands that ran)."""
    controller, terminal = pty.openpty()
    ran: list[str] = []
    commands = {"x": Command("end the machine", lambda: ran.append("x"))}
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())  # as if the test ran in its foreground
    chardev = TerminalChardev(io, commands, input_fd=terminal, output_fd=terminal)
    front = Front()
    chardev.connect(front)
    io.run()
    yield controller, terminal, chardev, front, ran
    chardev.close()
    os.close(controller)
    os.close(terminal)


def modes(fd: int) -> int:
    return termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)


def test_keys_that_a_terminal_keeps_for_itself_reach_the_guest(io, session):
    controller, _, _, front, _ = session
    os.write(controller, b"ls\r\x03\x1a\x13")
    io.run()
    assert front.got == b"ls\r\x03\x1a\x13"


def test_the_terminal_is_raw_while_open_and_restored_by_close_however_often(io, session):
    _, terminal, chardev, _, _ = session
    assert modes(terminal) == 0
    chardev.close()
    chardev.restore()
    chardev.close()
    assert modes(terminal) == termios.ECHO | termios.ICANON | termios.ISIG


def test_commands_run_and_never_reach_the_guest(io, session):
    controller, _, _, front, ran = session
    os.write(controller, b"a\x01xb\x01?c")
    io.run()
    assert ran == ["x"]
    assert front.got == b"abc"


def test_a_break_comes_after_what_was_typed_before_it(io, session):
    controller, _, _, front, _ = session
    os.write(controller, b"abc\x01bde")
    io.run()
    assert front.breaks == [3]
    assert front.got == b"abcde"


def test_help_lists_the_commands(io, session):
    controller, _, _, _, _ = session
    os.write(controller, b"\x01h")
    io.run()
    shown = b""
    while b"send C-a\r\n" not in shown:
        shown += os.read(controller, 1000)
    assert b"C-a x    end the machine\r\n" in shown


def test_in_the_background_the_terminal_is_left_alone(io, monkeypatch):
    controller, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
    chardev = TerminalChardev(io, {}, input_fd=terminal, output_fd=terminal)
    front = Front()
    chardev.connect(front)
    os.write(controller, b"typed\n")
    io.run()
    assert front.got == b""
    assert termios.tcgetattr(terminal) == before
    chardev.close()
    os.close(controller)
    os.close(terminal)


def test_a_pipe_in_place_of_a_terminal_has_no_escape_key(io, pipe):
    r, w = pipe
    front = Front()
    chardev = TerminalChardev(io, {}, input_fd=r, output_fd=w)
    chardev.connect(front)
    os.write(w, b"\x01x\x01h")
    io.run()
    assert front.got == b"\x01x\x01h"
    chardev.close()


# -- the transcript ----------------------------------------------------------------------------------------------------


def test_expect_finds_what_is_there_and_goes_on_behind_it():
    transcript = Transcript()
    transcript.feed(b"login: root\nlogin: again")
    assert transcript.expect(r"login: (\w+)", SOON).group(1) == b"root"
    assert transcript.expect(r"login: (\w+)", SOON).group(1) == b"again"
    with pytest.raises(ExpectError):
        transcript.expect("login", timeout=0)


def test_expect_waits_for_output_that_comes_later_byte_by_byte():
    transcript = Transcript()

    def print_slowly() -> None:
        for byte in b"booting... ready> ":
            transcript.feed(bytes([byte]))

    printer = threading.Thread(target=print_slowly)
    printer.start()
    assert transcript.expect("ready> ", SOON)
    printer.join()


def test_an_expectation_that_fails_says_how_the_output_ends():
    transcript = Transcript()
    transcript.feed(b"Kernel panic")
    with pytest.raises(ExpectError, match=r"0.01 s passed without b'login:'.*\nKernel panic"):
        transcript.expect("login:", timeout=0.01)


def test_the_end_of_the_machine_ends_every_expectation(io):
    transcript = Transcript()
    chardev = Chardev("serial", io, transcript)
    errors: list[str] = []

    def wait() -> None:
        try:
            transcript.expect("never", SOON)
        except ExpectError as e:
            errors.append(str(e))

    waiters = [threading.Thread(target=wait) for _ in range(2)]
    for waiter in waiters:
        waiter.start()
    chardev.put(b"bye")
    chardev.close()
    for waiter in waiters:
        waiter.join()
    assert len(errors) == 2
    assert all("machine stopped" in e and e.endswith("bye") for e in errors)


def test_output_before_the_end_still_meets_an_expectation():
    transcript = Transcript()
    transcript.feed(b"done")
    transcript.end()
    assert transcript.expect("done", timeout=0)


def test_a_transcript_keeps_the_last_of_a_long_output_and_counts_the_rest():
    transcript = Transcript(keep=1000)
    for n in range(1000):
        transcript.feed(b"line %4d\n" % n)
    kept = transcript.output
    assert 1000 <= len(kept) <= 1250
    assert kept.endswith(b"line  999\n")
    assert transcript.forgotten + len(kept) == 10_000
    assert transcript.expect("line  99(.)", SOON).group(1) == b"0"
    transcript.feed(b"\xff")
    assert transcript.text.endswith("\ufffd")


# -- by name -----------------------------------------------------------------------------------------------------------


def test_character_devices_are_opened_by_name(io, tmp_path):
    transcript = Transcript()
    null = open_chardev("null", io, transcript)
    null.put(b"seen")
    assert transcript.output == b"seen"
    path = tmp_path / "a:b"
    log = open_chardev(f"file:{path}", io)
    log.close()
    assert path.exists()
    terminal = open_chardev("pty", io)
    terminal.close()


@pytest.mark.parametrize("spec", ["", "file:", "pipe:", "tty", "null:x", "stdio:"])
def test_an_unknown_name_is_the_users_error(io, spec):
    with pytest.raises(ConfigError, match="stdio, pty, null"):
        open_chardev(spec, io)


@pytest.mark.parametrize("spec", ["file:/nonexistent/log", "pipe:/nonexistent/serial", "file:/"])
def test_a_path_that_cannot_be_opened_is_named(io, spec):
    with pytest.raises(HostError, match=spec.partition(":")[2]):
        open_chardev(spec, io)
