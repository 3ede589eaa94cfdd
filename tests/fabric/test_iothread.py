"""The real I/O thread, worker pool and doorbells: threads that are waited for by events, never by sleeping."""

from __future__ import annotations

import os
import queue
import threading
import time
from pathlib import Path

import pytest

from vmm.errors import HostError, InternalError
from vmm.fabric.clock import Clock
from vmm.fabric.doorbell import Doorbell
from vmm.fabric.iothread import IoThread, io_thread
from vmm.fabric.workers import Workers
from vmm.locks import PLAIN
from vmm.lockstat import Meter

SOON = 10.0


@pytest.fixture(params=[PLAIN, Meter()], ids=["plain", "metered"])
def io(request):
    thread = io_thread("io-test", kit=request.param)
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def pipe():
    r, w = os.pipe()
    yield r, w
    for fd in (r, w):
        try:
            os.close(fd)
        except OSError:
            pass


def on(io: IoThread, function):
    """What `function` returns on the I/O thread."""
    answer: queue.SimpleQueue[object] = queue.SimpleQueue()
    io.call_soon(lambda: answer.put(function()))
    return answer.get(timeout=SOON)


def test_posted_calls_run_in_order_on_the_threads_own_os_thread(io):
    seen: list[int] = []
    for n in range(1000):
        io.call_soon(seen.append, n)
    comm = on(io, lambda: Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())
    assert seen == list(range(1000))
    assert comm == "io-test\n"


