"""docs/lock-order.md tells what the program does now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lock_order import Recorder
from tests.lock_tour import tour
from tools import docs_lock_order, layered
from tools.docs_lock_order import PAGE, PICTURE, edges_of, levels, of_this_program
from tools.pages import DOCS
from vmm.bql import Policy
from vmm.errors import LockOrderError
from vmm.lockcheck import Checker
from vmm.lockgraph import Edge, Node
from vmm.lockreport import Frame
from vmm.locks import Rank

CODE = Frame(str(DOCS.parent / "vmm" / "fabric" / "inflight.py"), 7, "InFlight.wait")
DOOR = Frame("<@entry vmm.devices.uart16550.Uart16550.receive>", 4, "receive")
TEST = Frame(__file__, 7, "test")


def edge(outer: str, inner: str, *, at: Frame = CODE, module: str = "vmm.devices.some") -> Edge:
    nodes = Node(outer, Rank.DEVICE.name, module), Node(inner, "", module)
    return Edge(*nodes, outer, inner, "io", (at,), (CODE,), frozenset())


@pytest.mark.slow
def test_page_and_picture_are_up_to_date() -> None:
    assert docs_lock_order.page() == PAGE.read_text()
    assert docs_lock_order.picture() == (DOCS / PICTURE).read_text()


@pytest.mark.parametrize("policy", ["device", "bql"])
def test_the_tour_of_a_machine_is_silent_and_sees_what_is_on_the_page(tmp_path: Path, policy: Policy) -> None:
    seen = {(edge.outer.name, edge.inner.name) for edge in tour(tmp_path, policy) if of_this_program(edge)}
    assert seen == {arrow for arrow, policies in edges_of(PAGE.read_text()).items() if policy in policies}


def test_what_tests_plant_is_not_of_the_program() -> None:
    assert of_this_program(edge("A", "B"))
    assert of_this_program(edge("A", "B", at=DOOR))
    assert not of_this_program(edge("A", "B", at=TEST))
    assert not of_this_program(edge("A", "B", module="tests.locks.test_order"))
    assert not of_this_program(edge("A", "B", module="vmm.testing.fakes"))


def test_an_edge_that_the_page_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checker, "learned", lambda *_: None)  # the run's own recorder is not to hear of this
    recorder = Recorder()
    recorder.install()
    outer, inner = sorted(edges_of(PAGE.read_text()))[0]
    checker = Checker()
    checker.learned(edge(outer, inner))
    checker.learned(edge("Toy", "wait", at=TEST))
    recorder.check()
    checker.learned(edge("VirtioNew", "I/O callbacks"))
    with pytest.raises(LockOrderError, match="lacks VirtioNew -> I/O callbacks"):
        recorder.check()
    recorder.check()


def test_the_edges_of_a_page_are_read_back() -> None:
    text = docs_lock_order.EDGES + "| I/O callbacks | VirtioBlk | device, bql | `A.b` | `C.d` |\n"
    assert edges_of(text) == {("I/O callbacks", "VirtioBlk"): ["device", "bql"]}


def test_a_ring_cannot_be_drawn() -> None:
    nodes = [Node("A"), Node("B")]
    assert levels(nodes, [("A", "B")]) == {"A": 0, "B": 1}
    with pytest.raises(ValueError, match="go round"):
        levels(nodes, [("A", "B"), ("B", "A")])


def test_locks_of_one_rank_share_a_row() -> None:
    nodes = [Node("wait"), Node("big", "BQL"), Node("a", "DEVICE"), Node("b", "DEVICE"), Node("leaf", "LEAF")]
    assert levels(nodes, [("wait", "a"), ("wait", "big")]) == {"wait": 0, "big": 1, "a": 2, "b": 2, "leaf": 3}


def test_arrows_that_follow_from_others_are_left_out() -> None:
    assert layered.without_shortcuts([("A", "B"), ("B", "C"), ("A", "C")]) == {("A", "B"), ("B", "C")}


def test_classes_with_the_same_arrows_share_a_box() -> None:
    kinds = dict.fromkeys("abcd", 0)
    assert layered.alike("abcd", [("a", "b"), ("a", "c"), ("c", "d"), ("b", "d")], kinds) == [
        ("a",),
        ("b", "c"),
        ("d",),
    ]
