"""The life of a machine as a table: which request is allowed in which state, and where it leads.

One thread, "lifecycle", carries requests out, one after the other. Everybody else posts: a device that saw the guest
power itself off, a VCPU thread that died, the API. So no two transitions overlap, and nothing waits for a VCPU from a
VCPU's own thread. What a transition does is the machine's (`Actions`); this module knows no devices.

A state is a predicate under one condition variable, never an edge: whoever asks late still sees it.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar, cast

from vmm.errors import ConfigError, DeadlineError, HostError, VmmError
from vmm.fabric.threads import name_os_thread
from vmm.locks import PLAIN, Kit, Thread
from vmm.waitfor import Sighting

T = TypeVar("T")


class State(Enum):
    """Where a machine is. The first four are where it rests, the others are transitions under way."""

    BUILT = "built"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    STARTING = "starting"
    PAUSING = "pausing"
    RESUMING = "resuming"
    RESETTING = "resetting"
    STOPPING = "stopping"


class Request(Enum):
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    STOP = "stop"
    PLUG = "plug"
    UNPLUG = "unplug"


class Row(NamedTuple):
    """One allowed transition. `via` is the state while the action runs; None where the machine stays as it is."""

    state: State
    request: Request
    via: State | None
    to: State
    meaning: str


TABLE = (
    Row(State.BUILT, Request.START, State.STARTING, State.RUNNING, "harts leave reset, threads and I/O begin"),
    Row(State.BUILT, Request.STOP, State.STOPPING, State.STOPPED, "nothing ran; files and threads are given back"),
    Row(State.RUNNING, Request.PAUSE, State.PAUSING, State.PAUSED, "every hart reaches a safepoint, the clock stops"),
    Row(State.RUNNING, Request.RESET, State.RESETTING, State.RUNNING, "harts stop, devices reset, memory is reloaded"),
    Row(State.RUNNING, Request.STOP, State.STOPPING, State.STOPPED, "harts end, I/O drains, files are given back"),
    Row(State.RUNNING, Request.RESUME, None, State.RUNNING, "runs already"),
    Row(State.PAUSED, Request.RESUME, State.RESUMING, State.RUNNING, "the clock and the harts go on"),
    Row(State.PAUSED, Request.RESET, State.RESETTING, State.PAUSED, "as when running, and it stays paused"),
    Row(State.PAUSED, Request.STOP, State.STOPPING, State.STOPPED, "as when running"),
    Row(State.PAUSED, Request.PAUSE, None, State.PAUSED, "is paused already"),
    Row(State.STOPPED, Request.STOP, None, State.STOPPED, "has stopped already; the first outcome stands"),
    Row(State.BUILT, Request.PLUG, None, State.BUILT, "a device joins the bus"),
    Row(State.RUNNING, Request.PLUG, None, State.RUNNING, "a device joins the bus; nobody waits"),
    Row(State.PAUSED, Request.PLUG, None, State.PAUSED, "a device joins the bus"),
    Row(State.BUILT, Request.UNPLUG, None, State.BUILT, "a device leaves the bus; nothing reached it yet"),
    Row(State.RUNNING, Request.UNPLUG, None, State.RUNNING, "a device leaves the bus; it is given back later"),
    Row(State.PAUSED, Request.UNPLUG, None, State.PAUSED, "a device leaves the bus; no hart can reach it"),
)

_UNDER_WAY = {row.via for row in TABLE}
_ROWS = {(row.state, row.request): row for row in TABLE}


class Reason(Enum):
    """Why a machine stopped."""

    POWER_OFF = "the guest powered off"
    GUEST_EXIT = "the guest exited with a code"
    GUEST_RESET = "the guest asked for a reset, and resets were to end the run"
    ASKED = "it was asked to stop"
    CONSOLE_GONE = "nobody reads its console any more"
    FAILED = "the monitor failed"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `code` is the guest's exit code; `report` is text for a person, possibly many lines."""

    reason: Reason
    code: int = 0
    report: str = ""


class LifecycleError(VmmError):
    """The request is not in the table for the state the machine is in."""


