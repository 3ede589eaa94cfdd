"""What `vmm-run` does with its settings: prepare the guest, run it, and say how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vmm.cli.files import WholeFile
from vmm.cli.lockreports import LockReports
from vmm.cli.lockstat import LockFigures
from vmm.cli.options import KEYS, WATCHDOG_S
from vmm.cli.parser import parse
from vmm.cli.signals import Signals
from vmm.cli.status import Status, of_outcome, of_signal
from vmm.errors import ConfigError, HostError, SnapshotError, VmmError
from vmm.guests import debian, demo
from vmm.host.terminal import Command
from vmm.host.transcript import ExpectError
from vmm.machine import virt
from vmm.machine.config import Config, Drive
from vmm.machine.lifecycle import Outcome, Reason, Request, State
from vmm.machine.machine import Machine
from vmm.vcpu.software import native_code

DEBIAN_MEM = 512 << 20
DEBIAN_HARTS = 2
DEMO_HARTS = 4

Settings = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns its exit status (`vmm.cli.status`)."""
    try:
        guest, settings = parse(sys.argv[1:] if arguments is None else arguments)
        return run(settings if guest is None else GUESTS[guest.name](settings))
    except (ConfigError, HostError, SnapshotError) as error:
        _say(str(error))
        return Status.BAD_INPUT
    except VmmError as error:
        _say(f"{type(error).__name__}: {error}")
        return Status.FAILED
    except KeyboardInterrupt:
        return of_signal(signal.SIGINT)


def run(settings: Settings) -> int:
    """Makes a machine, follows it to its end, and returns the exit status."""
    names = {field.name for field in fields(Config)}
    given = {key: value for key, value in settings.items() if key in names}
    config = Config(**{"serial": "stdio", "watchdog": WATCHDOG_S, **given, "lock_stat": "lock_stat" in settings})
    if file := settings.get("dump_dtb"):
        _dump(file, config)
        return Status.OK
    if settings.get("perf_map"):
        native_code().write_perf_map()
    with contextlib.ExitStack() as stack:
        reports = stack.enter_context(LockReports(settings.get("lock_report")))
        figures = stack.enter_context(LockFigures(settings["lock_stat"])) if config.lock_stat else None
        keys = _Keys(reports)
        asked = {signal.SIGQUIT: keys.report, signal.SIGTSTP: keys.suspend, signal.SIGCONT: keys.go_on}
        if figures:
            asked[signal.SIGUSR1] = figures.show
        signals = stack.enter_context(Signals(keys.stop, keys.restore, asked))
        machine = stack.enter_context(Machine(config, commands=keys.commands(), raise_reports=False))
        keys.machine = reports.machine = machine
        if figures:
            figures.machine = machine
        if signals.received is None:
            machine.start()
        if config.jit != "off" and machine.jit.problem:
            _say(f"--{machine.jit}")
        seen, in_time = _follow(machine, settings.get("expect"), settings.get("timeout"))
        machine.stop()
    if settings.get("jit_stats"):
        _say(str(machine.jit))
    if problem := machine.serial.problem:
        _say(f"--serial: {problem}")
    if machine.timeline and (problem := machine.timeline.problem):
        _say(f"--trace {config.trace}: {problem}")
    outcome = machine.outcome or Outcome(Reason.ASKED)
    status = _conclude(outcome, signals.received, seen=seen, in_time=in_time, settings=settings)
    return Status.LOCK_REPORTS if status == Status.OK and reports.found else status


def _follow(machine: Machine, expect: re.Pattern[bytes] | None, timeout: float | None) -> tuple[bool, bool]:
    """Waits for the run to end; returns (the expected text came, the time was enough)."""
    deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
    if expect is not None:
        try:
            machine.serial.expect(expect, deadline - time.monotonic())
            return True, True
        except ExpectError:
            if machine.state is State.STOPPING:  # its console is closed already, its outcome not yet known
                machine.wait()
    return False, machine.wait(max(0.0, deadline - time.monotonic())) is not None


