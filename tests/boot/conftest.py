"""Guests to boot. Debian's is fetched once and kept in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmm.errors import ConfigError, HostError
from vmm.guests import debian
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Config
from vmm.machine.machine import Machine

REPORTS = Path(__file__).parents[2] / "build" / "boot-failures"
MEM = 512 << 20

Boot = Callable[..., Machine]


@pytest.fixture(scope="session")
def debian_guest() -> DebianGuest:
    """Skips where it cannot be had, except in CI."""
    try:
        return debian.prepare()
    except (ConfigError, HostError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture
def boot(request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Starts machines, and stops them after the test. Of a test that fails, what they printed is kept in build/."""
    machines: list[Machine] = []

    def start(config: Config) -> Machine:
        machines.append(Machine(config))
        machines[-1].start()
        return machines[-1]

    failed_before = request.session.testsfailed
    yield start
    for machine in machines:
        figures = machine.statistics()
        machine.stop()
        if request.session.testsfailed > failed_before:
            keep_report(request.node.name, machine, figures)


def keep_report(name: str, machine: Machine, figures: dict[str, object]) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{name.translate(str.maketrans('/[] ', '____'))}.txt"
    parts = [f"{machine!r}", f"{machine.outcome}", *(f"{key}: {value}" for key, value in figures.items())]
    path.write_text("\n".join([*parts, "-- console --", machine.serial.text]))
