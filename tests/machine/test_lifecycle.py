from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from vmm.errors import ConfigError
from vmm.machine.lifecycle import TABLE, Lifecycle, LifecycleError, Outcome, Reason, Request, State, page

RESTING = (State.BUILT, State.RUNNING, State.PAUSED, State.STOPPED)
WAY_TO = {
    State.BUILT: (),
    State.RUNNING: (Request.START,),
    State.PAUSED: (Request.START, Request.PAUSE),
    State.STOPPED: (Request.STOP,),
}


class Steps:
    """A machine that notes what is done to it; `during` runs inside a step."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.during: dict[str, Callable[[], None]] = {}
        self.observe: Callable[[], None] = lambda: None

    def _step(self, name: str) -> None:
        self.done.append(name)
        self.observe()
        self.during.get(name, lambda: None)()

    def start(self) -> None:
        self._step("start")

    def pause(self) -> None:
        self._step("pause")

    def resume(self) -> None:
        self._step("resume")

    def reset(self) -> None:
        self._step("reset")

    def stop(self) -> None:
        self._step("stop")


class Life(Lifecycle):
    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps()
        self.seen: list[State] = []
        self.steps.observe = lambda: self.seen.append(self.state)
        self.begin(self.steps)


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life()
    yield life
    life.post(Request.STOP)
    life.join()


@pytest.mark.parametrize(("state", "request_"), list(itertools.product(RESTING, Request)))
def test_each_request_in_each_state_does_what_the_table_says(life: Life, state: State, request_: Request) -> None:
    for step in WAY_TO[state]:
        life.do(step)
    assert life.state is state
    row = next((row for row in TABLE if (row.state, row.request) == (state, request_)), None)
    if row is None:
        with pytest.raises(LifecycleError, match=f"cannot {request_.value} a machine that is {state.value}"):
            life.do(request_)
        assert life.state is state
    else:
        life.seen.clear()
        life.do(request_)
        assert life.state is row.to
        assert set(life.seen) == ({row.via} if row.via is not None else set())


def test_the_table_has_one_row_for_a_state_and_request_and_no_dead_end() -> None:
    keys = [(row.state, row.request) for row in TABLE]
    assert len(keys) == len(set(keys))
    assert {row.to for row in TABLE} | {State.BUILT} == set(RESTING)
    assert all((state, Request.STOP) in keys for state in RESTING)


def test_resetting_a_running_machine_pauses_it_first_and_lets_it_go_on(life: Life) -> None:
    life.do(Request.START)
    life.do(Request.RESET)
    assert life.steps.done == ["start", "pause", "reset", "resume"]


def test_resetting_a_paused_machine_leaves_it_paused(life: Life) -> None:
    life.do(Request.START)
    life.do(Request.PAUSE)
    life.do(Request.RESET)
    assert life.steps.done == ["start", "pause", "reset"]
    assert life.state is State.PAUSED


def test_resets_that_several_harts_ask_for_at_once_are_one_reset(life: Life) -> None:
    life.do(Request.START)
    life.steps.during["pause"] = lambda: [life.post(Request.RESET) for _ in range(3)] and None
    life.do(Request.RESET)
    life.steps.during.clear()
    life.do(Request.PAUSE)
    assert life.steps.done.count("reset") == 1


def test_the_outcome_that_stopped_the_machine_first_stands(life: Life) -> None:
    life.do(Request.START)
    life.steps.during["stop"] = lambda: life.post(Request.STOP, Outcome(Reason.FAILED)) and None
    life.post(Request.STOP, Outcome(Reason.GUEST_EXIT, 3))
    assert life.wait(10) == Outcome(Reason.GUEST_EXIT, 3)
    life.do(Request.STOP, Outcome(Reason.POWER_OFF))
    assert life.outcome == Outcome(Reason.GUEST_EXIT, 3)


def test_waiting_ends_without_an_outcome_when_the_time_is_over(life: Life) -> None:
    life.do(Request.START)
    assert life.wait(0) is None


def test_a_transition_that_fails_stops_the_machine_and_raises_what_went_wrong(life: Life) -> None:
    def fail() -> None:
        raise ConfigError("--kernel Image: became shorter")

    life.do(Request.START)
    life.steps.during["reset"] = fail
    with pytest.raises(ConfigError, match="became shorter"):
        life.do(Request.RESET)
    assert life.wait(10) == Outcome(Reason.FAILED, report="--kernel Image: became shorter")
    assert life.steps.done[-1] == "stop"


def test_a_failure_of_ours_is_reported_with_its_stack(life: Life) -> None:
    life.steps.during["start"] = lambda: [][0]
    with pytest.raises(IndexError):
        life.do(Request.START)
    outcome = life.wait(10)
    assert outcome is not None
    assert "IndexError" in outcome.report
    assert outcome.reason is Reason.FAILED


def test_a_machine_whose_stop_fails_is_stopped_all_the_same(life: Life) -> None:
    life.do(Request.START)
    life.steps.during["stop"] = lambda: [][0]
    with pytest.raises(IndexError):
        life.do(Request.STOP)
    assert life.state is State.STOPPED


def test_what_is_posted_before_the_machine_is_built_is_carried_out_then() -> None:
    life, steps = Lifecycle(), Steps()
    life.post(Request.STOP, Outcome(Reason.FAILED))
    life.begin(steps)
    assert life.wait(10) == Outcome(Reason.FAILED)
    assert steps.done == ["stop"]


def test_posting_never_waits_not_even_from_inside_a_transition(life: Life) -> None:
    life.steps.during["start"] = lambda: life.post(Request.STOP, Outcome(Reason.POWER_OFF)) and None
    life.post(Request.START)
    assert life.wait(10) == Outcome(Reason.POWER_OFF)


def test_requests_of_many_threads_are_carried_out_one_at_a_time(life: Life) -> None:
    inside: list[str] = []
    overlaps: list[str] = []

    def alone(name: str) -> Callable[[], None]:
        def step() -> None:
            overlaps.extend(inside)
            inside.append(name)
            inside.remove(name)

        return step

    for name in ("pause", "resume", "reset"):
        life.steps.during[name] = alone(name)
    life.do(Request.START)

    def churn() -> None:
        for _ in range(30):
            life.do(Request.PAUSE)
            life.do(Request.RESUME)
            life.do(Request.RESET)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert life.state in (State.RUNNING, State.PAUSED)


def test_the_page_of_the_documentation_has_every_row_of_the_table() -> None:
    text = page()
    for row in TABLE:
        assert f"| {row.state.value} | {row.request.value} |" in text
        if row.via is not None:
            assert f"{row.state.value} --> {row.to.value}: {row.request.value}" in text
