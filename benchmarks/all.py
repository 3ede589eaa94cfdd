"""Run all benchmarks, one after the other, and write their results and the page that shows them.

By default into benchmarks/results and docs/benchmarks.md, which are committed: for figures worth that, let the host do
nothing else (--patience waits for such times, and repeats samples that were disturbed).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import page
from benchmarks.guests import ROOT, pythons


def main() -> int:
    head, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=rest.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=Path, metavar="DIR", help="write results and page there instead")
    parser.add_argument(
        "--only", action="append", choices=(*page.MODULES, "locks"), help="this one, or all of locks (again for more)"
    )
    parser.add_argument("--python", type=Path, action="append", metavar="PATH", help="measure on this Python (again)")
    parser.add_argument("--patience", default="0", metavar="SECONDS", help="for each benchmark: see its --help")
    parser.add_argument("--quick", action="store_true", help="a first impression")
    options = parser.parse_args()
    results = options.into or page.RESULTS
    builds = pythons(options.python)
    common = ["--patience", options.patience, *(["--quick"] if options.quick else [])]
    failed = []
    for module in page.MODULES:
        if options.only and not any(f"{module}.".startswith(f"{only}.") for only in options.only):
            continue
        print(f"== {module}", file=sys.stderr, flush=True)
        chosen = [argument for build in builds for argument in ("--python", str(build.path))]
        result = results.resolve() / f"{page.result_name(module)}.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", *chosen, *common, "--json", str(result)]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(module)
    page.write(results, results / "benchmarks.md" if options.into else page.PAGE)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
