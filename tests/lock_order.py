"""What all checked machines of one pytest run have seen of the order of locks and waits."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tools.docs_lock_order import PAGE, edges_of, of_this_program
from vmm.errors import LockOrderError
from vmm.lockcheck import Checker
from vmm.lockgraph import Edge, graph_as_json

WRITTEN = Path(__file__).parents[1] / "build" / "lock-order.json"


class Recorder:
    """Listens to every checker that is made after `install`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards `edges`
        self.edges: dict[tuple[str, str], Edge] = {}
        """The first sighting of each edge between classes of this program, by its own code: what tests plant is left
        out."""
        self._checked = 0

    def install(self) -> None:
        learned = Checker.learned

        def learn(checker: Checker, edge: Edge) -> None:
            learned(checker, edge)
            if of_this_program(edge):
                with self._lock:
                    self.edges.setdefault((edge.outer.name, edge.inner.name), edge)

        Checker.learned = learn  # type: ignore[method-assign]

    def check(self) -> None:
        """Raises LockOrderError for edges, seen since the last call, that the page does not have."""
        with self._lock:
            fresh = list(self.edges.items())[self._checked :]
            self._checked += len(fresh)
        page = edges_of(PAGE.read_text()) if fresh and PAGE.exists() else {}
        if wrong := [str(edge) for key, edge in fresh if key not in page]:
            raise LockOrderError(
                f"docs/{PAGE.name} lacks {', '.join(wrong)}: build/{WRITTEN.name} says where it was seen; if that is "
                "as it should be, have tests/lock_tour.py go there and run `make docs`"
            )

    def write(self) -> None:
        WRITTEN.parent.mkdir(exist_ok=True)
        edges = [edge for _, edge in sorted(self.edges.items())]
        WRITTEN.write_text(json.dumps(graph_as_json(edges), indent=1) + "\n")
