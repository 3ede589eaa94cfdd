"""The order graph of locks and waits, by class: what was taken or waited for inside what.

An edge A -> B says that some thread took a lock of class B, or waited for B, while it held one of class A. What threads
wait for is a node as well: whoever brings it about "holds" it meanwhile, so a lock that is taken for that is an edge
from it. A cycle is a deadlock that needs nothing more but the right moment, and is found when its last edge is first
seen, which takes no such luck. (Linux calls this lockdep, and the part with the waits cross-release.)

A cycle in which two edges were always seen under one common lock cannot come about, since that lock lets only one
thread at a time do its part: the big lock around everything is such a gate. So each sighting of an edge keeps its
guards, the locks held at the time, and the guards of a cycle's edges have nothing in common (Havelund's Goodlock).

This module is data only: it knows no threads and takes no lock but its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vmm.lockreport import Stack


@dataclass(frozen=True, slots=True)
class Node:
    """A class of locks, or of things to wait for."""

    name: str
    rank: str = ""
    """Of the locks; empty for a wait."""
    module: str = ""
    """Where it is defined."""


@dataclass(frozen=True, slots=True)
class Edge:
    """`inner` was taken, or waited for, inside `outer`."""

    outer: Node
    inner: Node
    outer_name: str
    inner_name: str
    """The instances."""
    thread: str
    outer_at: Stack
    """Where `outer` was taken, or its work begun."""
    inner_at: Stack
    """Where `inner` was wanted."""
    guards: frozenset[int]
    """The locks, of any class, that the thread held: one number for each instance."""

    def __str__(self) -> str:
        return f"{self.outer.name} -> {self.inner.name}"

    def as_json(self) -> dict[str, Any]:
        return {
            "outer": self.outer.name,
            "inner": self.inner.name,
            "outer_name": self.outer_name,
            "inner_name": self.inner_name,
            "thread": self.thread,
            "outer_at": [frame._asdict() for frame in self.outer_at],
            "inner_at": [frame._asdict() for frame in self.inner_at],
        }


class OrderGraph:
    """Any thread may call any method."""

    def __init__(self) -> None:
        # Rank LEAF; guards what follows. Nothing is called under it.
        self._lock = threading.Lock()
        self._first: dict[tuple[str, str], Edge] = {}
        # By outer node: for each edge the sightings that no other one makes superfluous, by having fewer guards.
        self._from: dict[str, list[Edge]] = {}

    def __repr__(self) -> str:
        return f"<OrderGraph of {len(self._first)} edges>"

    def edges(self) -> list[Edge]:
        """The first sighting of each edge, in the order in which they were seen."""
        with self._lock:
            return list(self._first.values())

    def knows(self, outer: Node, inner: Node, guards: frozenset[int]) -> bool:
        """Whether a sighting with these guards would be nothing new."""
        with self._lock:
            return self._known(outer, inner, guards)

    def add(self, edge: Edge) -> None:
        with self._lock:
            self._first.setdefault((edge.outer.name, edge.inner.name), edge)
            if not self._known(edge.outer, edge.inner, edge.guards):
                others = [e for e in self._from.get(edge.outer.name, ()) if not _supersedes(edge, e)]
                self._from[edge.outer.name] = [*others, edge]

    def cycle(self, outer: Node, inner: Node, guards: frozenset[int]) -> tuple[Edge, ...]:
        """The shortest way back from `inner` to `outer` that threads can be on at the same time; empty if none."""
        with self._lock:
            ways: deque[tuple[str, frozenset[int], tuple[Edge, ...]]] = deque([(inner.name, guards, ())])
            tried = {(inner.name, guards)}
            while ways:
                at, taken, way = ways.popleft()
                for edge in self._from.get(at, ()):
                    if edge.guards & taken:
                        continue
                    if edge.inner.name == outer.name:
                        return (*way, edge)
                    step = edge.inner.name, taken | edge.guards
                    if step not in tried:
                        tried.add(step)
                        ways.append((*step, (*way, edge)))
            return ()

    def _known(self, outer: Node, inner: Node, guards: frozenset[int]) -> bool:
        return any(e.inner.name == inner.name and e.guards <= guards for e in self._from.get(outer.name, ()))


def _supersedes(new: Edge, old: Edge) -> bool:
    return old.inner.name == new.inner.name and new.guards <= old.guards


def graph_as_json(edges: Iterable[Edge]) -> dict[str, Any]:
    """Nodes and edges, each once."""
    edges = list(edges)
    nodes = {node.name: node for edge in edges for node in (edge.outer, edge.inner)}
    return {
        "nodes": [{"name": n.name, "rank": n.rank, "module": n.module} for _, n in sorted(nodes.items())],
        "edges": [edge.as_json() for edge in edges],
    }
