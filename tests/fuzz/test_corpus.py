"""Two streams of accesses at once to each device: the cases that are kept, and planted defects that they find."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.fuzz.cases import DATA, NEXT, QUEUE_SIZE, SLOT, WRITE, Case, Maker, check, corpus, run, run_on_threads
from tests.fuzz.rigs import RIGS, BlkRig, RtcRig, UartRig, VirtioRig, device_classes, rig_classes
from vmm.devices.rtc_goldfish import GoldfishRtc
from vmm.devices.uart16550 import Uart16550
from vmm.devices.virtio.blk import VirtioBlk
from vmm.devices.virtio.device import NEEDS_RESET, VirtioDevice
from vmm.devices.virtio.mmio import VirtioMmio
from vmm.fabric.bus import Bus, BusFault
from vmm.fabric.dma import Dma, DmaFault
from vmm.locks import Locking, entry, lockfree
from vmm.testing.schedule import Kind
from vmm.testing.virtio_driver import REGISTERS

VIRTIO = [name for name, rig in RIGS.items() if issubclass(rig, VirtioRig)]  # type: ignore[arg-type]


def test_every_device_class_has_a_rig() -> None:
    assert device_classes() == set(rig_classes())


@pytest.mark.parametrize("rig", RIGS)
def test_what_reached_something_new_once_still_holds(rig: str) -> None:
    cases = corpus(rig)
    assert cases
    for case in cases:
        assert check(case)


@pytest.mark.parametrize("rig", RIGS)
def test_a_case_is_a_line_of_text_and_meets_the_same_every_time(rig: str) -> None:
    case = Maker(rig, random.Random(3)).case()
    assert Case.parse(case.text()) == case
    assert run(case)[0] == run(Case.parse(case.text()))[0]


@pytest.mark.parametrize("rig", RIGS)
def test_threads_that_run_when_they_like_break_nothing(rig: str) -> None:
    for case in corpus(rig)[:3]:
        run_on_threads(case)


# -- DMA into the device's own registers -------------------------------------------------------------------------------

OWN = (SLOT + REGISTERS["QueueNotify"], SLOT + REGISTERS["Status"])


@pytest.mark.parametrize("rig", VIRTIO)
@pytest.mark.parametrize("flags", [0, WRITE, 4, NEXT], ids=["read", "written", "indirect", "chained"])
def test_dma_to_the_devices_own_registers_is_refused_while_another_hart_uses_them(rig: str, flags: int) -> None:
    """The device neither enters itself nor keeps a lock: it needs a reset, and is as good as new after it."""
    queues = {"console": 2, "balloon": 3}.get(rig, 1)
    for address in OWN:
        attack = [("s", 1 << 28)]
        for queue in range(queues):
            attack += [("d", queue, 0, address, 16, flags, 0), ("a", queue, 0), ("n", queue)]
        check(Case(rig, 7, 1000, (tuple(attack), (("r", 0x70, 4), ("r", 0, 4), ("n", 0), ("r", 0x60, 4)))))


@pytest.mark.parametrize("ring", ["Desc", "Driver", "Device"])
@pytest.mark.parametrize("rig", VIRTIO)
def test_rings_in_the_devices_own_registers_are_refused(rig: str, ring: str) -> None:
    made = RIGS[rig](Locking(checked=True))
    assert isinstance(made, VirtioRig)
    driver = made.driver
    driver.negotiate()
    driver.add_queue(0, QUEUE_SIZE)
    driver.write("QueueReady", 0)
    driver.write("QueueNum", QUEUE_SIZE)
    for name in ("Desc", "Driver", "Device"):
        driver.write(f"Queue{name}Low", SLOT if name == ring else DATA)
        driver.write(f"Queue{name}High", 0)
    driver.write("QueueReady", 1)
    assert driver.read("QueueReady") == 0
    assert driver.read("Status") & NEEDS_RESET
    made.still_good()
    made.close()


# -- planted defects ---------------------------------------------------------------------------------------------------


def found(cases: Iterable[Case], schedules: int = 3) -> Kind | None:
    """How the first of the cases fails that does."""
    return next((failure.kind for case in cases if (failure := run(case, schedules)[1])), None)


def test_a_guard_that_counts_per_device_drops_accesses_of_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: set[int] = set()

    def guarded(self: VirtioMmio, offset: int, size: int, *, read: Callable[..., int] = VirtioMmio.read) -> int:
        if id(self) in inside:
            return 0
        inside.add(id(self))
        try:
            self.device._lock.acquire()  # what the access does takes its time
            self.device._lock.release()
            return read(self, offset, size)
        finally:
            inside.discard(id(self))

    reads = tuple(("r", offset, 4) for offset in (0, 4, 0xC)) * 3
    case = Case("rng", 2, 0, (reads, reads))
    assert not found([case])
    monkeypatch.setattr(VirtioMmio, "read", guarded)
    assert found([case], 30) is Kind.ASSERTION


def test_dma_that_reaches_the_bus_under_the_devices_lock_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Dma.write
    buses: list[Bus] = []

    def everywhere(self: Dma, gpa: int, data: Any) -> None:
        try:
            write(self, gpa, data)
        except DmaFault:
            buses[-1].write(gpa, 4, 0)

    made = Bus.__init__

    def remember(self: Bus) -> None:
        made(self)
        buses.append(self)

    def under_the_lock(self: VirtioDevice, index: int, most: int = 1 << 15) -> bool:
        with self._lock:
            return serve(self, index, most)

    serve = VirtioDevice.serve_some
    attack = (("s", 0), ("d", 0, 0, SLOT + REGISTERS["Status"], 16, WRITE, 0), ("a", 0, 0), ("n", 0))
    case = Case("rng", 1, 0, (attack, (("r", 0, 4),) * 4))
    assert not found([case])
    monkeypatch.setattr(Bus, "__init__", remember)
    monkeypatch.setattr(Dma, "write", everywhere)
    monkeypatch.setattr(VirtioDevice, "serve_some", under_the_lock)
    assert found([case]) is Kind.LOCK_RULE


class CarelessBlk(VirtioBlk):
    @entry
    def deliver(self) -> None:
        while self._finished:
            request = self._finished.popleft()
            self._complete(0, [(request.head, request.written)])


class ForgetfulUart(Uart16550):
    @entry
    def reset(self) -> None:
        self._state = self.State(scr=self._state.scr)
        self._sync()


class LooseRtc(GoldfishRtc):
    @lockfree("it is not")
    def read(self, offset: int, size: int) -> int:
        if size != 4 or offset >= self.span:
            raise BusFault("no such register")
        return self._reads[offset]()


_ASK = (("b", 0, 4), ("a", 0, 0), ("n", 0))  # to flush, which waits
TWICE = Case("blk", 61, 1000, ((("s", 0), *_ASK, ("s", 0), *_ASK), ()))
"""A request is under way when the driver resets the device and sets it up again. With that seed it soon matters."""


@pytest.mark.parametrize(
    ("rig", "mutant", "cases", "kind"),
    [
        (BlkRig, CarelessBlk, [TWICE], Kind.ASSERTION),
        (UartRig, ForgetfulUart, None, Kind.ASSERTION),
        (RtcRig, LooseRtc, None, Kind.LOCK_RULE),
    ],
    ids=["answers of before a reset", "state that outlives a reset", "a door without its lock"],
)
def test_a_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch, rig: type[Any], mutant: type[Any], cases: list[Case] | None, kind: Kind
) -> None:
    name = next(name for name, made in RIGS.items() if made is rig)
    cases = corpus(name) if cases is None else cases
    assert not found(cases[:4])
    monkeypatch.setitem(RIGS, name, type("Mutant", (rig,), {"cls": mutant}))
    assert found(cases, 400 // len(cases)) is kind
