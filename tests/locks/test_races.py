"""An access to what a device keeps, without the lock that it is kept under, is found in every device of the board."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from tests.machine.fake_harts import FakeHarts
from tests.machine.files import image
from vmm.devices.virtio.device import VirtioDevice
from vmm.errors import InternalError, LockOrderError
from vmm.fabric.bus import BusFault
from vmm.locks import Device, Kit, Locking, entry, lockfree
from vmm.machine import virt
from vmm.machine.config import Config, Drive
from vmm.machine.virt import Board
from vmm.state import DeviceState, field_types

C = TypeVar("C")
POLICIES = ("device", "bql")


def concrete(cls: type[Device] = Device) -> Iterator[type[Device]]:
    """The device classes of the package from which no other of it is derived; not their variants."""
    ours = [each for each in cls.__subclasses__() if each.__module__.startswith("vmm.")]
    derived = [each for each in ours if named(each) != named(cls)]
    for each in derived:
        yield from concrete(each)
    if not derived and cls.__module__.startswith("vmm."):
        yield cls


def named(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


CLASSES = sorted({named(cls) for cls in concrete()})


def elsewhere(access: Callable[[], object]) -> object:
    """Make an access on a second thread; raises what it raised."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(access())
        except LockOrderError as error:
            result.append(error)

    thread = threading.Thread(target=run, name="intruder")
    thread.start()
    thread.join()
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


# -- the planted mistakes ----------------------------------------------------------------------------------------------


@functools.cache
def planted(cls: type[Device]) -> type[Device]:
    """A subclass with public methods that forget the lock."""

    @lockfree("planted: it takes the lock to get hold of the state, and uses it later")
    def read_later(self: Any, which: Callable[[Any], Any], name: str) -> object:
        with self._lock:
            kept = which(self)
        return getattr(kept, name)

    @lockfree("planted: it takes the lock to get hold of the state, and uses it later")
    def write_later(self: Any, which: Callable[[Any], Any], name: str) -> None:
        with self._lock:
            kept = which(self)
            value = getattr(kept, name)
        setattr(kept, name, value)

    @lockfree("planted: it takes no lock")
    def read_reference(self: Any) -> object:
        return self._state

    @lockfree("planted: it takes no lock")
    def write_reference(self: Any) -> None:
        with self._lock:
            fresh = self.State()
        self._state = fresh

    body = {each.__name__: each for each in (read_later, write_later, read_reference, write_reference)}
    more = {"lock_class": cls.lock_class, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), body | more)


class Planter(Kit):
    """Makes every device with the planted mistakes."""

    def variant(self, cls: C) -> C:
        return cast(C, planted(cast(Any, cls)))


class Everything:
    """A checked board on fake harts, with each device that it can have."""

    def __init__(self, folder: Path, policy: str, kit: Kit) -> None:
        kernel, disk = folder / "Image", folder / "disk.img"
        kernel.write_bytes(image())
        disk.write_bytes(bytes(1 << 20))
        config = Config(
            kernel=kernel, mem=64 << 20, smp=2, locking=policy, drive=(Drive(disk),), console="null", balloon=True
        )
        self.locking = Locking(config.locking, checked=True, kit=kit)
        self.failures: list[object] = []
        board = self.board = Board(
            config,
            locking=self.locking,
            make_harts=FakeHarts,
            ended=self.failures.append,
            restart=lambda: None,
            commands={},
        )
        self.devices: list[Any] = [board.finisher, board.rtc, board.uart, board.hart_states, *board.virtio]

    @property
    def reports(self) -> list[Any]:
        assert self.locking.checker is not None
        return self.locking.checker.reports

    def device(self, name: tuple[str, str]) -> Any:
        return next(device for device in self.devices if named(type(device)) == name)


@pytest.fixture(params=POLICIES, scope="module")
def mistaken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    every = Everything(tmp_path_factory.mktemp("mistaken"), request.param, Planter())
    yield every
    every.board.stop()


