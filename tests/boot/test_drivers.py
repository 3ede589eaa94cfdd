"""The small virtio devices as Linux uses them, and what it says of its processors. All tests share one guest."""

from __future__ import annotations

import hashlib
import os
import random
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.boot.linux import MEM, REPLY_S, Shell, shell
from tests.machines import Machines, device, memory
from vmm.guests.debian import DebianGuest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("machines")]

PAGE = 4096


class Running(NamedTuple):
    machines: Machines
    run: Shell
    console: Path


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """In the place of `boot`: for the whole module."""
    machines = Machines(__name__)
    yield machines
    machines.stop()


@pytest.fixture(scope="module")
def running(machines: Machines, guest: DebianGuest, tmp_path_factory: pytest.TempPathFactory) -> Running:
    console = tmp_path_factory.mktemp("console") / "hvc"
    for end in ("in", "out"):
        os.mkfifo(f"{console}.{end}")
    machine = machines(shell(guest, smp=2, balloon=True, console=f"pipe:{console}", check_locks=True))
    return Running(machines, Shell(machine), console)


class Peer:
    """The host's end of the console's pipes."""

    def __init__(self, path: Path) -> None:
        self._to_guest = os.open(f"{path}.in", os.O_RDWR | os.O_NONBLOCK)
        self._from_guest = os.open(f"{path}.out", os.O_RDWR | os.O_NONBLOCK)
        self._seen = b""

    def close(self) -> None:
        os.close(self._to_guest)
        os.close(self._from_guest)

    def send(self, data: bytes) -> None:
        while data:
            _, ready, _ = select.select([], [self._to_guest], [], REPLY_S)
            assert ready, "the guest takes no input"
            data = data[os.write(self._to_guest, data) :]

    def until(self, end: bytes) -> bytes:
        """All that came, up to `end`."""
        deadline = time.monotonic() + REPLY_S
        while end not in self._seen:
            ready, _, _ = select.select([self._from_guest], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {end!r} in {self._seen[-200:]!r}"
            self._seen += os.read(self._from_guest, 1 << 16)
        got, _, self._seen = self._seen.partition(end)
        return got + end


@pytest.fixture
def peer(running: Running) -> Iterator[Peer]:
    peer = Peer(running.console)
    yield peer
    peer.close()


def test_every_device_has_its_driver(running: Running) -> None:
    drivers = running.run("for d in /sys/bus/virtio/devices/*; do basename $(readlink $d/driver); done").split()
    assert sorted(drivers) == ["virtio_balloon", "virtio_console", "virtio_rng"]
    assert running.run("nproc; cat /proc/interrupts | grep -c virtio").split()[0] == "2"


def test_both_harts_take_timer_interrupts_and_each_other_s_calls(running: Running) -> None:
    run = running.run

    def counts(row: str) -> list[int]:
        words = run(f"grep '{row}' /proc/interrupts").split()
        return [int(word) for word in words[1:] if word.isdigit()][:2]

    timers = counts("riscv-timer")
    run("for n in 0 1; do taskset -c $n sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done'; done")
    assert all(after > before for before, after in zip(timers, counts("riscv-timer"), strict=True))
    assert sum(counts("IPI0:")) > 0


def test_one_hart_can_be_stopped_and_started_again(running: Running) -> None:
    online = "/sys/devices/system/cpu/cpu1/online"
    assert running.run(f"echo 0 >{online}; nproc") == "1"
    assert running.run(f"echo 1 >{online}; nproc; taskset -c 1 echo alive").split() == ["2", "alive"]


def test_random_numbers_come_from_the_device(running: Running) -> None:
    run = running.run
    assert run("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    first, second = (run("dd if=/dev/hwrng bs=1k count=16 iflag=fullblock 2>/dev/null | sha256sum") for _ in range(2))
    assert first != second
    # random bytes do not compress
    assert int(run("dd if=/dev/hwrng bs=1k count=16 iflag=fullblock 2>/dev/null | gzip -c | wc -c")) > 16 << 10


def test_the_console_passes_lines_both_ways(running: Running, peer: Peer) -> None:
    with raw_console(running.run):
        running.run('(while read l; do echo "heard $l"; done <&3 >&3) & true')
        for line in (b"one", b"two", b"x" * 1000):
            peer.send(line + b"\n")
            assert peer.until(b"\n") == b"heard " + line + b"\n"
        running.run("kill $!")


def test_the_console_passes_much_both_ways(running: Running, peer: Peer) -> None:
    sent = random.Random(1).randbytes(200_000)
    with raw_console(running.run):
        running.run("(dd bs=1 count=200000 <&3 >/tmp/got 2>/dev/null) & true")
        peer.send(sent)
        digest = running.run("wait; sha256sum /tmp/got").split()[0]
        assert digest == hashlib.sha256(sent).hexdigest()
        # Linux waits for the host with interrupts off: somebody must read while it writes
        running.run.type("(cat /tmp/got; echo; echo over) >&3")
        assert peer.until(b"\nover\n") == sent + b"\nover\n"


@contextmanager
def raw_console(run: Shell) -> Iterator[None]:
    """As the shell's file descriptor 3: Linux puts the settings back when nobody has it open."""
    run("exec 3<>/dev/hvc0; stty raw -echo <&3")
    yield
    run("exec 3<&-")


def test_memory_goes_to_the_balloon_and_comes_back(running: Running) -> None:
    (machine,) = running.machines.all
    run, balloon, ram = running.run, device(machine, "balloon"), memory(machine).ram
    total = "$(sed -n 's/MemTotal: *//p' /proc/meminfo | cut -d ' ' -f 1)"
    before = int(run(f"echo {total}"))
    # memory that the guest has used and no longer needs: the host holds pages for it
    run("dd if=/dev/zero of=/tmp/much bs=1M count=150 2>/dev/null; rm /tmp/much; echo 3 >/proc/sys/vm/drop_caches")
    held = os.fstat(ram.fd).st_blocks * 512
    size = 256 << 20
    balloon.set_target(size)
    run(f"until [ {total} -le {before - (size >> 10)} ]; do usleep 20000; done")
    run("until [ $(sed -n 's/balloon_inflate //p' /proc/vmstat) -ge 65536 ]; do usleep 20000; done")
    assert balloon.given() == size
    assert os.fstat(ram.fd).st_blocks * 512 < held - (100 << 20)
    assert balloon.ask_statistics()
    run("true")
    assert balloon.memory()["total"] <= MEM - size
    balloon.set_target(0)
    run(f"until [ {total} -ge {before} ]; do usleep 20000; done")
    assert balloon.given() == 0
    run("dd if=/dev/zero of=/tmp/much bs=1M count=150 2>/dev/null; rm /tmp/much")
