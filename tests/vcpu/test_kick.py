"""`kick`: from any thread, whatever the hart is doing, `run` returns soon; no kick is lost."""

from __future__ import annotations

import threading

import pytest

from tests.vcpu.bench import BASE, DATA, PATIENCE, Bench, until
from vmm.vcpu.layout import Exit

LOOPS = {
    "backward branch": "top: addi x5,x5,1; sd x5,0(x6); bne x5,x0,top",
    "jump to itself": "addi x5,x0,1; sd x5,0(x6); top: jal x0,top",
    "compressed jump": "addi x5,x0,1; sd x5,0(x6); top: c.j top",
    "indirect jump": "addi x5,x0,1; sd x5,0(x6); auipc x7,0; jalr x0,0(x7)",
    "across pages": "top: addi x5,x5,1; sd x5,0(x6); jal x0,4088; c.nop",
    "traps": "addi x5,x0,1; sd x5,0(x6); ecall",
    "waiting": "addi x5,x0,1; sd x5,0(x6); top: wfi; jal x0,top",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_hart_that_is_busy_comes_out(name: str, bench: Bench) -> None:
    bench.code(LOOPS[name])
    bench.code("jal x0,-4088", at=BASE + 8 + 4088)
    bench.hart.set_csr("mtvec", BASE + 8 + 0x100)
    bench.code("jal x0,0", at=BASE + 8 + 0x100)
    bench.hart.x[6] = DATA
    with bench.running() as exits:
        until(lambda: bench.get(DATA) != 0)
    assert exits == [Exit.KICK]


def test_kicks_are_served_one_run_each(bench: Bench) -> None:
    bench.code("top: addi x5,x5,1; jal x0,top")
    exits: list[int] = []

    def main() -> None:
        for _ in range(60):
            exits.append(bench.hart.run())

    thread = threading.Thread(target=main)
    thread.start()
    for n in range(60):
        bench.hart.kick()
        until(lambda n=n: len(exits) > n)  # type: ignore[misc]
    thread.join(PATIENCE)
    assert exits == [Exit.KICK] * 60


def test_a_kick_before_a_run_ends_it_before_it_began(bench: Bench) -> None:
    bench.code("addi x5,x5,1; jal x0,-4")
    bench.hart.kick()
    bench.hart.kick()
    assert bench.hart.run() == Exit.KICK
    assert bench.hart.x[5] == 0
    assert bench.hart.run(2) == Exit.BUDGET, "two kicks of a hart that is out are one"


def test_what_was_written_before_a_kick_is_there_after_it(bench: Bench) -> None:
    bench.code("top: addi x5,x5,1; sd x5,0(x6); jal x0,top")
    bench.hart.x[6] = DATA
    with bench.running():
        until(lambda: bench.get(DATA) > 1000)
    h = bench.hart
    assert bench.get(DATA) == h.x[5] - (h.pc == BASE + 4)


def test_a_kick_does_not_eat_an_interrupt(bench: Bench) -> None:
    bench.code("jal x0,0")
    bench.hart.set_csr("mtvec", BASE + 64)
    bench.hart.set_csr("mie", 1 << 11)
    bench.hart.set_csr("mstatus", 8)
    bench.code("jal x0,0", at=BASE + 64)
    for address, value in ((0xC00_0000 + 4 * 9, 1), (0xC00_2000, 1 << 9)):
        bench.set(DATA, value, 4)
        bench.hart.pc = BASE + 128
        bench.code("sw x5,0(x6)", at=BASE + 128)
        bench.hart.x[5], bench.hart.x[6] = value, address
        bench.hart.run(1)
    bench.hart.pc = BASE
    bench.backend.wire(9).set(True)
    bench.hart.kick()
    assert bench.hart.run() == Exit.KICK
    assert bench.hart.run(1) == Exit.BUDGET
    assert bench.hart.csr("mcause") == 1 << 63 | 11
