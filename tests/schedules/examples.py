"""Small programs for the scheduler's own tests. Each builds everything anew, as a program must."""

from __future__ import annotations

from vmm.locks import DeviceLock
from vmm.testing.schedule import Scheduler


def two_orders(s: Scheduler) -> None:
    """Two threads take two locks, each in its own order."""
    disk, net = s.lock("disk"), s.lock("net")

    def take(first: DeviceLock, second: DeviceLock) -> None:
        with first, second:
            pass

    s.spawn("vcpu0", take, disk, net)
    s.spawn("vcpu1", take, net, disk)


def one_order(s: Scheduler) -> None:
    """The same, in one order."""
    disk, net = s.lock("disk"), s.lock("net")

    def take() -> None:
        with disk, net:
            pass

    s.spawn("vcpu0", take)
    s.spawn("vcpu1", take)


def unlocked_count(s: Scheduler) -> None:
    """Three threads count in a variable that nothing guards."""
    count = [0]

    def add() -> None:
        s.point("read count")
        before = count[0]
        s.point("write count")
        count[0] = before + 1

    for index in range(3):
        s.spawn(f"vcpu{index}", add)

    def end() -> None:
        s.result = count[0]
        assert count[0] == 3

    s.check(end)


def locked_count(s: Scheduler) -> None:
    """The same under a lock."""
    count = [0]
    lock = s.lock("count")

    def add() -> None:
        with lock:
            s.point("read count")
            before = count[0]
            s.point("write count")
            count[0] = before + 1

    for index in range(3):
        s.spawn(f"vcpu{index}", add)

    def end() -> None:
        s.result = count[0]
        assert count[0] == 3

    s.check(end)


def early_look(s: Scheduler) -> None:
    """A thread looks whether there is work before it takes the lock under which it sleeps."""
    work = [False]
    changed = s.condition("work")

    def sleep() -> None:
        s.point("read work")
        if not work[0]:
            with changed:
                changed.wait()

    def post() -> None:
        with changed:
            s.point("write work")
            work[0] = True
            changed.notify_all()

    s.spawn("io", sleep)
    s.spawn("vcpu0", post)


def predicate(s: Scheduler) -> None:
    """The same with a predicate under the condition's lock."""
    work = [False]
    changed = s.condition("work")

    def sleep() -> None:
        with changed:
            changed.wait_for(lambda: work[0])

    def post() -> None:
        with changed:
            work[0] = True
            changed.notify_all()

    s.spawn("io", sleep)
    s.spawn("vcpu0", post)


def spinning(s: Scheduler) -> None:
    """A thread waits in a loop for one that has ended without an answer."""
    ready = [False]

    def spin() -> None:
        while not ready[0]:
            s.point("read ready")

    s.spawn("vcpu0", spin)
    s.spawn("vcpu1", s.point, "write other")


def spin_and_answer(s: Scheduler) -> None:
    """A thread waits in a loop for one that answers in its turn."""
    ready = [False]

    def spin() -> None:
        while not ready[0]:
            s.point("read ready")

    def answer() -> None:
        s.point("write ready")
        ready[0] = True

    s.spawn("vcpu0", spin)
    s.spawn("vcpu1", answer)


def deadline(s: Scheduler) -> None:
    """Whoever waits for what never comes gives up after five seconds of virtual time."""
    never = s.condition("never")
    began = s.now

    def wait() -> None:
        with never:
            assert not never.wait_for(lambda: False, 5.0)
        assert s.now - began == 5_000_000_000

    s.spawn("lifecycle", wait)
    s.spawn("vcpu0", s.point, "write other")


def mixed(s: Scheduler) -> None:
    """Three threads, two locks in two orders, and a word that is written without them."""
    left, right = s.lock("left"), s.lock("right")
    word = [""]

    def write(letter: str) -> None:
        s.point("write word")
        word[0] += letter

    def take(first: DeviceLock, second: DeviceLock, letter: str) -> None:
        with first, second:
            write(letter)

    s.spawn("a", take, left, right, "a")
    s.spawn("b", take, right, left, "b")
    s.spawn("c", write, "c")

    def end() -> None:
        s.result = word[0]

    s.check(end)


def readers(s: Scheduler) -> None:
    """A writer among two readers: what each saw is the end."""
    word = [0]
    seen: list[tuple[str, int]] = []

    def read(name: str) -> None:
        s.point("read word")
        first = word[0]
        s.point("read word")
        seen.append((name, first * 10 + word[0]))

    def write() -> None:
        for value in (1, 2):
            s.point("write word")
            word[0] = value

    s.spawn("a", read, "a")
    s.spawn("b", read, "b")
    s.spawn("w", write)

    def end() -> None:
        s.result = tuple(sorted(seen))

    s.check(end)


def handshake(s: Scheduler) -> None:
    """Two wait for a third, one of them with patience; the end is the order in which they went on."""
    changed = s.condition("changed")
    ready = [False]
    order: list[str] = []

    def wait(name: str) -> None:
        with changed:
            changed.wait_for(lambda: ready[0])
            order.append(name)

    def post() -> None:
        with changed:
            ready[0] = True
            changed.notify_all()

    s.spawn("a", wait, "a")
    s.spawn("b", wait, "b")
    s.spawn("c", post)

    def end() -> None:
        s.result = tuple(order)

    s.check(end)
