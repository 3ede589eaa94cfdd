from __future__ import annotations

import threading

from vmm.fabric.inflight import InFlight


def test_nothing_in_flight_is_not_waited_for() -> None:
    assert InFlight("disk").wait(0)


def test_waiting_ends_with_the_last_piece_of_work() -> None:
    work = InFlight("disk")
    work.begin(2)
    assert not work.wait(0)
    waited: list[bool] = []
    waiter = threading.Thread(target=lambda: waited.append(work.wait(30)))
    waiter.start()
    work.end()
    work.begin()
    work.end(2)
    waiter.join()
    assert waited == [True]


def test_who_asked_is_called_once_when_the_last_work_ends_or_at_once() -> None:
    work, called = InFlight("disk"), []
    work.when_idle(lambda: called.append("at once"))
    work.begin(2)
    work.when_idle(lambda: called.append((work.wait(0), "then")))
    work.end()
    assert called == ["at once"]
    work.end()
    work.begin()
    work.end()
    assert called == ["at once", (True, "then")]


def test_work_that_outlasts_the_wait_is_named() -> None:
    work = InFlight("disk")
    work.begin(3)
    assert not work.wait(0)
    assert repr(work) == "<InFlight disk: 3>"
    assert work.count == 3


def test_many_threads_lose_no_count() -> None:
    work = InFlight("disk")

    def toil() -> None:
        for _ in range(2000):
            work.begin()
            work.end()

    threads = [threading.Thread(target=toil) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert work.count == 0
