"""VCPUs in schedules: real guest code by budgets, and scripts that take exits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vcpu.bench import BASE, DATA, DEVICE, Bench
from vmm.testing.schedule import Kind, Scheduler, assert_holds, explore
from vmm.testing.schedule.vcpus import BudgetedVcpu
from vmm.vcpu.layout import Exit

TURNS = 3
LOADS_AND_STORES = "loop: ld x5,0(x6); c.addi x5,1; sd x5,0(x6); c.addi x7,-1; bne x7,x0,loop; sd x0,0(x8)"
ATOMICS = "loop: amoadd.d x5,x9,(x6); c.addi x7,-1; bne x7,x0,loop; sd x0,0(x8)"


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench(2) as bench:
        yield bench


def counting(bench: Bench, text: str) -> Callable[[Scheduler], None]:
    """Two harts count in one word of memory, and say by a store to a device that they are done."""
    bench.code(text)

    def program(s: Scheduler) -> None:
        bench.set(DATA, 0)
        for hart in bench.harts:
            hart.reset()
            hart.pc = BASE
            hart.x[6], hart.x[7], hart.x[8], hart.x[9] = DATA, TURNS, DEVICE, 1
            vcpu = BudgetedVcpu(s, hart, 1)

            def run(vcpu: BudgetedVcpu = vcpu) -> None:
                assert vcpu.run() == Exit.MMIO_WRITE

            s.spawn(f"vcpu{hart.index}", run)

        def end() -> None:
            assert bench.get(DATA) == 2 * TURNS

        s.check(end)

    return program


@pytest.mark.parametrize("strategy", ["random", "pct"])
def test_guest_code_that_loses_a_count_is_found_between_two_instructions(bench: Bench, strategy: str) -> None:
    failure = explore(counting(bench, LOADS_AND_STORES), strategy=strategy, schedules=100).failure
    assert failure
    assert failure.kind is Kind.ASSERTION
    assert len(failure.trace.switches) == 1


def test_guest_code_with_atomic_instructions_loses_none(bench: Bench) -> None:
    assert_holds(counting(bench, ATOMICS), strategy="random", schedules=100)


_STEPS = """
import hashlib
from tests.schedules import devices, machines
from vmm.testing.schedule.core import Scheduler
from vmm.testing.schedule.crew import Crew
from vmm.testing.schedule.explore import made_strategy
from vmm.testing.schedule.trace import steps_text

crew = Crew()
for program in (devices.uart_receive, devices.blk_requests, machines.harts_come_and_go, machines.unplug_and_access):
    for strategy in ("random", "pct"):
        scheduler = Scheduler(made_strategy(strategy, 3, 5, 200), crew)
        assert scheduler.run(program) is None
        print(program.__name__, strategy, hashlib.sha256(steps_text(scheduler).encode()).hexdigest())
"""


def test_no_process_takes_other_steps_than_another() -> None:
    """Neither by the order of a set, nor by a descriptor's number, an ident or the time; on any Python that is here."""
    root = Path(__file__).parents[2]
    pythons = [sys.executable, *map(str, sorted(root.glob(".venv*/bin/python")))]
    children = []
    for seed, python in enumerate((sys.executable, *dict.fromkeys(pythons))):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(root)}
        command = [python, "-c", _STEPS]
        children.append(subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True))
    answers = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children)
    assert answers[0].count("\n") == 8
    assert len(set(answers)) == 1
