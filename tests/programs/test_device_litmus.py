"""Litmus tests between a hart and a thread of the host that accesses guest memory as devices do (`vmm.fabric.dma`).

MP: one writes data, then a flag; who sees the flag sees the data. SB: each writes its own word, fences, and reads the
other's; not both may read the old value. A virtqueue is made of these two (virtio 1.2, 2.7.7.2, 2.7.10).
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.assembler import RAM_BASE, assemble
from tests.machine.files import elf
from tests.machines import Machines, bus, memory
from vmm.bql import Policy
from vmm.fabric.dma import Dma
from vmm.fabric.doorbell import Doorbell
from vmm.machine.config import Config
from vmm.machine.machine import Machine

#: A cache line each. TURN: the round that the host has begun; ANSWER: that the hart has ended.
SHARED = RAM_BASE + 0x1_0000
TURN, ANSWER, X, Y, DELAYS = (SHARED + 0x100 * n for n in range(5))
BELL = 0x5000_0000
NAMES = {"TURN": TURN, "ANSWER": ANSWER, "X": X, "Y": Y, "DELAYS": DELAYS, "BELL": BELL}
ROUNDS = 4000
DEADLINE_S = 60.0

#: s0 is the round. Before its part the hart idles for a while that differs from round to round.
_LOOP = """
            li    s1, TURN; li s2, ANSWER; li s3, X; li s4, Y; li s5, DELAYS; li s6, BELL; li s7, 2047
            li    s0, 1
    round:  ld    t0, 0(s1); bltu t0, s0, round
            fence r, rw
            and   t1, s0, s7; add t1, t1, s5; lbu t1, 0(t1); slli t1, t1, 3
    idle:   beqz  t1, part; addi t1, t1, -1; j idle
    part:   PART
            fence rw, w
            sd    t2, 8(s2)
            sd    t3, 16(s2)
            fence w, w
            sd    s0, 0(s2)
            addi  s0, s0, 1
            j     round
"""


def made(boot: Machines, folder: Path, part: str, seed: int, locking: Policy) -> Machine:
    code = assemble(_LOOP.replace("PART", part), **NAMES)
    delays = random.Random(seed).randbytes(2048)
    path = folder / "litmus.elf"
    path.write_bytes(elf([(RAM_BASE, code, len(code)), (SHARED, bytes(DELAYS - SHARED) + delays, 0x2000)]))
    return boot.make(Config(bios=path, locking=locking, check_locks=True))


def await_u64(machine: Machine, dma: Dma, address: int, value: int) -> None:
    """Spins: what is looked for comes in microseconds."""
    spins = 0
    while dma.u64(address) != value:
        spins += 1
        if spins % 10_000 == 0:
            assert machine.wait(0.001) is None
            assert spins < 50_000_000, "the hart does not answer"


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_mp_from_a_hart_to_a_device(boot: Machines, tmp_path: Path, seed: int, locking: Policy) -> None:
    """The hart writes data, then publishes it as a driver does avail.idx."""
    machine = made(boot, tmp_path, "sd s0, 0(s3); fence w, w; sh s0, 0(s4)", seed, locking)
    dma = memory(machine)
    machine.start()
    for turn in range(1, ROUNDS):
        dma.put_u64(TURN, turn)
        spins = 0
        while dma.u16(Y) != turn & 0xFFFF:
            spins += 1
            assert spins < 50_000_000, "the hart does not answer"
        assert int.from_bytes(dma.read(X, 8), "little") == turn
        await_u64(machine, dma, ANSWER, turn)


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_mp_from_a_device_to_a_hart(boot: Machines, tmp_path: Path, seed: int, locking: Policy) -> None:
    """The device copies data, then publishes it as it does used.idx; whenever the hart looks, the two fit."""
    machine = made(boot, tmp_path, "lhu t2, 0(s4); fence r, r; ld t3, 0(s3)", seed, locking)
    dma = memory(machine)
    machine.start()
    seen: Counter[int] = Counter()
    for turn in range(1, ROUNDS):
        dma.put_u64(TURN, turn)
        dma.write(X, turn.to_bytes(8, "little"))
        dma.put_u16(Y, turn)
        await_u64(machine, dma, ANSWER, turn)
        flag, data = dma.u64(ANSWER + 8), dma.u64(ANSWER + 16)
        assert flag in (turn, turn - 1)
        assert data >= flag, f"the hart saw flag {flag} and data {data}"
        seen[turn - flag] += 1
    assert seen[0], "the hart never saw the flag: this proves nothing"


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_sb_between_a_hart_and_a_device(boot: Machines, tmp_path: Path, seed: int, locking: Policy) -> None:
    """As a driver that publishes avail.idx and reads avail_event, against a device that does it the other way round."""
    machine = made(boot, tmp_path, "sd s0, 0(s3); fence rw, rw; ld t2, 0(s4)", seed, locking)
    dma = memory(machine)
    machine.start()
    seen: Counter[tuple[bool, bool]] = Counter()
    for turn in range(1, ROUNDS):
        dma.put_u64(TURN, turn)
        dma.put_u64(Y, turn)
        dma.fence()
        ours = dma.u64(X) == turn
        await_u64(machine, dma, ANSWER, turn)
        theirs = dma.u64(ANSWER + 8) == turn
        assert ours or theirs, f"both read the old value in round {turn}; so far {seen}"
        seen[ours, theirs] += 1
    assert seen[False, True], seen


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_who_hears_a_doorbell_sees_what_was_written_before_it_rang(
    boot: Machines, tmp_path: Path, seed: int, locking: Policy
) -> None:
    """The hart writes data and rings; the I/O thread answers, and writes back through the same memory."""
    part = "sd s0, 0(s3); fence w, o; sw s0, 0(s6); again: ld t2, 0(s4); bne t2, s0, again"
    machine = made(boot, tmp_path, part, seed, locking)
    dma, heard, over = memory(machine), [0], threading.Event()

    def answer() -> None:
        turn = dma.u64(X)
        heard.append(turn)
        if turn == ROUNDS:
            over.set()
            return
        dma.put_u64(TURN, turn + 1)
        dma.put_u64(Y, turn)

    bell = Doorbell(machine._board.io, answer, "litmus")
    bus(machine).doorbell(BELL, 4, None, bell.fd)
    machine.start()
    dma.put_u64(TURN, 1)
    assert over.wait(DEADLINE_S), f"it stopped in round {heard[-1]}"
    assert heard == list(range(ROUNDS + 1))
    machine._board.io.call_soon(bell.close)


@pytest.mark.parametrize("locking", ["device", "bql"])
def test_a_doorbell_that_is_rung_while_it_is_answered_is_answered_again(
    boot: Machines, tmp_path: Path, seed: int, locking: Policy
) -> None:
    """The hart does not wait: it counts up and rings. The last ring is heard, whatever the answers overlap with."""
    part = "sd s0, 0(s3); fence w, o; sw s0, 0(s6)"
    machine = made(boot, tmp_path, part, seed, locking)
    dma, over = memory(machine), threading.Event()
    heard = [0]

    def answer() -> None:
        heard.append(dma.u64(X))
        if heard[-1] == ROUNDS:
            over.set()

    bell = Doorbell(machine._board.io, answer, "litmus")
    bus(machine).doorbell(BELL, 4, None, bell.fd)
    machine.start()
    dma.put_u64(TURN, ROUNDS)
    assert over.wait(DEADLINE_S), f"after round {heard[-1]} nothing was heard"
    assert heard == sorted(heard)
    machine._board.io.call_soon(bell.close)
