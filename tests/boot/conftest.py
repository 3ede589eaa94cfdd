"""Debian's guest, fetched once and kept in the user's cache."""

from __future__ import annotations

import os

import pytest

from vmm.errors import ConfigError, HostError
from vmm.guests import debian
from vmm.guests.debian import DebianGuest


@pytest.fixture(scope="session")
def guest() -> DebianGuest:
    """Skips where it cannot be had, except in CI."""
    try:
        return debian.prepare()
    except (ConfigError, HostError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "boot_number" in metafunc.fixturenames:
        metafunc.parametrize("boot_number", range(metafunc.config.getoption("--boots")))
