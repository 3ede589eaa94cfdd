"""The watchdog on a clock of the test's: what it reports, when, and what it never reports."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm import stacks
from vmm.errors import ConfigError
from vmm.fabric.iothread import IoThread
from vmm.fabric.workers import Workers
from vmm.locks import Device, Locking, Progress, entry
from vmm.waitfor import Sighting, Tells
from vmm.watchdog import LOOKS, Reports, Watchdog

ROOT = Path(__file__).parents[2]
THRESHOLD = 10
PERIOD = THRESHOLD * 1_000_000_000 // LOOKS


class Bench:
    """A watchdog, its clock, and what it has written."""

    def __init__(self, *parts: Tells) -> None:
        self.parts = parts
        self.now = 0
        self.written: list[str] = []
        self.watchdog = Watchdog(self, THRESHOLD, self.written.append, now=lambda: self.now)

    def sections(self) -> list[tuple[str, list[str]]]:
        return [("what else there is", ["a line"]), ("what there is not", [])]

    def look(self, times: int = 1) -> list[str]:
        """What these looks, a period apart, have written."""
        before = len(self.written)
        for _ in range(times):
            self.now += PERIOD
            self.watchdog.look()
        return self.written[before:]


class Somebody:
    """Tells of the stays that a test wants."""

    def __init__(self, *keys: object) -> None:
        self.keys = list(keys)

    def tell(self, sighting: Sighting) -> None:
        for key in self.keys:
            sighting.stay(threading.get_ident(), f"in exit {key}", key)


class Thing(Device):
    @entry
    def block(self, inside: threading.Event, until: threading.Event) -> None:
        inside.set()
        until.wait()

    @entry
    def touch(self) -> None:
        """Wants the lock."""


@pytest.fixture
def thread() -> Iterator[Callable[..., threading.Thread]]:
    started: list[threading.Thread] = []

    def start(name: str, target: Callable[..., object], *arguments: object) -> threading.Thread:
        started.append(threading.Thread(target=target, args=arguments, name=name))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.join()


@pytest.fixture
def until(thread: object) -> Iterator[threading.Event]:
    """Lets the threads go at the end, before they are joined."""
    event = threading.Event()
    yield event
    event.set()


Start = Callable[..., threading.Thread]


# -- when ------------------------------------------------------------------------------------------------------------


def test_a_stay_is_reported_once_it_was_there_at_every_look_of_the_threshold() -> None:
    bench = Bench(Somebody("one"))
    assert bench.look(LOOKS) == []
    (report,) = bench.look()
    me = threading.current_thread().name
    assert report.startswith(f"vmm: HANG: no progress\n  {me} is in exit one, at every look for 10.0 s\n")
    assert report.endswith("-- end of report\n")
    assert "-- what else there is\n  a line\n-- what there is not\n  nothing\n" in report


def test_a_stay_that_gives_way_to_another_just_in_time_is_no_hang() -> None:
    somebody = Somebody(0)
    bench = Bench(somebody)
    for turn in range(20):
        somebody.keys = [turn]
        assert bench.look(LOOKS) == []


def test_a_process_that_was_stopped_for_an_hour_has_not_hung() -> None:
    bench = Bench(Somebody("one"))
    bench.look(LOOKS)
    for _ in range(10):
        bench.now += 3600 * 1_000_000_000
        assert bench.look() == []


def test_a_hang_that_lasts_is_reported_once_and_its_end_is_told() -> None:
    somebody = Somebody("one")
    bench = Bench(somebody)
    assert len(bench.look(10 * LOOKS)) == 1
    somebody.keys = []
    me = threading.current_thread().name
    assert bench.look(LOOKS) == [f"vmm: hang over: no longer so: {me} is in exit one\n"]
    somebody.keys = ["two"]
    assert len(bench.look(LOOKS + 1)) == 1


def test_victims_that_join_a_hang_are_reported_ever_more_rarely() -> None:
    somebody = Somebody()
    bench = Bench(somebody)
    looks_between: list[int] = [0]
    for turn in range(40 * LOOKS):
        somebody.keys.append(turn)
        looks_between[-1] += 1
        looks_between += [0] * len(bench.look())
    assert looks_between == [LOOKS + 1, LOOKS, 2 * LOOKS, 4 * LOOKS, 8 * LOOKS, 16 * LOOKS, looks_between[-1]]


def test_a_report_may_be_had_at_any_time_and_without_a_thread() -> None:
    report = Bench(Somebody("one")).watchdog.report("somebody asked")
    assert report.startswith("vmm: state of all threads: somebody asked\n-- who waits for whom\n  nothing\n")


def test_the_thread_looks_by_itself_and_ends_when_it_is_told() -> None:
    looked = threading.Event()

    class Part:
        def tell(self, sighting: Sighting) -> None:
            looked.set()

    bench = Bench(Part())
    watchdog = Watchdog(bench, 0.001, bench.written.append)
    watchdog.start()
    looked.wait()
    watchdog.stop()
    watchdog.stop()
    assert "watchdog" not in [one.name for one in threading.enumerate()]
    assert bench.written == []


# -- who -------------------------------------------------------------------------------------------------------------


def test_a_deadlock_of_two_devices_is_named_as_a_cycle_with_threads_locks_and_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.locks.deadlock"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    _, _, graph = done.stdout.partition("-- who waits for whom\n")
    first = graph.splitlines()[0]
    wants = {"vcpu0": "the lock of rtc (class Peer)", "vcpu1": "the lock of uart (class Peer)"}
    steps = [
        f"{one} waits for {wants[one]}, which needs {other}" for one, other in (("vcpu0", "vcpu1"), ("vcpu1", "vcpu0"))
    ]
    assert first in ("  CYCLE: " + "; ".join(steps), "  CYCLE: " + "; ".join(reversed(steps)))
    for one, other in (("vcpu0", "vcpu1"), ("vcpu1", "vcpu0")):
        _, _, about = graph.partition(f"  {wants[one]}\n")
        held, _, waiting = about.partition("waits, for")
        assert f"held by {other}, at every look for 10.0 s\n" in held
        assert "in Peer.enter, at tests/locks/deadlock.py:" in held
        assert "at tests/locks/deadlock.py:" in waiting


@pytest.mark.parametrize("policy", ["device", "bql"])
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_a_device_that_blocks_in_a_door_is_named_with_its_holder_and_waiter(
    policy: str, checked: bool, until: threading.Event, thread: Start
) -> None:
    locking = Locking(policy, checked=checked)  # type: ignore[arg-type]
    thing = locking.make(Thing, "uart")
    inside = threading.Event()
    thread("vcpu0", thing.block, inside, until)
    inside.wait()
    thread("vcpu1", thing.touch)
    while not thing._lock.statistics().waiters:
        pass
    bench = Bench(locking)
    (report,) = bench.look(LOOKS + 1)
    lock = "bql (class bql)" if policy == "bql" else "uart (class Thing)"
    assert report.splitlines()[1] == f"  vcpu1 is waiting for the lock of {lock}, at every look for 10.0 s"
    assert (
        f"  the lock of {lock}\n    held by vcpu0, at every look for 10.0 s\n      at tests/locks/test_watchdog.py:"
        in report
    )
    assert "in Thing.block, at tests/locks/test_watchdog.py:" in report
    until.set()
    while thing._lock.statistics().waiters:
        pass
    assert bench.look() == [f"vmm: hang over: no longer so: vcpu1 is waiting for the lock of {lock}\n"]


def test_a_lock_that_is_held_for_long_and_wanted_by_nobody_is_no_hang_but_is_told(
    until: threading.Event, thread: Start
) -> None:
    locking = Locking()
    thing = locking.make(Thing, "uart")
    inside = threading.Event()
    thread("monitor", thing.block, inside, until)
    inside.wait()
    bench = Bench(locking)
    assert bench.look(4 * LOOKS) == []
    assert "the lock of uart (class Thing): held by monitor, at every look for 3" in bench.watchdog.report("asked")


def test_an_io_thread_that_sleeps_is_no_hang_and_one_callback_that_does_not_return_is(until: threading.Event) -> None:
    io = IoThread("io")
    io.start()
    bench = Bench(io)
    assert bench.look(4 * LOOKS) == []
    inside = threading.Event()

    def stuck() -> None:
        inside.set()
        until.wait()

    io.call_soon(stuck)
    inside.wait()
    (report,) = bench.look(LOOKS + 1)
    assert report.splitlines()[1].startswith("  io is in the callback ")
    assert "stuck, at every look for 10.0 s" in report.splitlines()[1]
    until.set()
    io.stop()


def test_an_io_thread_that_may_block_for_its_disk_is_no_hang(until: threading.Event) -> None:
    io = IoThread("disk0-io", may_block=True)
    io.start()
    inside = threading.Event()
    io.call_soon(lambda: (inside.set(), until.wait()))  # type: ignore[arg-type,return-value]
    inside.wait()
    assert Bench(io).look(4 * LOOKS) == []
    until.set()
    io.stop()


def test_a_pools_calls_may_take_long_but_are_named_to_whoever_waits_for_them(
    until: threading.Event, thread: Start
) -> None:
    class Home:
        def call_soon(self, function: Callable[..., None], *arguments: object) -> None:
            pass

    pool = Workers(1, "worker")
    inside = threading.Event()
    pool.submit(lambda: (inside.set(), until.wait()), done=lambda _: None, home=Home())
    inside.wait()
    bench = Bench(pool)
    assert bench.look(4 * LOOKS) == []
    thread("lifecycle", pool.stop)
    while "lifecycle waits" not in (report := bench.watchdog.report("asked")):
        pass
    assert "  calls of worker\n    is up to worker0: it is in test_a_pools_calls" in report


def test_a_wait_for_something_that_nobody_brings_about_is_told_but_is_no_hang(
    until: threading.Event, thread: Start
) -> None:
    progress = Progress("a transition of the lifecycle")
    inside = threading.Event()

    def wait() -> None:
        with progress.waiting():
            inside.set()
            until.wait()

    thread("user", wait)
    inside.wait()
    bench = Bench(progress)
    assert bench.look(4 * LOOKS) == []
    assert "waits that no thread is to end now: user for a transition of the lifecycle" in bench.watchdog.report("x")


# -- stacks and where reports go -------------------------------------------------------------------------------------


@pytest.fixture
def no_py_spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in which programs are looked for; there is no py-spy."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def fake_py_spy(folder: Path, script: str) -> None:
    program = folder / "py-spy"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_without_py_spy_the_stacks_are_faulthandlers_and_one_line_says_so(no_py_spy: Path) -> None:
    why, *lines = stacks.dump().splitlines()
    assert why == "by faulthandler, since py-spy is not installed"
    mine = lines[lines.index(f'Thread "{threading.current_thread().name}"') + 1 :]
    assert any(line.endswith("test_without_py_spy_the_stacks_are_faulthandlers_and_one_line_says_so") for line in mine)


def test_py_spy_that_may_not_attach_is_told_in_one_line(no_py_spy: Path) -> None:
    fake_py_spy(no_py_spy, "echo 'Error: Permission denied (os error 13)' >&2; echo 'more of it' >&2; exit 1")
    assert stacks.dump().splitlines()[0] == (
        "by faulthandler, since py-spy failed: Error: Permission denied (os error 13)"
    )


def test_py_spy_that_cannot_be_run_is_told_in_one_line(no_py_spy: Path) -> None:
    fake_py_spy(no_py_spy, "")
    (no_py_spy / "py-spy").write_text("#!/nowhere/to/be/found\n")
    assert stacks.dump().splitlines()[0] == ("by faulthandler, since py-spy cannot be run: No such file or directory")


def test_py_spy_is_asked_for_this_process(no_py_spy: Path) -> None:
    fake_py_spy(no_py_spy, 'echo "$@"')
    assert stacks.dump() == f"by py-spy\ndump --pid {os.getpid()}"


def test_every_threads_innermost_line_is_known(until: threading.Event, thread: Start) -> None:
    thing = Locking().make(Thing, "uart")
    inside = threading.Event()
    ident = thread("vcpu0", thing.block, inside, until).ident
    inside.wait()
    at, door = stacks.places(stacks.stacks()[ident or 0])
    assert at.startswith("at tests/locks/test_watchdog.py:")
    assert at.endswith(" block")
    assert door == f"in Thing.block, {at}"


def test_reports_are_added_to_the_file_which_is_emptied_first(tmp_path: Path) -> None:
    file = tmp_path / "hangs.txt"
    file.write_text("of an earlier run")
    reports = Reports("--hang-report", str(file))
    assert file.read_text() == ""
    reports("one\n")
    reports("two\n")
    assert file.read_text() == "one\ntwo\n"


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--hang-report .*/none/x: No such file or directory: give a file that"):
        Reports("--hang-report", str(tmp_path / "none" / "x"))


def test_a_report_that_finds_no_room_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Reports("--hang-report", "/dev/full")("the report\n")
    assert capsys.readouterr().err == "vmm: --hang-report /dev/full: No space left on device\nthe report\n"
