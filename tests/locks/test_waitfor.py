"""The wait-for graph: cycles are found, and named before everything else."""

from __future__ import annotations

from vmm.waitfor import Hold, Sighting, Wait, cycles, describe

NAMES = {1: "vcpu0", 2: "vcpu1", 3: "io", 4: "worker0"}


def steps(found: list[tuple[Wait, ...]]) -> list[list[tuple[int, str]]]:
    return [[(wait.thread, wait.thing) for wait in cycle] for cycle in found]


def test_two_threads_that_want_each_others_lock_are_a_cycle() -> None:
    holds = [Hold(1, "uart"), Hold(2, "rtc")]
    waits = [Wait(1, "rtc", 0), Wait(2, "uart", 0)]
    assert steps(cycles(holds, waits)) == [[(1, "rtc"), (2, "uart")]]


def test_a_chain_of_waits_that_ends_at_a_thread_that_runs_is_no_cycle() -> None:
    holds = [Hold(1, "uart"), Hold(2, "rtc"), Hold(3, "disk")]
    waits = [Wait(1, "rtc", 0), Wait(2, "disk", 0), Wait(4, "uart", 0)]
    assert cycles(holds, waits) == []


def test_a_thread_that_waits_for_itself_is_a_cycle() -> None:
    assert steps(cycles([Hold(3, "callbacks of io", "it is in stop")], [Wait(3, "callbacks of io", 0)])) == [
        [(3, "callbacks of io")]
    ]


def test_a_victim_behind_a_cycle_is_not_on_it() -> None:
    holds = [Hold(2, "uart"), Hold(3, "rtc")]
    waits = [Wait(1, "uart", 0), Wait(2, "rtc", 0), Wait(3, "uart", 0)]
    assert steps(cycles(holds, waits)) == [[(2, "rtc"), (3, "uart")]]


def test_two_cycles_are_told_apart() -> None:
    holds = [Hold(1, "a"), Hold(2, "b"), Hold(3, "c"), Hold(4, "d")]
    waits = [Wait(1, "b", 0), Wait(2, "a", 0), Wait(3, "d", 0), Wait(4, "c", 0)]
    assert steps(cycles(holds, waits)) == [[(1, "b"), (2, "a")], [(3, "d"), (4, "c")]]


def test_each_thread_on_a_cycle_is_named_with_the_shortest_one_through_it() -> None:
    holds = [Hold(1, "a"), Hold(2, "b"), Hold(3, "b"), Hold(2, "c")]
    waits = [Wait(1, "b", 0), Wait(3, "c", 0), Wait(2, "a", 0)]
    assert steps(cycles(holds, waits)) == [[(1, "b"), (2, "a")], [(3, "c"), (2, "a"), (1, "b")]]


def test_harts_that_all_wait_for_one_another_are_found_without_trying_all_orders() -> None:
    harts = range(1, 33)
    holds = [Hold(hart, "harts at the gate", "it is in an exit") for hart in harts]
    waits = [Wait(hart, "harts at the gate", 0) for hart in harts]
    assert steps(cycles(holds, waits)) == [[(hart, "harts at the gate")] for hart in harts]


def lines(sighting: Sighting) -> list[str]:
    return list(
        describe(
            sighting,
            now=12_500_000_000,
            name=NAMES.__getitem__,
            held=lambda hold: ", for long",
            where=lambda thread: [f"at line {thread}"],
        )
    )


def test_cycles_come_first_then_each_thing_with_its_holder_and_waiters_oldest_first() -> None:
    sighting = Sighting()
    sighting.hold(1, "uart")
    sighting.hold(2, "rtc")
    sighting.wait(3, "rtc", 2_500_000_000)
    sighting.wait(1, "rtc", 500_000_000)
    sighting.wait(2, "uart", 1_500_000_000)
    assert lines(sighting) == [
        "CYCLE: vcpu0 waits for rtc, which needs vcpu1; vcpu1 waits for uart, which needs vcpu0",
        "rtc",
        "  held by vcpu1, for long",
        "    at line 2",
        "  vcpu0 waits, for 12.0 s",
        "    at line 1",
        "  io waits, for 10.0 s",
        "    at line 3",
        "uart",
        "  held by vcpu0, for long",
        "    at line 1",
        "  vcpu1 waits, for 11.0 s",
        "    at line 2",
    ]


def test_locks_without_waiters_and_waits_without_a_holder_are_told_last() -> None:
    sighting = Sighting()
    sighting.hold(1, "uart")
    sighting.hold(3, "callbacks of io", "it is in poll")
    sighting.hold(None, "calls of a pool that never started")
    sighting.wait(4, "the gate", 0)
    assert lines(sighting) == [
        "uart: held by vcpu0, for long, nobody waits",
        "    at line 1",
        "waits that no thread is to end now: worker0 for the gate",
    ]
