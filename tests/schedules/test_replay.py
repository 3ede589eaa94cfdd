"""The same seed gives the same schedule, everywhere; a failure can be had again, and is made simple first."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.schedules import examples
from vmm.errors import ConfigError
from vmm.testing.schedule import Scheduler, Trace, explore, replay
from vmm.testing.schedule.__main__ import main
from vmm.testing.schedule.crew import Crew
from vmm.testing.schedule.explore import made_strategy
from vmm.testing.schedule.trace import steps_text, version

TWO_ORDERS = "tests.schedules.examples:two_orders"

# sha256 of the steps of seeds 0 to 19, one after the other: what CPython 3.11 and free-threaded 3.13 both came to
STEPS = {
    (examples.unlocked_count, "random"): "2f705621b559bb23aa512d07ac30065ea75e360d31da69146514da0d5bea48de",
    (examples.unlocked_count, "pct"): "575a8deefe74ec6085cab4f0ea361da0898cb4ebae6be6ad5064d70859890568",
    (examples.handshake, "random"): "e21373a2f15e3df04f1b6c42921a74b97ef5d3f7ac9fecadd9a8133bc0fc8e8f",
    (examples.handshake, "pct"): "e22f477ea9664d89747afa6facbcda2fe0c8d3e7c5443ad7a80e71710e056e54",
    (examples.spin_and_answer, "random"): "a0f5167877df288b27f42264021da92db57abae5e685f9511e81cdec261fa68c",
    (examples.spin_and_answer, "pct"): "6a1ba29f4e5b339ef1ee293d927c0bd729a8dab7148b389aa313adc3ebba3d5b",
}


def steps(program: Callable[[Scheduler], object], strategy: str) -> str:
    crew = Crew()
    texts = []
    try:
        for seed in range(20):
            scheduler = Scheduler(made_strategy(strategy, 3, seed, 40), crew)
            scheduler.run(program)
            texts.append(steps_text(scheduler))
    finally:
        crew.close()
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("program", "strategy"), STEPS, ids=[f"{program.__name__} {strategy}" for program, strategy in STEPS]
)
def test_a_seed_takes_the_same_steps_on_every_python(program: Callable[[Scheduler], object], strategy: str) -> None:
    assert hashlib.sha256(steps(program, strategy).encode()).hexdigest() == STEPS[program, strategy]


def test_a_trace_reads_as_who_did_what() -> None:
    assert steps(examples.two_orders, "random").startswith(
        "0 begin\n0 take disk\n0 take net\n0 go on\n0 go on\n1 begin\n1 take net\n1 take disk\n1 go on\n1 go on\n"
    )


def test_another_seed_is_another_search() -> None:
    found = {explore(examples.unlocked_count, strategy="random", seed=seed).schedules for seed in range(1, 20)}
    assert len(found) > 1


def test_a_failure_is_found_again_by_its_seed() -> None:
    first = explore(examples.unlocked_count, strategy="pct", shrink=False).failure
    assert first
    again = explore(examples.unlocked_count, strategy="pct", seed=first.seed, schedules=2, shrink=False).failure
    assert again
    assert again.trace == first.trace


def test_a_failure_is_replayed_from_its_trace(tmp_path: Path) -> None:
    failure = explore(examples.two_orders, strategy="random").failure
    assert failure
    failure.trace.write(tmp_path / "trace")
    again = replay(examples.two_orders, Trace.read(tmp_path / "trace")).failure
    assert again
    assert again.trace.digest == failure.trace.digest
    assert again.report == failure.report


def test_the_simplest_schedule_has_one_switch() -> None:
    """Under random scheduling this deadlock comes with many; all it takes is one, between a thread's two locks."""

    def program(s: Scheduler) -> None:
        examples.two_orders(s)
        for index in range(2):
            s.spawn(f"other{index}", lambda: [s.point("x") for _ in range(10)])

    failures = [explore(program, strategy="random", seed=seed).failure for seed in range(1, 6)]
    assert all(failure and len(failure.found.switches) > 5 for failure in failures)
    assert max(len(failure.trace.switches) for failure in failures if failure) <= 2


