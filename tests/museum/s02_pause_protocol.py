"""cloud-hypervisor's issue 3585, and twice more in 2026: pausing, resuming and activating a machine were steps that
each looked at the state first and changed it last, on whatever thread asked. Planted: a lifecycle that carries requests
out on the thread that posts them. The lifecycle of `vmm/machine` has one table and one thread.
"""

from __future__ import annotations

from tests.museum.exhibit import Exhibit, Program, Stage
from tests.museum.schedules import first_failure
from vmm.locks import Kit
from vmm.machine.lifecycle import TABLE, Lifecycle, LifecycleError, Outcome, Reason, Request, State, Ticket


class OnTheSpot(Lifecycle):
    """A lifecycle whose transitions run on the thread that asks for them"""

    def post(self, request: Request, outcome: Outcome | None = None) -> Ticket:
        if request is Request.STOP:
            return super().post(request, outcome)
        ticket = Ticket(request, outcome or Outcome(Reason.ASKED))
        row = next((row for row in TABLE if (row.state, row.request) == (self._state, request)), None)
        if row is None:
            ticket.error = LifecycleError(f"cannot {request.value} a machine that is {self._state.value}")
        elif row.via:
            self._do[request](row.state)
            self._enter(row.to)
        ticket.done = True
        return ticket


class Machine:
    """What the transitions do: nothing but to see that no two overlap, and that each finds what the last one left."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._busy = ""
        self._running = False

    def start(self) -> None:
        self._act("start", False, True)

    def pause(self) -> None:
        self._act("pause", True, False)

    def resume(self) -> None:
        self._act("resume", False, True)

    def reset(self) -> None:
        self._act("reset", False, False)

    def stop(self) -> None:
        self._act("stop", self._running, False)

    def _act(self, what: str, running: bool, then: bool) -> None:
        assert not self._busy, f"{what} begins in the middle of {self._busy}"
        assert self._running is running, f"{what} of a machine that is {'' if self._running else 'not '}running"
        self._busy = what
        self._kit.point(what)
        self._running = then
        self._busy = ""


def program(lifecycle_class: type[Lifecycle]) -> Program:
    def threads(s: Stage) -> None:
        lifecycle = lifecycle_class(s)
        lifecycle.begin(Machine(s))

        def monitor() -> None:
            lifecycle.do(Request.START)
            for request in (Request.PAUSE, Request.RESUME):
                try:
                    lifecycle.do(request)
                except LifecycleError:
                    pass
            lifecycle.do(Request.STOP)
            outcome = lifecycle.outcome
            assert outcome is not None
            assert outcome.reason is Reason.ASKED, outcome.report

        s.spawn("monitor", monitor)
        s.spawn("vcpu0", lifecycle.post, Request.RESET)
        s.check(lambda: _stopped(lifecycle))

    return threads


def _stopped(lifecycle: Lifecycle) -> None:
    assert lifecycle.state is State.STOPPED


def check(lifecycle_class: type[Lifecycle]) -> str | None:
    return first_failure(program(lifecycle_class))


EXHIBIT = Exhibit(
    "S2",
    "pause, resume and activation ran on whatever thread asked, and overlapped (cloud-hypervisor 3585 and two more)",
    "seeded scheduler",
    OnTheSpot,
    Lifecycle,
    check,
    program,
)
