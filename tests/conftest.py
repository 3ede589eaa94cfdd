"""Options of the test suite, and machines for tests of whole guests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lock_order import Recorder
from tests.machines import Machines

lock_order = Recorder()

GRACE_S = 300
"""For the start and the end of a stress test, on a host with much else to do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boots", type=int, default=20, help="how many times in a row the stress test boots Linux")
    parser.addoption("--stress-seconds", type=float, default=20, help="how long each stress test of machines goes on")
    parser.addoption("--seed", type=int, default=1, help="seed of the random tests of whole guests")
    parser.addoption("--schedules", type=int, default=500, help="how many schedules of each program to try in stress")


@pytest.fixture(scope="session")
def schedules(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--schedules"))


def pytest_sessionstart() -> None:
    lock_order.install()


def pytest_sessionfinish() -> None:
    lock_order.write()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """A test that sees an order of locks that docs/lock-order.md lacks has an error."""
    result = yield
    lock_order.check()
    return result


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--seed"))


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long a stress test goes on."""
    return float(request.config.getoption("--stress-seconds"))


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that are shown when the test is over, however it ends."""
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n  ")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-timeout ends a stress test that hangs, with the stacks of all threads."""
    for item in items:
        if "seconds" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(config.getoption("--stress-seconds") + GRACE_S))


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """Starts machines, and stops them after the test."""
    machines = Machines(request.node.nodeid)
    yield machines
    machines.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test that fails says where its machines are described. They are still there: this runs before they stop."""
    error = call.excinfo.value if call.excinfo else None
    if call.when in ("setup", "call") and error is not None and not isinstance(error, pytest.skip.Exception):
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Machines):
                error.add_note(f"The machines of this test are described in {value.keep()}")
    return (yield)
