"""A machine as an object: made from a `Config`, started, paused, reset, stopped, and talked to.

    with Machine(Config(kernel=Path("Image"), initrd=Path("initrd"), append="console=ttyS0", smp=2)) as machine:
        machine.start()
        machine.serial.expect("login: ")
        machine.serial.send("root\\n")
        outcome = machine.wait(timeout=30)

The thread that uses it never runs guest code: harts, I/O and the lifecycle have threads of their own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vmm.errors import ConfigError, HostError, InternalError
from vmm.host.chardev import Chardev
from vmm.host.terminal import Command
from vmm.host.transcript import Transcript
from vmm.locks import PLAIN, Kit, Locking
from vmm.machine.config import Config, Console, Pluggable
from vmm.machine.hangs import MachineView
from vmm.machine.harts import Make
from vmm.machine.lifecycle import Lifecycle, Outcome, Reason, Request, State
from vmm.machine.slots import DEADLINE_S
from vmm.machine.software import SoftwareHarts
from vmm.machine.virt import Board
from vmm.vcpu.software import JitStatistics
from vmm.watchdog import Watchdog

if TYPE_CHECKING:
    from vmm.timeline import Timeline


class Serial:
    """The other end of the serial port, in a program's hand: beside a terminal or file, or all alone."""

    def __init__(self, chardev: Chardev, transcript: Transcript) -> None:
        self._chardev = chardev
        self._transcript = transcript

    def __repr__(self) -> str:
        return f"<Serial on {self._chardev!r}>"

    @property
    def text(self) -> str:
        """What the guest has printed, its last 4 MiB; bytes that are not UTF-8 are replaced."""
        return self._transcript.text

    @property
    def problem(self) -> str:
        """What became of output that did not reach a file, pipe or terminal; empty if all of it did."""
        now = self._chardev.statistics()
        return f"{now.problem}; {now.lost} bytes were lost" if now.lost else ""

    def send(self, data: str | bytes) -> None:
        """Types `data`; returns at once, and the guest takes it when it has room."""
        self._chardev.send(data.encode() if isinstance(data, str) else data)

    def expect(self, pattern: str | bytes | re.Pattern[bytes], timeout: float = 60.0) -> re.Match[bytes]:
        """Waits until output behind the last match matches a regular expression; returns the match.

        Raises ExpectError, with the end of the output, after `timeout` seconds or when the machine has stopped.
        """
        return self._transcript.expect(pattern, timeout)


