"""The lock itself: reentrancy, waits, statistics, and signals."""

from __future__ import annotations

import signal
import threading

import pytest

from vmm.locks import Device, DeviceLock, Locking, Rank, entry


def wait_for_waiters(lock: DeviceLock, count: int) -> None:
    while len(lock.statistics().waiters) < count:
        pass


def test_a_free_lock_says_so() -> None:
    lock = DeviceLock("uart0", "Uart16550", Rank.DEVICE)
    assert repr(lock) == "<DeviceLock 'uart0' of class Uart16550, DEVICE: free>"
    now = lock.statistics()
    assert (now.holder, now.depth, now.waiters, now.contended, now.waited_ns) == (None, 0, (), 0, 0)


def test_the_holder_may_take_it_again_and_is_named_with_its_depth() -> None:
    lock = DeviceLock("uart0")
    with lock, lock:
        assert lock.held()
        now = lock.statistics()
        assert (now.holder, now.depth) == (threading.current_thread().name, 2)
        assert repr(lock) == f"<DeviceLock 'uart0' of class uart0, DEVICE: held by {now.holder} (depth 2)>"
    assert not lock.held()


@pytest.mark.parametrize("door", ["with", "entry"])
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_waiters_are_named_and_their_waits_counted(door: str, checked: bool) -> None:
    class Thing(Device):
        @entry
        def touch(self) -> None:
            pass

    locking = Locking(checked=checked)
    thing = locking.make(Thing, "thing0")

    def touch_by_hand() -> None:
        with thing._lock:
            pass

    waiter = threading.Thread(target=thing.touch if door == "entry" else touch_by_hand, name="vcpu7")
    with thing._lock:
        waiter.start()
        wait_for_waiters(thing._lock, 1)
        assert "(depth 1), vcpu7 waiting>" in repr(thing._lock)
    waiter.join()
    (now,) = (now for now in locking.statistics() if now.name == "thing0")
    assert (now.holder, now.waiters, now.contended) == (None, (), 1)
    assert now.longest_wait_ns == now.waited_ns > 0


def test_a_thread_that_ended_is_still_named_by_its_ident() -> None:
    lock = DeviceLock("orphan")
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    assert lock.statistics().holder == f"thread {thread.ident}"


def test_statistics_of_a_machine_list_its_live_locks_outermost_first() -> None:
    locking = Locking()
    inner = locking.lock("map", rank=Rank.LEAF)
    outer = locking.lock("lifecycle", rank=Rank.LIFECYCLE)
    assert [now.name for now in locking.statistics()] == ["lifecycle", "bql", "map"]
    with inner:
        assert f"map held by {threading.current_thread().name}" in repr(locking)
    del outer
    assert [now.name for now in locking.statistics()] == ["bql", "map"]


def test_a_signal_handler_that_raises_during_a_wait_leaves_the_lock_free() -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        if not release.is_set():
            release.set()
            raise Interrupted

    class Thing(Device):
        @entry
        def touch(self) -> None:
            pass

    thing = Locking().make(Thing, "thing0")
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with thing._lock:
            taken.set()
            wait_for_waiters(thing._lock, 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            while not release.wait(0.01):  # one that comes just before the wait does not end it
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    holder = threading.Thread(target=hold)
    try:
        holder.start()
        taken.wait()
        with pytest.raises(Interrupted):
            thing.touch()
    finally:
        release.set()
        holder.join()
        signal.signal(signal.SIGUSR1, previous)
    assert thing._lock.statistics().holder is None
