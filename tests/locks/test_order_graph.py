"""The order graph as data: edges, rings, and the locks that keep a ring from closing."""

from __future__ import annotations

import json

from vmm.lockgraph import Edge, Node, OrderGraph, graph_as_json
from vmm.lockreport import Frame

NODES = {name: Node(name, "DEVICE", "vmm.devices") for name in "ABCD"}


def edge(names: str, *guards: int) -> Edge:
    """From the first letter's class to the second's."""
    outer, inner = (NODES[name] for name in names)
    here = (Frame("file.py", 7, "function"),)
    return Edge(outer, inner, f"{outer.name}0", f"{inner.name}0", "vcpu0", here, here, frozenset(guards))


def graph(*edges: Edge) -> OrderGraph:
    made = OrderGraph()
    for one in edges:
        made.add(one)
    return made


def ring(made: OrderGraph, names: str, *guards: int) -> list[str]:
    """What is on the way back from the second letter's class to the first's."""
    return [str(e) for e in made.cycle(NODES[names[0]], NODES[names[1]], frozenset(guards))]


def test_an_order_in_both_directions_is_a_ring() -> None:
    assert ring(graph(edge("AB", 1)), "BA", 2) == ["A -> B"]
    assert ring(graph(edge("AB", 1)), "AB", 1) == []


def test_the_shortest_way_round_is_told() -> None:
    made = graph(edge("AB", 1), edge("BC", 2), edge("CD", 3), edge("BD", 2))
    assert ring(made, "DA", 4) == ["A -> B", "B -> D"]


def test_no_ring_closes_where_two_edges_need_one_lock() -> None:
    gate, a, b = 9, 1, 2
    made = graph(edge("AB", gate, a))
    assert ring(made, "BA", gate, b) == []
    assert ring(made, "BA", b) == ["A -> B"]


def test_a_ring_of_three_needs_three_threads_that_share_no_lock() -> None:
    made = graph(edge("AB", 9, 1), edge("BC", 9, 2))
    assert ring(made, "CA", 3) == []
    made.add(edge("BC", 2))
    assert ring(made, "CA", 3) == ["A -> B", "B -> C"]


def test_a_sighting_with_other_guards_is_news_and_one_with_more_is_not() -> None:
    made = graph(edge("AB", 9, 1))
    a, b = NODES["A"], NODES["B"]
    assert made.knows(a, b, frozenset({9, 1, 5}))
    assert not made.knows(a, b, frozenset({1}))
    assert not made.knows(b, a, frozenset({9, 1}))
    made.add(edge("AB", 1))
    assert made.knows(a, b, frozenset({1, 9}))


def test_each_edge_is_told_as_it_was_first_seen() -> None:
    first, later = edge("AB", 9, 1), edge("AB", 1)
    assert graph(first, later, edge("BC", 2)).edges() == [first, edge("BC", 2)]


def test_the_graph_as_json_names_each_node_once() -> None:
    found = json.loads(json.dumps(graph_as_json(graph(edge("AB", 1), edge("BC", 2)).edges())))
    assert [node["name"] for node in found["nodes"]] == ["A", "B", "C"]
    assert [(e["outer"], e["inner"], e["thread"]) for e in found["edges"]] == [
        ("A", "B", "vcpu0"),
        ("B", "C", "vcpu0"),
    ]
    assert found["edges"][0]["outer_at"] == [{"file": "file.py", "line": 7, "function": "function"}]