class Actions(Protocol):
    """What the transitions do. Each runs on the lifecycle thread; one that raises stops the machine."""

    def start(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def reset(self) -> None:
        """Called with the machine paused; leaves it so."""
        ...

    def stop(self) -> None: ...


def _nothing() -> None:
    """No change."""


@dataclass(eq=False)
class Ticket:
    """A posted request: `done` once it was carried out or refused, `error` why it was not carried out."""

    request: Request
    outcome: Outcome
    change: Callable[[], object] = _nothing
    """What PLUG and UNPLUG do, on the lifecycle thread. A ConfigError, HostError or LifecycleError of its refuses the
    request, and the machine goes on; anything else is a defect."""
    done: bool = False
    error: Exception | None = None
    result: object = None
    """What `change` returned."""


class Lifecycle:
    """Owns the state and the thread that changes it."""

    def __init__(self, kit: Kit = PLAIN) -> None:
        self._kit = kit
        self._transition = kit.progress("a transition of the lifecycle")
        # Guards all that follows. It is notified when a ticket is posted or done, and when the state changes.
        self._changed = kit.condition("lifecycle")
        self._state = State.BUILT
        self._outcome: Outcome | None = None
        self._posted: deque[Ticket] = deque()
        self._transitions = 0
        self._describe: Callable[[str], str] = lambda why: why
        self._thread: Thread | None = None

    def begin(self, actions: Actions, describe: Callable[[str], str] | None = None) -> None:
        """Starts the thread. What was posted before waits until now: a machine's parts may post while it is built.

        `describe(why)` tells who waits for whom; it is asked when a transition meets a deadline.
        """
        self._actions = actions
        self._describe = describe or self._describe
        self._do: dict[Request, Callable[[State], None]] = {
            Request.START: lambda _: actions.start(),
            Request.PAUSE: lambda _: actions.pause(),
            Request.RESUME: lambda _: actions.resume(),
            Request.RESET: self._reset,
            Request.STOP: lambda _: actions.stop(),
        }
        self._thread = self._kit.thread(self._run, "lifecycle")
        self._thread.start()

    @property
    def state(self) -> State:
        return self._state

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended, None until it has."""
        return self._outcome

    def post(self, request: Request, outcome: Outcome | None = None) -> Ticket:
        """Asks for a transition and returns at once; any thread, holding anything.

        `outcome` says why, for requests that end the run; the first one to be carried out stands.
        """
        return self._post(Ticket(request, outcome or Outcome(Reason.ASKED)))

    def _post(self, ticket: Ticket) -> Ticket:
        with self._changed:
            if self._state is State.STOPPED:
                self._settle_when_stopped(ticket)
            else:
                self._posted.append(ticket)
            self._changed.notify_all()
        return ticket

    def do(self, request: Request, outcome: Outcome | None = None) -> None:
        """Asks for a transition and waits until it is done.

        Raises LifecycleError if the state does not allow it, and what the action raised if that failed. Not for VCPU
        and I/O threads: the transition may be waiting for them.
        """
        self._await(self.post(request, outcome))

    def change(self, request: Request, change: Callable[[], T]) -> T:
        """The same for PLUG and UNPLUG: `change` runs between two transitions; returns what it returns.

        Raises LifecycleError if the state does not allow it, and what `change` raised.
        """
        ticket = self._post(Ticket(request, Outcome(Reason.ASKED), change))
        self._await(ticket)
        return cast(T, ticket.result)

    def _await(self, ticket: Ticket) -> None:
        with self._transition.waiting(), self._changed:
            self._changed.wait_for(lambda: ticket.done)
        if ticket.error is not None:
            raise ticket.error

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """How the run ended, or None if it has not after `timeout` seconds."""
        with self._transition.waiting(), self._changed:
            self._changed.wait_for(lambda: self._state is State.STOPPED, timeout)
            return self._outcome

    def join(self) -> None:
        """Waits for the lifecycle thread, which ends by itself once the machine has stopped."""
        if self._thread is not None:
            with self._transition.waiting():
                self._thread.join()

    def tell(self, sighting: Sighting) -> None:
        """Who waits for a transition, and the one under way."""
        state, number, ident = self._state, self._transitions, self._thread.ident if self._thread else None
        self._transition.tell(sighting)
        if state in _UNDER_WAY:
            sighting.hold(ident, self._transition.name, f"it is {state.value}")
            sighting.stay(ident, state.value, number)

    def statistics(self) -> dict[str, object]:
        return {"state": self._state.value, "transitions": self._transitions, "posted": len(self._posted)}

    def __repr__(self) -> str:
        return f"<Lifecycle {self._state.value}, {len(self._posted)} posted>"

    def _run(self) -> None:
        name_os_thread("lifecycle")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._posted)
                ticket = self._posted.popleft()
            with self._transition.serving():
                self._carry_out(ticket)
            with self._changed:
                ticket.done = True
                stopped = self._state is State.STOPPED
                if stopped:
                    for late in self._posted:
                        self._settle_when_stopped(late)
                self._posted = deque(later for later in self._posted if not later.done)
                self._changed.notify_all()
            if stopped:
                return

    def _carry_out(self, ticket: Ticket) -> None:
        row = _ROWS.get((self._state, ticket.request))
        if row is None:
            ticket.error = self._refusal(ticket)
        elif row.request in (Request.PLUG, Request.UNPLUG):
            self._make_change(row, ticket)
        elif row.via is not None:
            try:
                self._enter(row.via)
                self._do[row.request](row.state)
            except Exception as error:
                ticket.error = error
                self._give_up(row, error)
            else:
                self._enter(row.to, ticket.outcome)

    def _make_change(self, row: Row, ticket: Ticket) -> None:
        try:
            ticket.result = ticket.change()
        except (ConfigError, HostError, LifecycleError) as error:
            ticket.error = error
        except Exception as error:
            ticket.error = error
            self._give_up(row, error)

    def _reset(self, state: State) -> None:
        if state is State.RUNNING:
            self._actions.pause()
        # Two harts may ask for a reset at once. With the harts paused all they asked is here, and one reset answers it;
        # carried out later, the second would hit the system that the first had just started.
        with self._changed:
            for ticket in self._posted:
                ticket.done = ticket.done or ticket.request is Request.RESET
        self._actions.reset()
        if state is State.RUNNING:
            self._actions.resume()

    def _give_up(self, row: Row, error: Exception) -> None:
        """A transition failed half way: the machine stops, since no state describes it any more."""
        mine = isinstance(error, (ConfigError, HostError))
        report = str(error) if mine else "".join(traceback.format_exception(error))
        if isinstance(error, DeadlineError):
            report = self._described(report)
        if row.request is not Request.STOP:
            self._enter(State.STOPPING)
            try:
                self._actions.stop()
            except Exception as also:
                report += "".join(traceback.format_exception(also))
        self._enter(State.STOPPED, Outcome(Reason.FAILED, report=report))

    def _described(self, report: str) -> str:
        try:
            return self._describe(report)
        except Exception:  # who waits for this thread gets an answer whatever happens
            return report + "\n" + traceback.format_exc()

    def _enter(self, state: State, outcome: Outcome | None = None) -> None:
        with self._changed:
            self._state = state
            self._transitions += 1
            if state is State.STOPPED:
                self._outcome = outcome
            self._changed.notify_all()

    def _settle_when_stopped(self, ticket: Ticket) -> None:
        if (State.STOPPED, ticket.request) not in _ROWS:
            ticket.error = self._refusal(ticket)
        ticket.done = True

    def _refusal(self, ticket: Ticket) -> LifecycleError:
        allowed = ", ".join(row.request.value for row in TABLE if row.state is self._state) or "nothing"
        request, state = ticket.request.value, self._state.value
        return LifecycleError(f"cannot {request} a machine that is {state}: it allows {allowed}")


def page() -> str:
    """`docs/lifecycle.md`: the table and the diagram drawn from it."""
    arrows, rows = [], []
    for row in TABLE:
        rows.append(
            f"| {row.state.value} | {row.request.value} | {row.via.value if row.via else ''} | {row.to.value} "
            f"| {row.meaning} |"
        )
        if row.via is not None:
            arrows.append(f"    {row.state.value} --> {row.to.value}: {row.request.value}")
    return "\n".join(
        [
            "# The life of a machine",
            "",
            "Generated from the table in `vmm/machine/lifecycle.py` by `make docs`.",
            "",
            "Requests are posted by anybody and carried out one at a time by the thread `lifecycle`. A request that",
            "has no row for the state it meets is refused. If the work of a transition fails the machine stops.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {State.BUILT.value}",
            *arrows,
            f"    {State.STOPPED.value} --> [*]",
            "```",
            "",
            "| state | request | meanwhile | then | what happens |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "How a run can end:",
            "",
            *(f"- `{reason.name}`: {reason.value}" for reason in Reason),
            "",
        ]
    )
