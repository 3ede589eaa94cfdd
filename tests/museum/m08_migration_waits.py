"""QEMU's issue 780: the migration thread held the big lock and waited for the main loop, which needed that lock to get
anywhere. Planted: a migration that waits for a flush with the big lock held. There is no migration here yet: the main
loop and the flush are models of the same shape.
"""

from __future__ import annotations

from tests.museum.exhibit import Exhibit, Program, Stage, lock_report
from vmm.lockreport import Kind
from vmm.locks import Locking

DEADLINE_S = 0.5


class Migration:
    """A migration that waits for the main loop with nothing held"""

    def __init__(self, locking: Locking) -> None:
        self._big = locking.big
        self._flush = locking.kit.progress("flush")
        # Guards the two flags; signals their change.
        self._changed = locking.kit.condition("flushed")
        self._wanted = self._flushed = False

    def main_loop(self) -> None:
        """One turn, under the big lock as in 2010."""
        with self._flush.serving(), self._big:
            with self._changed:
                self._flushed = True
                self._changed.notify_all()

    def run(self) -> None:
        """The migration's own thread."""
        with self._big:
            self._wanted = True
        self._wait()

    def _wait(self) -> None:
        with self._flush.waiting(), self._changed:
            assert self._changed.wait_for(lambda: self._flushed, DEADLINE_S), "the main loop never came to flush"


class GreedyMigration(Migration):
    """A migration that waits for the main loop with the big lock held"""

    def run(self) -> None:
        with self._big:
            self._wanted = True
            self._wait()


def check(migration: type[Migration]) -> str | None:
    def run(locking: Locking) -> None:
        made = migration(locking)
        made.main_loop()
        made.run()

    return lock_report(Kind.CYCLE, run)


def program(migration: type[Migration]) -> Program:
    def threads(s: Stage) -> None:
        made = migration(Locking(kit=s))
        s.spawn("migration", made.run)
        s.spawn("io", made.main_loop)

    return threads


EXHIBIT = Exhibit(
    "M8",
    "the migration thread waited for the main loop with the lock that the main loop needed (QEMU 780)",
    "order graph with waits",
    GreedyMigration,
    Migration,
    check,
    program,
)