def test_threads_and_affinity_are_given_back() -> None:
    before, threads = os.sched_getaffinity(0), threading.active_count()
    explore(examples.two_orders)
    explore(examples.predicate, schedules=5)
    assert os.sched_getaffinity(0) == before
    assert threading.active_count() == threads


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_that_a_failure_names_shows_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    failure = explore(examples.two_orders).failure
    assert failure
    arguments = failure.replay.split()[3:]
    assert main(arguments) == 1
    assert "deadlock: vcpu0 -> vcpu1 -> vcpu0" in capsys.readouterr().out


def test_exploring_writes_the_trace_of_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace"
    assert main(["explore", TWO_ORDERS, "--trace", str(trace)]) == 1
    assert json.loads(trace.read_text())["kind"] == "deadlock"
    assert main(["replay", TWO_ORDERS, "--trace", str(trace)]) == 1
    assert list(tmp_path.iterdir()) == [trace]


def test_exploring_what_holds_ends_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "tests.schedules.examples:one_order", "--strategy", "exhaustive"]) == 0
    assert "all there are" in capsys.readouterr().out


def wrong_version(path: Path) -> list[str]:
    failure = explore(examples.two_orders).failure
    assert failure
    path.write_text(json.dumps({**json.loads(written(failure.trace, path)), "version": "0123456789ab"}))
    return ["replay", TWO_ORDERS, "--trace", str(path)]


def wrong_program(path: Path) -> list[str]:
    failure = explore(examples.two_orders).failure
    assert failure
    failure.trace.write(path)
    return ["replay", "tests.schedules.examples:one_order", "--trace", str(path)]


def no_trace(path: Path) -> list[str]:
    path.write_text("one two three")
    return ["replay", TWO_ORDERS, "--trace", str(path)]


def written(trace: Trace, path: Path) -> str:
    trace.write(path)
    return path.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (lambda path: ["explore", TWO_ORDERS, "--strategy", "luck"], "strategy 'luck' is none of random, pct"),
        (lambda path: ["explore", TWO_ORDERS, "--depth", "9"], "a depth of 9 is none of 1, 2, 3"),
        (lambda path: ["explore", TWO_ORDERS, "--seed", "-1"], "seed -1 is none"),
        (lambda path: ["explore", TWO_ORDERS, "--version", "abc"], "--version abc"),
        (lambda path: ["explore", TWO_ORDERS, "--trace", str(path / "no" / "file")], "give a file that can be written"),
        (lambda path: ["explore", TWO_ORDERS, "--trace", str(path.parent)], "give a file that can be written"),
        (lambda path: ["explore", "tests.schedules.examples:none"], "no such program"),
        (lambda path: ["explore", "no.module:none"], "no such program"),
        (lambda path: ["replay", TWO_ORDERS, "--switches", "abc:0.1.1"], "the trace is of version abc"),
        (lambda path: ["replay", TWO_ORDERS, "--switches", "abc:x"], "not of the form"),
        (lambda path: ["replay", TWO_ORDERS, "--trace", str(path / "none")], "--trace"),
        (wrong_version, "the trace is of version 0123456789ab"),
        (wrong_program, "the trace is of tests.schedules.examples:two_orders, not of"),
        (no_trace, "not a trace of a schedule"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: Callable[[Path], list[str]], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "trace")) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_full_disk_leaves_no_half_of_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    failure = explore(examples.two_orders).failure
    assert failure
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Exception, match="No space left on device: give a file"):
        failure.trace.write(tmp_path / "trace")
    assert not list(tmp_path.iterdir())


def test_the_version_is_that_of_the_programs_file_and_of_the_package() -> None:
    assert version(examples.two_orders) == version(examples.one_order)
    assert version(examples.two_orders) != version(test_another_seed_is_another_search)


def test_a_trace_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 1"):
        Trace.read(path)
