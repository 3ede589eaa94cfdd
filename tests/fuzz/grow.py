"""Make the corpus anew: python -m tests.fuzz.grow [--seed N] [--cases N] [RIG ...].

Draws cases, keeps those that meet a situation (an operation on a register or ring, in a state of the device) that none
before it has met, and writes the fewest it finds that meet them all. What was in the corpus before is tried first.
"""

from __future__ import annotations

import argparse
import random

from tests.fuzz.cases import CORPUS, Case, Maker, check, corpus
from tests.fuzz.rigs import RIGS

MOST = 8
"""Cases kept for one device: the replay of all of them is part of the quick tests."""


def grown(rig: str, seed: int, count: int) -> list[Case]:
    known = corpus(rig)
    maker = Maker(rig, random.Random(seed), known)
    situations: dict[Case, set[tuple[object, ...]]] = {}
    seen: set[tuple[object, ...]] = set()
    for number in range(len(known) + count):
        case = known[number] if number < len(known) else maker.case()
        met = check(case)
        if not met <= seen:
            seen |= met
            situations[case] = met
            maker.add(case)
    kept: list[Case] = []
    left = set(seen)
    while left and len(kept) < MOST:
        best = max(situations, key=lambda case: len(situations[case] & left))
        kept.append(best)
        left -= situations[best]
    print(f"{rig}: {len(seen)} situations, {len(seen) - len(left)} of them by {len(kept)} cases")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("rig", nargs="*", choices=[*RIGS, []])
    arguments = parser.parse_args()
    CORPUS.mkdir(exist_ok=True)
    for rig in arguments.rig or RIGS:
        kept = grown(rig, arguments.seed, arguments.cases)
        (CORPUS / f"{rig}.txt").write_text("".join(f"{case.text()}\n" for case in kept))


if __name__ == "__main__":
    main()
