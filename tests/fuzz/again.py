"""Run one case again and show how it fails: python -m tests.fuzz.again 'CASE'."""

from __future__ import annotations

import sys

from tests.fuzz.cases import Case, run

if __name__ == "__main__":
    met, failure = run(Case.parse(sys.argv[1]), 4)
    print(failure or f"it holds; {len(met)} situations")
    sys.exit(failure is not None)
