"""Every schedule of a program, within a bound on preemptions (Musuvathi, Qadeer, CHESS, PLDI 2007), or one for each
class of schedules that differ only in the order of operations that commute.

The reduction is dynamic (Flanagan, Godefroid, POPL 2005): a schedule is run, and wherever two of its steps do not
commute and nothing else orders them, a schedule is wanted that takes them the other way round. Sleep sets (Godefroid,
1996) drop what would only swap steps that commute. Under a bound a wanted schedule may cost a preemption too many,
although one of its class would not: then it is wanted from the last switch before as well (Coons, Musuvathi, McKinley,
OOPSLA 2013), and sleep sets, which know nothing of the bound, are not used.

It holds as far as operations are named: what a program shares and touches between two of them, unlocked, it does not
order. The race checker is there to find that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from vmm.testing.schedule.core import ScheduledThread, Scheduler
from vmm.testing.schedule.operations import Access, Operation


class _Node:
    """One step of the schedule that was run last, and what is known of the steps that could be taken in its place."""

    __slots__ = ("able", "chosen", "done", "operations", "preemptions", "running", "sleeping", "wanted")

    def __init__(
        self, able: list[ScheduledThread], running: int, preemptions: int, sleeping: dict[int, Operation]
    ) -> None:
        self.able: Final = [thread.index for thread in able]
        self.operations: Final = {thread.index: thread.operation for thread in able}
        self.running: Final = running
        """The thread that took the step before and could go on; -1 if it cannot."""
        self.preemptions: Final = preemptions
        """Before this step."""
        self.sleeping: Final = sleeping
        """Threads whose step here was tried elsewhere and commutes with all since."""
        self.wanted: set[int] = set()
        self.done: set[int] = set()
        self.chosen = -1

    @property
    def operation(self) -> Operation:
        return self.operations[self.chosen]

    def after(self, chosen: int) -> int:
        """Preemptions, once `chosen` has taken the step."""
        return self.preemptions + (self.running not in (-1, chosen))


class Search:
    """A depth-first search. It is the strategy of one schedule after the other."""

    sees_all = True

    def __init__(self, preemptions: int | None, reduce: bool) -> None:
        self._bound = preemptions
        self._reduce = reduce
        self._sleep = reduce and preemptions is None
        self._nodes: list[_Node] = []
        self._planned = 0
        """Nodes whose step is settled before the schedule begins."""
        self._at = 0
        self._news = sys.maxsize
        """Nodes before those that have been seen elsewhere."""
        self.redundant = 0
        """1 if the schedule that runs now turned out to be one of a class seen before."""

    def begin(self) -> None:
        self._at = 0
        self.redundant = 0
        self._news = sys.maxsize

    def started(self, thread: ScheduledThread) -> None:
        """All are alike."""

    def choose(self, scheduler: Scheduler, me: ScheduledThread | None, able: list[ScheduledThread]) -> ScheduledThread:
        at = self._at
        self._at += 1
        if at >= self._planned:
            self._nodes.append(self._node(me, able))
        node = self._nodes[at]
        if at >= self._planned:
            awake = [index for index in node.able if index not in node.sleeping]
            if not awake and not self.redundant:
                # Whatever comes now has been seen. It runs to its end all the same: to tear it off costs more.
                self.redundant = 1
                self._news = at
            candidates = awake or node.able
            calm = scheduler.calm(me, able).index
            node.chosen = calm if calm in candidates else candidates[0]
            node.wanted = {node.chosen} if self._reduce else set(node.able)
        chosen = next(thread for thread in able if thread.index == node.chosen)
        node.operations[node.chosen] = chosen.operation
        return chosen

    def _node(self, me: ScheduledThread | None, able: list[ScheduledThread]) -> _Node:
        running = me.index if me is not None and me in able else -1
        if not self._nodes:
            return _Node(able, running, 0, {})
        before = self._nodes[-1]
        sleeping = {}
        if self._sleep:
            rest = {**before.sleeping, **{index: before.operations[index] for index in before.done}}
            sleeping = {
                index: operation
                for index, operation in rest.items()
                if index != before.chosen and operation.commutes(before.operation)
            }
        return _Node(able, running, before.after(before.chosen), sleeping)

    def end(self, scheduler: Scheduler) -> bool:
        """Learn from the schedule that has run; whether there is another to run."""
        del self._nodes[self._news :]
        if self._reduce:
            self._want_reversals(() if self.redundant else scheduler.blocked)
        while self._nodes:
            node = self._nodes[-1]
            node.done.add(node.chosen)
            for index in sorted(node.wanted - node.done):
                if index in node.sleeping or (self._bound is not None and node.after(index) > self._bound):
                    node.done.add(index)
                    continue
                node.chosen = index
                self._planned = len(self._nodes)
                return True
            self._nodes.pop()
        return False

    # -- the reduction

    def _want_reversals(self, blocked: Sequence[tuple[int, Operation]]) -> None:
        """For each two steps that do not commute and that nothing orders, want the second before the first. `blocked`
        is what threads were about to do that could not go on."""
        nodes = self._nodes
        seen: dict[str, list[int]] = {}  # steps by the thing they touch
        everything: list[int] = []
        clocks: dict[int, dict[int, int]] = {}  # thread -> thread -> its last step that comes before
        at_step: list[dict[int, int]] = []

        def unordered(index: int, operation: Operation) -> list[int]:
            """Earlier steps of others that `operation` of thread `index` could have come before."""
            clock = clocks.get(index, {})
            return [
                step
                for step in related(operation)
                if nodes[step].chosen != index
                and clock.get(nodes[step].chosen, -1) < step
                and not nodes[step].operation.commutes(operation)
            ]

        def related(operation: Operation) -> list[int]:
            if operation.access is Access.NOTHING:
                return []
            if operation.access is Access.EVERYTHING:
                return list(range(len(at_step)))
            return seen.get(operation.what, []) + everything

        for step, node in enumerate(nodes):
            index, operation = node.chosen, node.operation
            for earlier in unordered(index, operation):
                self._want(earlier, index)
            clock = clocks.setdefault(index, {})
            for earlier in related(operation):
                if not nodes[earlier].operation.commutes(operation):
                    for thread, last in at_step[earlier].items():
                        clock[thread] = max(clock.get(thread, -1), last)
            clock[index] = step
            at_step.append(dict(clock))
            if operation.access is Access.EVERYTHING:
                everything.append(step)
            elif operation.access is not Access.NOTHING:
                seen.setdefault(operation.what, []).append(step)
        for index, operation in blocked:  # they never took their step, but might have, earlier
            for earlier in unordered(index, operation):
                self._want(earlier, index)

    def _want(self, step: int, index: int) -> None:
        """Have thread `index` run at `step`; where it cannot, whoever can, so as to bring it there."""
        self._want_at(step, index)
        if self._bound is not None:
            # The same again where the thread of that step was switched to: a switch there costs nothing more.
            while step and self._nodes[step - 1].chosen == self._nodes[step].chosen:
                step -= 1
            self._want_at(step, index)

    def _want_at(self, step: int, index: int) -> None:
        node = self._nodes[step]
        node.wanted.update([index] if index in node.able else node.able)
