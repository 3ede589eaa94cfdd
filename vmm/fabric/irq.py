"""Interrupt wires. A wire carries a level, never an event.

A device drives its wire from state in `_sync()`, with its lock held; `set` therefore takes no lock that ranks outside
IRQCHIP, and setting the level a wire already has changes nothing. Queues of "raise" and "lower" messages lose
interrupts when two threads deliver them in another order than they were made; a level cannot.
"""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """One end of an interrupt line, in the hand of the device that drives it."""

    @property
    def level(self) -> bool:
        """The level now driven."""

    def set(self, level: bool) -> None:
        """Drive the line. Any thread, any lock outside IRQCHIP may be held; never blocks."""


class Unconnected:
    """A wire that ends nowhere."""

    __slots__ = ("_level",)

    def __init__(self) -> None:
        self._level = False

    def __repr__(self) -> str:
        return f"<Unconnected wire, {'high' if self._level else 'low'}>"

    @property
    def level(self) -> bool:
        return self._level

    def set(self, level: bool) -> None:
        self._level = level
