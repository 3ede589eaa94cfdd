"""A machine on fake harts."""

from __future__ import annotations

import gc
import os
import threading

from tests.machine.fake_harts import FakeHarts
from vmm.machine.config import Config
from vmm.machine.harts import Surroundings
from vmm.machine.machine import Machine


class Bench:
    def __init__(self, config: Config) -> None:
        self.made: list[FakeHarts] = []
        self.machine = Machine(config, make_harts=self._make)
        self.harts = self.made[0]

    def _make(self, around: Surroundings) -> FakeHarts:
        self.made.append(FakeHarts(around))
        return self.made[-1]

    def ecall(self, extension: int, function: int, *args: int) -> object:
        return self.harts.around.call(0, [*args, *[0] * (6 - len(args)), function, extension])


def held() -> tuple[int, set[str]]:
    """How many files are open and which threads run, garbage left aside."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()}


def changed(config: Config, **changes: object) -> Config:
    return Config(**{**vars(config), **changes})  # type: ignore[arg-type]
