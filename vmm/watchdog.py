"""A thread that notices when others make no progress, and says who waits for whom.

It looks at stays: a thread in the queue of a lock, in one exit of a VCPU, in one callback of the I/O thread, in one
transition of the lifecycle. A stay that was there at every look for the threshold's length is a hang. A look that comes
late adds nothing to that length: a process that was stopped (SIGSTOP), or a host that slept, has not hung. Threads that
rest, a hart in the guest or in WFI, an I/O thread in epoll, anybody at a closed gate, are no stays: nobody tells of
them.

It reports and does nothing else. A lock that somebody would carry on without is worth no more than none.

What it looks at is there anyway, or is noted where threads wait: nothing is added to a path that does not.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from vmm import stacks
from vmm.errors import ConfigError
from vmm.fabric.threads import name_os_thread
from vmm.locks import PLAIN, Kit, thread_name
from vmm.waitfor import SECOND, Hold, Sighting, Tells, describe, seconds

K = TypeVar("K", bound=Hashable)

LOOKS: Final = 4
"""Looks in the length of a threshold."""

Section = tuple[str, Sequence[str]]
"""Title and lines of a part of the report."""


class Watched(Protocol):
    """What a watchdog looks at."""

    @property
    def parts(self) -> Iterable[Tells]:
        """Who knows of threads."""

    def sections(self) -> Iterable[Section]:
        """What else a report should say."""


class Reports:
    """Where reports go: the end of a file, which is emptied first, or standard error where `name` is empty.

    Raises ConfigError, naming `option`, for a file that cannot be written. It is open only while a report is written: a
    machine that hangs while it stops has closed what it had.
    """

    def __init__(self, option: str, name: str) -> None:
        self._option = option
        self._name = name
        if name:
            try:
                open(name, "w").close()
            except OSError as error:
                raise ConfigError(f"{option} {name}: {error.strerror}: give a file that can be written") from None

    def __call__(self, report: str) -> None:
        if self._name:
            try:
                with open(self._name, "a", encoding="utf-8", errors="replace") as file:
                    file.write(report)
                return
            except OSError as error:
                report = f"vmm: {self._option} {self._name}: {error.strerror}\n{report}"
        print(report, end="", file=sys.stderr, flush=True)


class Watchdog:
    """`threshold` is in seconds. `write` is given each report, whole, on the watchdog's thread."""

    def __init__(
        self,
        watched: Watched,
        threshold: float,
        write: Callable[[str], None],
        *,
        kit: Kit = PLAIN,
        now: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._watched = watched
        self._threshold = round(threshold * SECOND)
        self._period = self._threshold // LOOKS
        self._write = write
        self._now = now
        # Guards `_ending`, and signals it.
        self._changed = kit.condition("watchdog")
        self._ending = False
        self._thread = kit.thread(self._main, "watchdog")
        # Of the watchdog's thread only, but for `_held`, which is replaced whole.
        self._last = now()
        self._stays: dict[Hashable, int] = {}  # ns that each stay has been seen for
        self._held: dict[Hold, int] = {}
        self._told: dict[Hashable, str] = {}  # the hung stays that a report has named, and as what
        self._quiet_until = 0
        self._pause = self._threshold

    def __repr__(self) -> str:
        return f"<Watchdog {seconds(self._threshold)}: {len(self._told)} hang>"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; it may be stopped more than once, and need not have been started."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread.ident != threading.get_ident():
            self._thread.join()

    def _main(self) -> None:
        name_os_thread("watchdog")
        self._last = self._now()
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._ending, self._period / SECOND):
                    return
            self.look()

    def look(self) -> None:
        """Look at everything once, and write what there is to write."""
        now = self._now()
        passed = now - self._last
        if passed > 2 * self._period:  # the process was stopped, or the host slept: nobody can have made progress
            passed = 0
        self._last = now
        sighting = Sighting(self._watched.parts)
        self._stays = _aged(self._stays, (stay.key for stay in sighting.stays), passed)
        self._held = _aged(self._held, sighting.holds, passed)
        hung = {
            stay.key: f"{thread_name(stay.thread)} is {stay.what}"
            for stay in sighting.stays
            if self._stays[stay.key] >= self._threshold
        }
        over = [what for key, what in self._told.items() if key not in hung]
        if over:
            self._write("".join(f"vmm: hang over: no longer so: {what}\n" for what in over))
        self._told = {key: what for key, what in self._told.items() if key in hung}
        if not self._told:
            self._pause = self._threshold
        if hung.keys() - self._told.keys() and (not self._told or now >= self._quiet_until):
            # A deadlock gathers victims: each would be worth a report of its own, were these not ever rarer.
            self._quiet_until, self._pause = now + self._pause, 2 * self._pause
            self._told = hung
            lines = [f"{what}, at every look for {seconds(self._stays[key])}" for key, what in hung.items()]
            self._write(self._report("vmm: HANG: no progress", lines, sighting))

    def report(self, why: str) -> str:
        """The same report at any time, from any thread."""
        return self._report(f"vmm: state of all threads: {why}", [], Sighting(self._watched.parts))

    def write_report(self, why: str) -> None:
        """Write it where the others go."""
        self._write(self.report(why))

    def _report(self, title: str, lines: Sequence[str], sighting: Sighting) -> str:
        frames, now = stacks.stacks(), self._now()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        held = self._held
        waits = describe(
            sighting,
            now=now,
            name=lambda ident: names.get(ident) or thread_name(ident),
            held=lambda hold: (
                f" for {seconds(now - hold.since)}"
                if hold.since
                else f", at every look for {seconds(held[hold])}"
                if held.get(hold)
                else ""
            ),
            where=lambda ident: stacks.places(frames.get(ident, ())),
        )
        text = [title, *_indented(lines)]
        if self._thread.ident is not None:
            text.append(f"  it looks every {seconds(self._period)}; times are exact where nothing else is said")
        for heading, body in (
            ("who waits for whom", list(waits)),
            *self._watched.sections(),
            ("stacks", stacks.dump().splitlines()),
        ):
            text += [f"-- {heading}", *_indented(body or ["nothing"])]
        return "\n".join([*text, "-- end of report", ""])


def _aged(ages: dict[K, int], seen: Iterable[K], passed: int) -> dict[K, int]:
    """How long each of `seen` has been there at every look, ns."""
    return {key: ages[key] + passed if key in ages else 0 for key in seen}


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]