def test_calls_posted_by_many_threads_at_once_all_arrive(io):
    seen: list[tuple[int, int]] = []

    def post(who: int) -> None:
        for n in range(500):
            io.call_soon(seen.append, (who, n))

    threads = [threading.Thread(target=post, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    on(io, lambda: None)
    assert len(seen) == 2000
    assert all([n for w, n in seen if w == who] == list(range(500)) for who in range(4))


def test_a_call_may_post_more_calls(io):
    done = threading.Event()
    io.call_soon(lambda: io.call_soon(lambda: io.call_soon(done.set)))
    assert done.wait(SOON)


def test_home_is_the_thread_itself_and_nobody_else(io):
    assert on(io, lambda: (io.is_home, io.assert_home()))[0]
    assert not io.is_home
    with pytest.raises(InternalError, match="io-test"):
        io.assert_home()


def test_what_was_posted_before_the_start_runs_after_it():
    io = IoThread("io-late")
    done = threading.Event()
    io.call_soon(done.set)
    assert not done.is_set()
    io.start()
    assert done.wait(SOON)
    io.stop()


def test_stopping_serves_what_was_posted_and_posting_later_is_harmless():
    io = IoThread("io-stop")
    seen: list[int] = []
    io.start()
    for n in range(100):
        io.call_soon(seen.append, n)
    io.stop()
    assert len(seen) == 100
    io.call_soon(seen.append, 100)
    io.stop()
    assert len(seen) == 100


def test_a_callback_that_does_not_return_is_named_when_stopping_takes_too_long():
    release = threading.Event()

    def stuck_callback() -> None:
        release.wait()

    io = IoThread("io-stuck")
    io.start()
    io.call_soon(stuck_callback)
    with pytest.raises(HostError, match="stuck_callback"):
        io.stop(timeout=0.05)
    release.set()
    io.stop()


def test_a_callback_that_raises_is_reported_and_the_thread_goes_on():
    errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    io = IoThread("io-error", on_error=errors.put)
    io.start()
    io.call_soon(lambda: 1 / 0)
    assert isinstance(errors.get(timeout=SOON), ZeroDivisionError)
    assert on(io, lambda: "alive") == "alive"
    io.stop()


def test_a_readable_descriptor_calls_its_reader_until_it_is_removed(io, pipe):
    r, w = pipe
    got: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    io.add_reader(r, lambda: got.put(os.read(r, 1)))
    os.write(w, b"ab")
    assert got.get(timeout=SOON) + got.get(timeout=SOON) == b"ab"
    on(io, lambda: io.remove_reader(r))
    os.write(w, b"c")
    on(io, lambda: None)
    assert got.empty()


def test_a_peer_that_closes_wakes_the_reader(io, pipe):
    r, w = pipe
    got: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def readable() -> None:
        got.put(os.read(r, 1))
        io.remove_reader(r)

    io.add_reader(r, readable)
    os.close(w)
    assert got.get(timeout=SOON) == b""


def test_one_descriptor_may_have_a_reader_and_a_writer(io):
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        events: queue.SimpleQueue[str] = queue.SimpleQueue()

        def writable() -> None:
            io.remove_writer(ours.fileno())
            events.put("writable")

        def readable() -> None:
            events.put(ours.recv(10).decode())

        io.add_reader(ours.fileno(), readable)
        io.add_writer(ours.fileno(), writable)
        assert events.get(timeout=SOON) == "writable"
        theirs.send(b"hello")
        assert events.get(timeout=SOON) == "hello"
        on(io, lambda: io.remove_reader(ours.fileno()))


def test_a_registration_taken_away_in_the_same_turn_is_not_called(io):
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def readable(mine: int, other: int) -> None:
        called.append(mine)
        io.remove_reader(mine)
        io.remove_reader(other)

    def prepare() -> None:
        for (r, w), (other, _) in zip(pipes, reversed(pipes), strict=True):
            io.add_reader(r, lambda r=r, other=other: readable(r, other))
            os.write(w, b"x")

    on(io, prepare)
    on(io, lambda: None)
    on(io, lambda: None)
    assert len(called) == 1
    for fd in sum(pipes, ()):
        os.close(fd)


def test_a_file_that_cannot_be_waited_for_is_refused(io, tmp_path):
    with (tmp_path / "file").open("wb") as f, pytest.raises(PermissionError):
        io.add_reader(f.fileno(), lambda: None)


def test_timers_fire_on_the_thread_not_before_their_time(io):
    clock = Clock(io)
    clock.resume()
    fired: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
    timer = clock.timer(lambda: fired.put((clock.now(), io.is_home)), "t")
    deadline = clock.now() + 3_000_000
    timer.arm(deadline)
    at, home = fired.get(timeout=SOON)
    assert at >= deadline
    assert home


def test_an_earlier_timer_wakes_a_thread_that_sleeps_for_a_later_one(io):
    clock = Clock(io)
    clock.resume()
    fired: queue.SimpleQueue[str] = queue.SimpleQueue()
    clock.timer(lambda: fired.put("far"), "far").arm(1 << 62)
    on(io, lambda: None)
    clock.timer(lambda: fired.put("near"), "near").arm(clock.now())
    assert fired.get(timeout=SOON) == "near"


def test_the_guard_is_held_while_callbacks_run_and_not_while_the_thread_sleeps():
    guard = threading.RLock()
    io = IoThread("io-guard", around=guard)
    io.start()
    entered, release = threading.Event(), threading.Event()

    def callback() -> None:
        entered.set()
        release.wait(SOON)

    io.call_soon(callback)
    assert entered.wait(SOON)
    assert not guard.acquire(blocking=False)
    release.set()
    assert guard.acquire(timeout=SOON)
    guard.release()
    io.stop()


def test_an_idle_thread_uses_no_cpu_and_does_not_wake(io):
    on(io, lambda: None)
    turns, cpu = io.statistics().turns, time.process_time()
    threading.Event().wait(0.2)
    assert io.statistics().turns == turns
    assert time.process_time() - cpu < 0.1


def test_statistics_name_the_longest_callback(io):
    def slow_callback() -> None:
        threading.Event().wait(0.01)

    io.call_soon(slow_callback)
    on(io, lambda: None)
    assert "slow_callback" in io.statistics().longest
    assert io.statistics().longest_ns >= 10_000_000


# -- doorbells ---------------------------------------------------------------------------------------------------------


def test_a_ring_is_answered_on_the_home_thread_and_rings_before_the_answer_are_one(io):
    answers: list[bool] = []
    answered = threading.Event()

    def answer() -> None:
        answers.append(io.is_home)
        answered.set()

    bell = Doorbell(io, answer, "queue 0")

    def ring_often() -> None:
        for _ in range(5):
            bell.ring()

    on(io, ring_often)
    assert answered.wait(SOON)
    on(io, lambda: None)
    assert answers == [True]
    on(io, bell.close)


def test_each_ring_after_an_answer_is_answered_again(io):
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()
    bell = Doorbell(io, lambda: answers.put(1), "queue 0")
    for _ in range(20):
        os.eventfd_write(bell.fd, 1)
        assert answers.get(timeout=SOON)
    on(io, bell.close)


# -- workers -----------------------------------------------------------------------------------------------------------


def test_a_blocking_call_runs_on_a_worker_and_completes_on_the_home_thread(io):
    workers = Workers(2, "disk")
    done: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    workers.submit(
        lambda n: f"{threading.current_thread().name}:{n}",
        7,
        done=lambda result: done.put((result, io.is_home)),
        home=io,
    )
    name, home = done.get(timeout=SOON)
    assert name in ("disk0:7", "disk1:7")
    assert home
    workers.stop()


def test_what_a_call_raises_is_its_result(io):
    workers = Workers(1, "disk")
    done: queue.SimpleQueue[object] = queue.SimpleQueue()
    workers.submit(lambda: 1 / 0, done=done.put, home=io)
    assert isinstance(done.get(timeout=SOON), ZeroDivisionError)
    workers.stop()


def test_as_many_calls_run_at_once_as_there_are_workers(io):
    workers = Workers(3, "disk")
    together = threading.Barrier(3)
    done: queue.SimpleQueue[object] = queue.SimpleQueue()
    for _ in range(3):
        workers.submit(together.wait, SOON, done=done.put, home=io)
    assert sorted(done.get(timeout=SOON) for _ in range(3)) == [0, 1, 2]
    workers.stop()


def test_stopping_finishes_what_was_submitted_and_refuses_more(io):
    workers = Workers(1, "disk")
    done: list[object] = []
    for n in range(50):
        workers.submit(lambda n=n: n, done=done.append, home=io)
    workers.stop()
    on(io, lambda: None)
    assert done == list(range(50))
    with pytest.raises(InternalError):
        workers.submit(lambda: 1, done=done.append, home=io)


def test_a_call_that_was_accepted_is_made_however_soon_the_pool_is_stopped(io):
    """A stop that comes as soon as it can after the question whether the pool has stopped."""

    class Jobs(queue.SimpleQueue):
        def put(self, job):
            if job and not workers._lock.locked():
                stopping = threading.Thread(target=workers.stop)
                stopping.start()
                stopping.join()
            super().put(job)

    workers = Workers(1, "disk")
    workers._jobs = Jobs()
    done: list[object] = []
    workers.submit(lambda: 7, done=done.append, home=io)
    workers.stop()
    on(io, lambda: None)
    assert done == [7]


def test_a_call_that_hangs_is_named_when_stopping_takes_too_long(io):
    workers = Workers(1, "disk")
    release = threading.Event()
    workers.submit(release.wait, done=lambda result: None, home=io)
    with pytest.raises(HostError, match=r"disk0 in Event\.wait"):
        workers.stop(timeout=0.05)
    release.set()
    workers.stop()


def test_a_metered_thread_says_what_each_callback_is_for(pipe):
    meter = Meter()
    io = io_thread("io0", kit=meter)
    causes: queue.SimpleQueue[str] = queue.SimpleQueue()

    def note(*_: object) -> None:
        causes.put(meter.here.activity.cause)

    def readable() -> None:
        io.remove_reader(pipe[0])
        note()

    io.start()
    clock = Clock(io)
    workers = Workers(1, "worker", meter)
    doorbell = Doorbell(io, note, "queue")
    clock.resume()
    seen = []
    for cause in (
        lambda: io.call_soon(note),
        doorbell.ring,
        lambda: (io.add_reader(pipe[0], readable), os.write(pipe[1], b"x")),
        lambda: clock.timer(note, "soon").arm(0),
        lambda: workers.submit(int, done=note, home=io),
    ):
        cause()
        seen.append(causes.get(timeout=SOON))
    workers.stop()
    assert seen == ["posted by MainThread", "doorbell", "I/O", "timer", "posted by worker"]
    assert on(io, lambda: meter.here.activity.kind) == "io"
    on(io, doorbell.close)
    io.stop()