class Machine:
    """A machine of the board `virt`.

    Making it opens, checks and loads everything; raises ConfigError or HostError, and leaves nothing behind. Leaving
    the `with` block stops it. Methods may be called from any thread but those of harts and I/O.
    """

    def __init__(
        self,
        config: Config,
        *,
        commands: Mapping[str, Command] | None = None,
        make_harts: Make = SoftwareHarts,
        raise_reports: bool = True,
    ) -> None:
        """`commands` are keys of the terminal, if the serial port is one. What checked locks report is raised in the
        thread at fault, which mostly ends the run; or, without `raise_reports`, only kept, where that thread can go on.
        """
        self.config = config
        config.check()  # before a file is touched
        self.timeline = self._new_timeline()
        """What each thread did, if the configuration asks for it."""
        self.locking = Locking(config.locking, checked=config.check_locks, kit=self._kit(), raising=raise_reports)
        self._lifecycle = Lifecycle(self.locking.kit)
        with contextlib.ExitStack() as stack:
            if self.timeline:
                stack.callback(self.timeline.close)
            self._board = Board(
                config,
                locking=self.locking,
                make_harts=make_harts,
                ended=self._ended,
                restart=self._restarted,
                commands=commands or {},
            )
            if self.timeline:
                self.timeline.begin()
            stack.pop_all()
        self.serial = Serial(self._board.serial, self._board.transcript)
        view = MachineView(self.locking, self._lifecycle, self._board)
        self._watchdog = Watchdog(view, config.watchdog, self._board.report_hang, kit=self.locking.kit)
        self._lifecycle.begin(self._board, self._watchdog.report)
        if config.watchdog:
            self._watchdog.start()

    # imports are in these two, since a plain run has no use for what they make

    def _new_timeline(self) -> Timeline | None:
        if self.config.trace is None:
            return None
        from vmm.timeline import Timeline

        return Timeline(str(self.config.trace))

    def _kit(self) -> Kit:
        if not (self.config.lock_stat or self.timeline):
            return PLAIN
        from vmm.lockstat import Meter

        return Meter(timeline=self.timeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Machine {self.config.smp} harts, {self.config.mem >> 20} MiB: {self.state.value}>"

    @property
    def state(self) -> State:
        return self._lifecycle.state

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended; None until it has."""
        return self._lifecycle.outcome

    def start(self) -> None:
        self._lifecycle.do(Request.START)

    def pause(self) -> None:
        """Every hart is at a safepoint, guest time stands still and no device touches memory when this returns."""
        self._lifecycle.do(Request.PAUSE)

    def resume(self) -> None:
        self._lifecycle.do(Request.RESUME)

    def reset(self) -> None:
        """As the reset button: what the guest knows is lost, disks keep what was written."""
        self._lifecycle.do(Request.RESET)

    def stop(self, outcome: Outcome | None = None) -> None:
        """Ends the run, if it has not ended yet, and waits until everything is given back."""
        self._lifecycle.do(Request.STOP, outcome)
        self._lifecycle.join()
        self._watchdog.stop()
        if self.timeline:
            self.timeline.close()

    def hang_report(self, why: str) -> str:
        """Who waits for whom, harts, interrupts, I/O and all stacks, now. Any thread; it stops nobody."""
        return self._watchdog.report(why)

    def write_hang_report(self, why: str) -> None:
        """The same to where the configuration wants reports."""
        self._watchdog.write_report(why)

    def plug(self, what: Pluggable, slot: int | None = None) -> int:
        """Puts a device into a virtio slot, the first empty one unless told; returns the slot. Also while the guest
        runs: nothing waits for it, and no lock is held around more than the change of the bus map.

        Linux is not told (virtio-mmio has no such interrupt): bind the slot's driver by hand, for slot 5
        `echo 10006000.virtio_mmio > /sys/bus/platform/drivers/virtio-mmio/bind`.

        Raises ConfigError or HostError, as making the machine does, and LifecycleError for a slot that is not empty or
        a machine that has stopped. Then nothing stays open, and the machine goes on.
        """
        slots = self._board.slots
        if what == Console("stdio"):
            raise ConfigError("plug: stdio cannot come and go: give the console pty, file:PATH or pipe:PATH")
        try:
            plugged = slots.open(what, slot)
            try:
                self._lifecycle.change(Request.PLUG, partial(self._board.plug, plugged))
            finally:
                slots.abandon(plugged)  # unless it was published
        except (ConfigError, HostError) as error:
            raise type(error)(f"plug: {error}") from error
        return plugged.slot

    def unplug(self, slot: int, timeout: float = DEADLINE_S) -> None:
        """Takes the device in a slot away; returns when its thread has ended and its files are closed.

        The guest's next access finds an empty slot; an access that has begun ends as it would have. Work under way is
        not handed back, so have the guest unbind its driver first (`unplug` does not ask it to).

        Raises LifecycleError for a slot that holds none or a machine that has stopped, ConfigError for one that does
        not exist, HostError when something of the device is still in use after `timeout` seconds: it is unplugged all
        the same, and given back as soon as that ends.
        """
        unplugged = self._lifecycle.change(Request.UNPLUG, partial(self._board.unplug, slot))
        self._board.slots.wait(unplugged, timeout)

    def slots(self) -> tuple[str, ...]:
        """The names of the devices in the virtio slots; empty where there is none."""
        return self._board.slots.names()

    def post(self, request: Request, outcome: Outcome | None = None) -> None:
        """Asks for a transition without waiting for it, from any thread."""
        self._lifecycle.post(request, outcome)

    def abandon(self) -> None:
        """For a process that ends although its machine does not stop: gives the terminal back, and nothing else."""
        self._board.restore_terminal()

    def suspend_terminal(self) -> None:
        """For a process that is about to be stopped (SIGTSTP): gives the terminal back until `resume_terminal`."""
        self._board.suspend_terminal()

    def resume_terminal(self) -> None:
        """The process goes on (SIGCONT): its terminal is raw again if it was, whoever has changed it meanwhile."""
        self._board.resume_terminal()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """How the run ended, or None when it has not after `timeout` seconds."""
        return self._lifecycle.wait(timeout)

    @property
    def jit(self) -> JitStatistics:
        """What was translated so far, or why nothing is."""
        return self._board.harts.jit_statistics()

    def statistics(self) -> dict[str, Any]:
        return {"lifecycle": self._lifecycle.statistics(), **self._board.statistics()}

    def lock_statistics(self) -> dict[str, Any]:
        """What `Config.lock_stat` measured so far (`vmm.lockstat.Meter.report`)."""
        if self.locking.kit.meter is None:
            raise InternalError("this machine's locks are not measured: make it with lock_stat=True")
        return self.locking.kit.meter.report()

    # -- doors for the board: any thread, nothing waits ---------------------------------------------------------------

    def _ended(self, outcome: Outcome) -> None:
        self._lifecycle.post(Request.STOP, outcome)

    def _restarted(self) -> None:
        if self.config.no_reboot:
            self._lifecycle.post(Request.STOP, Outcome(Reason.GUEST_RESET))
        else:
            self._lifecycle.post(Request.RESET)