@pytest.fixture(params=POLICIES)
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Everything]:
    every = Everything(tmp_path, request.param, Kit())
    yield every
    every.board.stop()
    assert every.reports == every.failures == []


def states(device: Any) -> Iterator[tuple[str, Callable[[Any], Any], list[str]]]:
    """Each state that a device keeps: its prefix in reports, how to get hold of it under the lock, its fields."""
    yield "", lambda device: device._state, list(field_types(type(device).State))
    if isinstance(device, VirtioDevice):
        yield "StateOfQueue.", lambda device: device._queues[0].state, list(field_types(type(device).StateOfQueue))


WHO = {"same thread": lambda access: access(), "second thread": elsewhere}


@pytest.mark.parametrize("who", WHO.values(), ids=WHO)
@pytest.mark.parametrize("name", CLASSES, ids=[name for _, name in CLASSES])
def test_an_access_without_the_lock_is_found_in_every_device(
    mistaken: Everything, name: tuple[str, str], who: Callable[[Callable[[], object]], object]
) -> None:
    device = mistaken.device(name)
    for prefix, which, fields in states(device):
        for attribute in fields:
            label = f"{device.name}.{prefix}{attribute}"
            for verb, mistake in (("reads", device.read_later), ("writes", device.write_later)):
                with pytest.raises(LockOrderError, match=f"{verb} {label} without the lock of {device.name}") as caught:
                    who(lambda mistake=mistake, which=which, name=attribute: mistake(which, name))
                assert mistake.__name__ in str(caught.value)
    for verb, mistake in (("reads", device.read_reference), ("writes", device.write_reference)):
        with pytest.raises(LockOrderError, match=f"{verb} {device.name}._state without the lock of {device.name}"):
            who(mistake)
    mistaken.reports.clear()


def test_every_device_class_of_the_package_is_on_the_board(mistaken: Everything) -> None:
    assert {named(type(device)) for device in mistaken.devices} == set(CLASSES)
    assert len(CLASSES) >= 8


def test_devices_without_a_mistake_are_silent(board: Everything) -> None:
    every = board.board
    every.start()
    hart = every.harts
    for base, size, width in [
        (virt.FINISHER.base, 4, 4),
        (virt.RTC.base, 0x20, 4),
        (virt.UART.base, 8, 1),
        *((window.base, 0x110, 4) for window in virt.VIRTIO[:4]),
    ]:
        for offset in range(0, size, width):
            for value in (0, 1, 3):
                try:
                    hart.load(base + offset, width)
                    hart.store(base + offset, value, width)
                except BusFault:
                    pass
    for device in board.devices:
        if hasattr(device, "save"):
            device.restore(device.save())
    every.pause()
    every.resume()
    every.pause()
    every.reset()
    every.resume()
    every.statistics()


def test_no_device_keeps_state_that_is_not_watched(board: Everything) -> None:
    for device in board.devices:
        device.restore(device.save())
        device.reset()
    reached: dict[int, object] = {}
    seek: list[object] = list(board.devices)
    while seek:
        one = seek.pop()
        if id(one) not in reached:
            reached[id(one)] = one
            if isinstance(one, (Device, DeviceState, list, tuple, dict)) or type(one).__module__.startswith(
                "vmm.devices"
            ):
                seek += gc.get_referents(one)
    found = [one for one in reached.values() if isinstance(one, DeviceState)]
    assert len(found) >= len(board.devices)
    assert [one for one in found if not hasattr(one, "_guard")] == []


# -- what a report says, and the other kinds of mistakes ---------------------------------------------------------------


@dataclass(slots=True)
class ModelState(DeviceState):
    value: int = 0
    fifo: list[int] = field(default_factory=list)
    space: bytearray = field(default_factory=lambda: bytearray(4))


