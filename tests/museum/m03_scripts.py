"""QEMU's issue 1563 and CVE-2023-0330: a SCSI SCRIPT that writes the controller's own start register began a second
interpreter inside the first, until the stack was gone. Planted: an engine that runs from inside the register's write.
The correct model only notes where to go on, and its one run has a budget of instructions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.museum.exhibit import Exhibit
from vmm.errors import VmmError
from vmm.locks import Device, Locking, entry
from vmm.state import DeviceState
from vmm.testing.fakes import FakeIoThread

WORDS = 16  # of script memory; each word is (operation, operand)
DSP = WORDS  # the address of the start register, just behind script memory
MOVE, JUMP, STOP = range(3)
BUDGET = 64
SEEDS = 50


@dataclass(slots=True)
class ScriptsState(DeviceState):
    pc: int = 0
    running: bool = False
    executed: int = 0
    """Instructions since the start register was last written by the guest."""


class Scripts(Device):
    """A SCRIPTS engine that is a state, goes on from its home thread, and stops after its budget of instructions"""

    State = ScriptsState

    def __init__(self, name: str, locking: Locking, home: FakeIoThread) -> None:
        super().__init__(name, locking)
        # -- wiring
        self._home = home
        # -- volatile state
        self._script = [(STOP, 0)] * WORDS
        self._state = self.State()

    @entry
    def load(self, script: list[tuple[int, int]]) -> None:
        self._script = script

    @entry(posts=True)
    def start(self, address: int) -> None:
        """The guest writes the start register."""
        self._state.executed = 0
        self._write(DSP, address)

    @entry(posts=True)
    def go_on(self) -> None:
        """The home thread's door."""
        s = self._state
        while s.running and s.executed < BUDGET:
            self._step()
        s.running = False

    @entry
    def executed(self) -> int:
        return self._state.executed

    def _step(self) -> None:
        s = self._state
        operation, operand = self._script[s.pc]
        s.pc = (s.pc + 1) % WORDS
        s.executed += 1
        if operation == MOVE:
            self._write(operand, s.pc)
        elif operation == JUMP:
            s.pc = operand % WORDS
        else:
            s.running = False

    def _write(self, address: int, value: int) -> None:
        """A store by the guest or by a script; to the start register, it starts the engine unless it runs already."""
        s = self._state
        if address == DSP:
            s.pc = value % WORDS
            if not s.running:
                s.running = True
                self._post(self._home.call_soon, self.go_on)


class RecursiveScripts(Scripts):
    """A SCRIPTS engine that a store to its start register runs from inside that store"""

    def _write(self, address: int, value: int) -> None:
        s = self._state
        if address == DSP:
            s.pc = value % WORDS
            s.running = True
            for _ in range(BUDGET):
                if not s.running:
                    break
                self._step()
            s.running = False


def script(seed: int) -> list[tuple[int, int]]:
    dice = random.Random(seed)
    return [(dice.choice((MOVE, MOVE, JUMP, STOP)), dice.randrange(WORDS + 1)) for _ in range(WORDS)]


def check(scripts: Callable[..., Scripts]) -> str | None:
    """Fuzz: random scripts; each must end, within the budget, and with nothing worse than the monitor's own errors."""
    for seed in range(SEEDS):
        home = FakeIoThread()
        device = Locking().make(scripts, "scsi", home)
        device.load(script(seed))
        try:
            device.start(0)
            home.run()
        except VmmError:
            continue
        except RecursionError:
            return f"script {seed}: the stack was gone after {device.executed()} instructions"
        if device.executed() > BUDGET:
            return f"script {seed}: {device.executed()} instructions, of a budget of {BUDGET}"
    return None


EXHIBIT = Exhibit(
    "M3",
    "a SCRIPT that restarts its own engine recursed until the stack was gone (QEMU, lsi53c895a)",
    "fuzz with an instruction budget",
    RecursiveScripts,
    Scripts,
    check,
)
