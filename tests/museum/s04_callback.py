"""QEMU's HPET and RVVM's PS/2: a device called another one back with its own lock held, the other did the same, and the
cure was to take the devices' locks away. Planted: a keyboard and its controller that each call the other from inside.
Each class declares the other as its child, so that each call is within the ranks and only their sum is a cycle.
"""

from __future__ import annotations

from typing import Any

from tests.museum.exhibit import Exhibit, Program, Stage, lock_report
from vmm.lockreport import Kind
from vmm.locks import Device, Locking, entry


class Port(Device):
    """One end of a PS/2 line: it tells its peer from outside its lock"""

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._peer: Port | None = None
        self._heard = 0

    @entry
    def connect(self, peer: Port) -> None:
        self._peer = peer

    @entry(posts=True)
    def send(self) -> None:
        """The guest, or the user, has something for the other end."""
        if self._peer:
            self._post(self._peer.receive)

    @entry
    def receive(self) -> None:
        self._heard += 1


class Eager(Port):
    """One end of a PS/2 line that calls the other end with its own lock held"""

    @entry
    def send(self) -> None:
        if self._peer:
            self._peer.receive()


class Keyboard(Port):
    lock_children = ("Controller",)


class Controller(Port):
    lock_children = ("Keyboard",)


class EagerKeyboard(Eager):
    lock_children = ("EagerController",)


class EagerController(Eager):
    lock_children = ("EagerKeyboard",)


def polite(locking: Locking) -> tuple[Port, Port]:
    """Both ends post what they have for the other (`Device._post`)"""
    return locking.make(Keyboard, "keyboard"), locking.make(Controller, "controller")


def eager(locking: Locking) -> tuple[Port, Port]:
    """Both ends of a PS/2 line call the other with their own lock held"""
    return locking.make(EagerKeyboard, "keyboard"), locking.make(EagerController, "controller")


def check(pair: Any) -> str | None:
    def run(locking: Locking) -> None:
        one, other = pair(locking)
        one.connect(other)
        other.connect(one)
        one.send()
        other.send()

    return lock_report(Kind.CYCLE, run)


def program(pair: Any) -> Program:
    def threads(s: Stage) -> None:
        one, other = pair(Locking(kit=s))
        one.connect(other)
        other.connect(one)
        s.spawn("io", one.send)
        s.spawn("vcpu0", other.send)

    return threads


EXHIBIT = Exhibit(
    "S4",
    "two devices called each other back with their locks held; the cure took the locks away (QEMU, RVVM)",
    "order graph",
    eager,
    polite,
    check,
    program,
)
