"""QEMU's issue 2344: a plugin's lock was held around a request to stop all VCPUs, and a VCPU that was to stop wanted
the plugin's lock. Planted: that order. The gate is this monitor's own; there are no plugins here yet, so theirs is a
model.
"""

from __future__ import annotations

from typing import Any

from tests.museum.exhibit import Exhibit, Program, Stage, lock_report
from tests.museum.m07_lost_kick import Hart
from vmm.lockreport import Kind
from vmm.locks import Kit, Locking, Rank
from vmm.vcpu.thread import Gate

DEADLINE_S = 0.5


class Plugins:
    """Plugins that stop the world first, and take their own lock inside"""

    def __init__(self, locking: Locking, gate: Gate) -> None:
        self._gate = gate
        self._lock = locking.lock("plugins", rank=Rank.LEAF)
        self._loaded = 1

    def hook(self) -> None:
        """A VCPU tells the plugins of something."""
        with self._lock:
            assert self._loaded

    def uninstall(self) -> None:
        self._gate.close(DEADLINE_S)
        with self._gate.opening.serving(), self._lock:
            self._loaded = 0
            self._loaded = 1
        self._gate.open()


class StoppingPlugins(Plugins):
    """Plugins that stop the world with their own lock held"""

    def uninstall(self) -> None:
        with self._lock:
            self._gate.close(DEADLINE_S)
            with self._gate.opening.serving():
                self._loaded = 1
            self._gate.open()


class World:
    """A gate, a hart and the plugins."""

    def __init__(self, plugins: type[Plugins], locking: Locking, kit: Kit) -> None:
        self._gate = Gate(kit)
        hart: Any = Hart()
        self._hart = hart
        self._gate.add(hart)
        self.plugins = plugins(locking, self._gate)

    def run_hart(self) -> None:
        if self._gate.enter(self._hart):
            with self._gate.arrival.serving():
                self.plugins.hook()
            self._gate.leave()


def check(plugins: type[Plugins]) -> str | None:
    def run(locking: Locking) -> None:
        world = World(plugins, locking, locking.kit)
        world.run_hart()
        world.plugins.uninstall()

    return lock_report(Kind.CYCLE, run)


def program(plugins: type[Plugins]) -> Program:
    def threads(s: Stage) -> None:
        world = World(plugins, Locking(kit=s), s)
        s.spawn("vcpu0", world.run_hart)
        s.spawn("monitor", world.plugins.uninstall)

    return threads


EXHIBIT = Exhibit(
    "M17",
    "a plugin's lock was held around stopping all VCPUs, one of which wanted it (QEMU 2344)",
    "order graph with waits",
    StoppingPlugins,
    Plugins,
    check,
    program,
)