class Model(Device):
    """A device whose doors run whatever a test hands them."""

    State = ModelState
    lockfree_fields = {"_hits": "a counter that only grows"}  # noqa: RUF012

    def __init__(self, name: str, locking: Locking) -> None:
        super().__init__(name, locking)
        self._state = self.State()
        self._state.value = 1
        self._hits = self._home = self._shared = 0
        self._epochs = [0]

    @entry
    def run(self, inside: Callable[[Model], object]) -> object:
        return inside(self)

    @lockfree("runs what a test hands it without the lock")
    def run_free(self, inside: Callable[[Model], object]) -> object:
        return inside(self)

    @entry
    def reset(self) -> None:
        self._state = self.State()
        self._epochs = [self._epochs[0] + 1]

    @lockfree("planted: it forgets the lock that `reset` takes")
    def stale(self, epoch: int) -> bool:
        return self._epochs[0] != epoch

    @entry
    def count(self) -> None:
        self._hits += 1

    @lockfree("planted: state of one thread, the first that calls this")
    def at_home(self) -> None:
        self._home += 1

    @entry
    def share(self) -> None:
        self._shared += 1

    @lockfree("planted: it forgets the lock that `share` takes")
    def share_free(self) -> int:
        return self._shared


@pytest.fixture(params=POLICIES)
def locking(request: pytest.FixtureRequest) -> Locking:
    return Locking(request.param, checked=True)


@pytest.fixture
def model(locking: Locking) -> Model:
    return locking.make(Model, "model0")


def put(model: Model) -> None:
    model._state.value = 7


def kept(model: Model) -> ModelState:
    return cast(ModelState, model.run(lambda model: model._state))


def test_the_report_has_both_accesses_with_stack_and_thread(model: Model) -> None:
    elsewhere(lambda: model.run(put))
    state = kept(model)
    with pytest.raises(LockOrderError) as caught:
        assert state.value
    report = str(caught.value)
    assert report.startswith("[race] thread MainThread reads model0.value without the lock of model0 (class Model)")
    here, there = report.split("model0.value was last written with the lock at, by intruder:")
    assert "assert state.value" in here
    assert "model._state.value = 7" in there
    assert "elsewhere(lambda: model.run(put))" in there
    assert "racecheck.py" not in report
    assert "lockcheck.py" not in report


def test_a_write_is_reported_with_the_last_access_of_any_kind(model: Model) -> None:
    model.run(put)
    model.run(lambda model: model._state.value)
    state = kept(model)
    with pytest.raises(LockOrderError, match=r"writes model0\.value (.|\n)*value was last read with the lock at:"):
        state.value = 8


def test_the_lock_of_another_device_does_not_help(model: Model, locking: Locking) -> None:
    other = locking.make(Model, "model1")
    state = kept(model)
    with locking.outside_guest, pytest.raises(LockOrderError, match=r"reads model0\.value without the lock of model0"):
        other.run(lambda _: state.value)


def test_a_constructor_needs_no_lock(model: Model) -> None:
    assert kept(model) is kept(model)
    assert model.run(lambda model: model._state.value) == 1


def test_a_thread_that_gets_to_see_a_device_under_construction_does(locking: Locking) -> None:
    class Hasty(Model):
        def __init__(self, name: str, locking: Locking) -> None:
            super().__init__(name, locking)
            elsewhere(lambda: self._state.value)

    with pytest.raises(LockOrderError, match=r"thread intruder reads hasty0\._state without the lock"):
        locking.make(Hasty, "hasty0")


def test_state_kept_across_a_reset_is_nobodys(model: Model) -> None:
    state = kept(model)
    model.reset()
    with pytest.raises(LockOrderError) as caught:
        model.run(lambda _: state.value)
    report = str(caught.value)
    assert "reads model0.value in state that model0 (class Model) has replaced" in report
    assert "self._state = self.State()" in report.split("it was replaced at")[1]


def test_state_that_is_not_made_by_the_devices_own_factory_is_refused(model: Model) -> None:
    def replace(model: Model) -> None:
        model._state = ModelState()

    with pytest.raises(InternalError, match=r"model0: its state must be made by self\.State\(\), not by ModelState"):
        model.run(replace)


