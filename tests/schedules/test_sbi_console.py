"""The debug console of the built-in SBI, which every hart may call at any time, over one UART."""

from __future__ import annotations

from tests.schedules.devices import make_uart
from vmm.machine.virt import UartConsole
from vmm.testing.schedule import Scheduler, assert_holds
from vmm.testing.schedule.surroundings import ScheduledHome


def print_together(s: Scheduler) -> None:
    """Two harts print while the line is congested: what a call says was taken is sent in the end."""
    device, line, _, _ = make_uart(s, ScheduledHome(s))
    console = UartConsole(device)
    taken: list[int] = []
    line.congested = True
    for hart in range(2):
        s.spawn(f"vcpu{hart}", lambda: taken.append(console.write(b"ab")))

    def end() -> None:
        line.relieve()
        assert not line.lost_bytes
        assert len(line.sent) == sum(taken)

    s.check(end)


def read_together(s: Scheduler) -> None:
    """Two harts read one character: one of them gets it, and nobody gets one that never came."""
    device, line, _, _ = make_uart(s, ScheduledHome(s))
    console = UartConsole(device)
    line.type(b"x")
    got: list[bytes] = []
    for hart in range(2):
        s.spawn(f"vcpu{hart}", lambda: got.append(console.read(1)))

    def end() -> None:
        assert sorted(got) == [b"", b"x"]

    s.check(end)


def test_what_two_harts_print_at_once_is_sent_or_refused() -> None:
    assert_holds(print_together, strategy="pct", depth=3, schedules=200)


def test_a_character_is_read_once() -> None:
    assert_holds(read_together, strategy="pct", depth=3, schedules=200)
