"""All exhibits, in the order of the catalogue: one module each, named by its entry.

`mutant` and `twin` hold their programs by entry, so that `python -m vmm.testing.schedule explore --depth 3
tests.museum.catalogue:mutant.M7` runs one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Final

from tests.museum.exhibit import Exhibit

EXHIBITS: Final[tuple[Exhibit, ...]] = tuple(
    import_module(f"tests.museum.{path.stem}").EXHIBIT for path in sorted(Path(__file__).parent.glob("[ms]??_*.py"))
)
SCHEDULED: Final = tuple(exhibit for exhibit in EXHIBITS if exhibit.program)

mutant: Final = SimpleNamespace(**{exhibit.id: exhibit.threads("mutant") for exhibit in SCHEDULED})
twin: Final = SimpleNamespace(**{exhibit.id: exhibit.threads("twin") for exhibit in SCHEDULED})
