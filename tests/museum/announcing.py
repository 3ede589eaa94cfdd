"""Locks that tell when a thread has to wait for them, so that a test can wait for that instead of for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from vmm.locks import DeviceLock, Kit, Rank


class _Lock(DeviceLock):  # type: ignore[misc]
    def __init__(self, name: str, lock_class: str | None, rank: Rank, waits: Callable[[], object]) -> None:
        super().__init__(name, lock_class, rank)
        self._waits = waits

    def contend(self) -> Literal[True]:
        self._waits()
        return super().contend()


class Announcing(Kit):
    """Plain in all else. `waits()` is called by the thread that is about to wait."""

    def __init__(self, waits: Callable[[], object]) -> None:
        self._waits = waits

    def lock(
        self,
        name: str,
        lock_class: str | None = None,
        rank: Rank = Rank.LEAF,
        children: tuple[str, ...] = (),
        around: DeviceLock | None = None,
    ) -> DeviceLock:
        return _Lock(name, lock_class, rank, self._waits) if around is None else around