def _conclude(
    outcome: Outcome, received: signal.Signals | None, *, seen: bool, in_time: bool, settings: Settings
) -> int:
    """Says how the run ended, where that is not plain, and picks the exit status."""
    if outcome.report:
        print(outcome.report.rstrip(), file=sys.stderr)
    if outcome.reason is Reason.FAILED:
        _say(f"{outcome.reason.value}: see above")
        return of_outcome(outcome)
    if outcome.reason is Reason.CONSOLE_GONE:  # it said so itself when it was closed
        return of_outcome(outcome)
    if seen:
        return Status.OK
    if received is not None:
        _say(f"stopped by {received.name}")
        return of_signal(received)
    if not in_time:
        _say(f"--timeout: {settings['timeout']:g} s are over")
        return Status.TIMEOUT
    if outcome.code:
        _say(f"the guest ended with code {outcome.code}")
    if "expect" in settings:
        _say(f"--expect: the run ended without {settings['expect'].pattern.decode()!r}")
        return Status.NOT_EXPECTED
    return of_outcome(outcome)


class _Keys:
    """What the escape key and the signals do to the machine, once there is one. All of it only posts."""

    def __init__(self, reports: LockReports) -> None:
        self.machine: Machine | None = None
        self._reports = reports

    def commands(self) -> dict[str, Command]:
        do: dict[str, Callable[[], None]] = {
            "x": lambda: self._post(Request.STOP),
            "p": self._pause_or_resume,
            "r": lambda: self._post(Request.RESET),
            "s": self._show,
        }
        meanings = {keys.removeprefix("C-a "): meaning for keys, meaning in KEYS}
        return {key: Command(meanings[key], action) for key, action in do.items()}

    def stop(self, number: signal.Signals) -> None:
        self._post(Request.STOP)

    def restore(self) -> None:
        if self.machine is not None:
            self.machine.abandon()
            self._reports.tell()  # a machine that hangs may do so for what they say

    def suspend(self) -> None:
        if self.machine is not None:
            self.machine.suspend_terminal()
        os.kill(os.getpid(), signal.SIGSTOP)

    def go_on(self) -> None:
        if self.machine is not None:
            self.machine.resume_terminal()

    def report(self) -> None:
        if self.machine is not None:
            self.machine.write_hang_report("asked for by SIGQUIT")

    def _post(self, request: Request) -> None:
        if self.machine is not None:
            self.machine.post(request)

    def _pause_or_resume(self) -> None:
        paused = self.machine is not None and self.machine.state is State.PAUSED
        self._post(Request.RESUME if paused else Request.PAUSE)

    def _show(self) -> None:
        if self.machine is not None:
            figures = self.machine.statistics()
            locks = figures.pop("locks")
            lines = [f"{name}: {what}" for name, what in figures.items()]
            lines += [str(lock) for lock in locks if lock.contended]
            print("\n".join(["", *lines]), file=sys.stderr)


# -- guests that need no files ---------------------------------------------------------------------------------------


def _debian(settings: Settings) -> Settings:
    made = debian.prepare(cache_dir=settings.get("cache_dir"), refresh=settings.get("refresh", False))
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if script := settings.get("run"):
        append = made.run_append(script)
    elif settings.get("report") or not at_terminal:
        append = made.report_append
    else:
        append = made.default_append
    return {
        "smp": DEBIAN_HARTS,
        "mem": DEBIAN_MEM,
        "drive": (Drive(made.scratch_disk(), snapshot=True, id="scratch"),),
        **settings,
        "kernel": made.kernel,
        "initrd": made.initrd,
        "append": f"{append} {settings.get('append', '')}".rstrip(),
    }


def _demo(settings: Settings) -> Settings:
    return {"smp": DEMO_HARTS, **settings, "bios": demo.PROGRAM}


GUESTS: dict[str, Callable[[Settings], Settings]] = {"debian": _debian, "demo": _demo}


# -- output ----------------------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    print(f"vmm-run: {' '.join(message.split())}", file=sys.stderr, flush=True)


def _dump(file: Path, config: Config) -> None:
    config.check()
    if config.kernel or config.bios:
        boot = virt.plan(config)
        boot.close()
        blob = boot.device_tree
    else:
        blob = virt.tree(config, None)
    with WholeFile("--dump-dtb", file) as whole:
        whole.write(blob)
