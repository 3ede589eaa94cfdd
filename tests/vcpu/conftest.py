"""Benches for tests: one hart in M-mode, two harts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vcpu.bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as b:
        yield b


@pytest.fixture
def pair() -> Iterator[Bench]:
    with Bench(2) as b:
        yield b