CONTAINER_ACCESSES: dict[str, tuple[str, Callable[[Any, Any], object]]] = {
    "append": ("writes model0.fifo", lambda fifo, space: fifo.append(1)),
    "set an element": ("writes model0.fifo", lambda fifo, space: fifo.__setitem__(0, 1)),
    "extend in place": ("writes model0.fifo", lambda fifo, space: fifo.__iadd__([1])),
    "length": ("reads model0.fifo", lambda fifo, space: len(fifo)),
    "element": ("reads model0.fifo", lambda fifo, space: fifo[0]),
    "iterate": ("reads model0.fifo", lambda fifo, space: max(fifo)),
    "truth": ("reads model0.fifo", lambda fifo, space: bool(fifo)),
    "compare": ("reads model0.fifo", lambda fifo, space: fifo == [1]),
    "copy": ("reads model0.fifo", lambda fifo, space: fifo.copy()),
    "write bytes": ("writes model0.space", lambda fifo, space: space.__setitem__(slice(0, 2), b"ab")),
    "bytes": ("reads model0.space", lambda fifo, space: bytes(space)),
    "decode": ("reads model0.space", lambda fifo, space: space.decode()),
}


@pytest.mark.parametrize(("what", "access"), CONTAINER_ACCESSES.values(), ids=CONTAINER_ACCESSES)
def test_a_container_of_the_state_is_watched_itself(
    model: Model, what: str, access: Callable[[Any, Any], object]
) -> None:
    def fill(model: Model) -> tuple[Any, Any]:
        model._state.fifo.append(1)
        return model._state.fifo, model._state.space

    fifo, space = cast(tuple[Any, Any], model.run(fill))
    model.run(lambda _: access(fifo, space))
    with pytest.raises(LockOrderError, match=f"{what} without the lock of model0"):
        access(fifo, space)


def test_wiring_may_belong_to_one_thread(model: Model, locking: Locking) -> None:
    for _ in range(2):
        model.at_home()
    with pytest.raises(LockOrderError, match=r"writes model0\._home of model0 .*, which threads share with no lock"):
        elsewhere(lambda: [model.at_home() for _ in range(2)])


def test_wiring_that_threads_share_under_the_lock_needs_it_everywhere(model: Model, locking: Locking) -> None:
    model.share()
    elsewhere(model.share)
    with pytest.raises(LockOrderError) as caught:
        model.share_free()
    report = str(caught.value)
    assert "reads model0._shared of model0 (class Model), which threads share with no lock" in report
    assert "model0._shared was last written with the lock at, by intruder:" in report


def test_a_list_of_wiring_counts_as_written_by_whoever_gets_hold_of_it(model: Model) -> None:
    assert not model.stale(0)
    with pytest.raises(LockOrderError, match=r"reads model0\._epochs of model0 .*, which threads share with no lock"):
        elsewhere(lambda: model.stale(0))


def test_what_a_class_declares_to_be_lock_free_is_exempt(model: Model, locking: Locking) -> None:
    model.count()
    elsewhere(model.count)
    assert elsewhere(lambda: model._hits) == 2
    assert locking.checker is not None
    assert locking.checker.reports == []


def test_each_access_is_a_point_of_the_kit_before_it_happens() -> None:
    class Points(Kit):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def point(self, what: str) -> None:
            self.seen.append(what)

    kit = Points()
    model = Locking(checked=True, kit=kit).make(Model, "model0")
    kit.seen.clear()
    model.run(put)
    model.run(lambda model: model._state.fifo.append(3))
    assert kit.seen == [
        "model0._state read",
        "model0.value write",
        "model0._state read",
        "model0.fifo read",
        "model0.fifo write",
    ]


def test_the_plain_variant_is_the_class_as_written() -> None:
    model = Locking().make(Model, "model0")
    assert type(model) is Model
    assert type(model._state) is ModelState
    assert type(model._state.fifo) is list
