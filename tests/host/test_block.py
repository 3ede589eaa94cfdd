from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmm.errors import ConfigError, HostError
from vmm.host import block
from vmm.host.block import BlockBackend, Overlay, RawImage, open_image
from vmm.testing.block_contract import check_block_backend, read, write

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (MIB // 256))
    return path


def _direct_works(directory: Path) -> bool:
    probe = directory / "probe"
    probe.write_bytes(bytes(4096))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


# -- any image ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"direct": True}, {"snapshot": True}, {"snapshot": True, "direct": True}])
def test_every_kind_of_image_keeps_the_contract(tmp_path: Path, options: dict[str, bool]) -> None:
    if options.get("direct") and not _direct_works(tmp_path):
        pytest.skip("the file system of the temporary directory has no O_DIRECT")

    def make(content: bytes) -> BlockBackend:
        path = tmp_path / "disk.img"
        path.write_bytes(content)
        return open_image(path, **options)

    check_block_backend(make)


def test_a_host_without_fallocate_gets_its_zeroes_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: block.HostFile, verb: str, mode: int, offset: int, length: int) -> bool:
        return False

    monkeypatch.setattr(block.HostFile, "_fallocate", refuse)
    monkeypatch.setattr(block, "ZEROES", 4096)

    def make(content: bytes) -> BlockBackend:
        path = tmp_path / "disk.img"
        path.write_bytes(content)
        return open_image(path)

    check_block_backend(make)


def test_a_host_that_transfers_in_small_parts_is_asked_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev

    def shortened(buffers: list[memoryview]) -> list[memoryview]:
        first = next(buffer for buffer in buffers if len(buffer))
        return [first[:700]]

    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at, flags=0: preadv(fd, shortened(buffers), at, flags))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at, flags=0: pwritev(fd, shortened(buffers), at, flags))
    disk = open_image(image)
    data = os.urandom(4096)
    write(disk, 512, data, 1000, 0, 3096)
    assert read(disk, 512, 90, 4006) == data
    disk.close()


def test_discarding_gives_storage_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB)
    before = path.stat().st_blocks
    disk = open_image(path)
    disk.discard(0, MIB)
    disk.close()
    assert path.stat().st_blocks < before
    assert path.stat().st_size == MIB


def test_a_file_that_shrinks_below_the_machine_is_a_host_error(image: Path) -> None:
    disk = open_image(image)
    os.truncate(image, 512)
    with pytest.raises(HostError, match="shorter"):
        read(disk, 0, 4096)
    assert not disk.read_now([memoryview(bytearray(4096))], 0)
    assert read(disk, 0, 512) == bytes(range(256)) * 2
    disk.close()


def test_a_readonly_image_refuses_writes_and_needs_no_flush(image: Path) -> None:
    image.chmod(0o400)
    disk = open_image(image, readonly=True)
    assert disk.readonly
    disk.flush()
    with pytest.raises(HostError, match="write at 0"):
        write(disk, 0, bytes(512))
    disk.close()


def test_durable_writes_reach_the_file(image: Path) -> None:
    disk = open_image(image)
    write(disk, 0, b"d" * 512, durable=True)
    assert image.read_bytes()[:512] == b"d" * 512
    disk.close()


def test_a_file_system_that_cannot_tell_is_asked_once(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unsupported(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        asked.append(flags)
        raise OSError(95, "Operation not supported")

    disk = open_image(image)
    monkeypatch.setattr(os, "preadv", unsupported)
    monkeypatch.setattr(os, "pwritev", unsupported)
    for _ in range(3):
        assert not disk.read_now([memoryview(bytearray(512))], 0)
        assert not disk.write_now([memoryview(bytearray(512))], 0)
    assert asked == [os.RWF_NOWAIT] * 2
    monkeypatch.undo()
    disk.close()


def test_data_that_is_not_in_memory_makes_the_quick_read_give_up(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    disk = open_image(image)
    monkeypatch.setattr(os, "preadv", busy)
    monkeypatch.setattr(os, "pwritev", busy)
    assert not disk.read_now([memoryview(bytearray(512))], 0)
    assert not disk.write_now([memoryview(bytearray(512))], 0)
    monkeypatch.undo()
    disk.close()


@pytest.mark.parametrize("verb", ["read", "read_now", "write", "write_now"])
def test_a_host_that_fails_is_named_with_the_file_and_the_place(
    image: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def fail(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        raise OSError(5, "Input/output error")

    disk = open_image(image)
    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(HostError, match=rf"disk\.img: {verb.split('_')[0]} at 1024: Input/output error"):
        getattr(disk, verb)([memoryview(bytearray(512))], 1024)
    monkeypatch.undo()
    disk.close()


def test_a_failing_flush_is_a_host_error(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    disk = open_image(image)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(HostError, match="flush"):
        disk.flush()
    disk.close()


def test_zeroing_a_readonly_file_is_a_host_error(image: Path) -> None:
    disk = open_image(image, readonly=True)
    with pytest.raises(HostError, match="discard at 512"):
        disk.discard(512, 512)
    disk.close()


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_leaves_the_image_and_the_directory_as_they_are(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = image.read_bytes()
    disk = open_image(image, snapshot=True)
    write(disk, 512, b"s" * 4096)
    disk.discard(65536, 65536)
    assert read(disk, 512, 4096) == b"s" * 4096
    disk.close()
    assert image.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [image.name]


def test_two_snapshots_of_one_image_do_not_see_each_other(image: Path) -> None:
    one, two = open_image(image, snapshot=True), open_image(image, snapshot=True)
    write(one, 0, b"1" * 512)
    write(two, 512, b"2" * 512)
    assert read(one, 0, 1024) == b"1" * 512 + bytes(range(256)) * 2
    assert read(two, 0, 1024) == bytes(range(256)) * 2 + b"2" * 512
    one.close()
    two.close()


def test_a_readonly_snapshot_is_just_readonly(image: Path) -> None:
    disk = open_image(image, readonly=True, snapshot=True)
    assert isinstance(disk, RawImage)
    assert disk.readonly
    disk.close()


def test_writers_of_neighbouring_sectors_do_not_undo_each_other(image: Path) -> None:
    disk = open_image(image, snapshot=True)
    assert isinstance(disk, Overlay)
    start = threading.Barrier(4)

    def fill(lane: int) -> None:
        start.wait()
        for sector in range(lane, 512, 4):
            write(disk, sector * 512, bytes([lane + 1]) * 512)

    threads = [threading.Thread(target=fill, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(disk, 0, 512 * 512) == b"".join(bytes([sector % 4 + 1]) * 512 for sector in range(512))
    disk.close()


def test_a_snapshot_without_room_says_where_it_wanted_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    with pytest.raises(ConfigError, match=r"/nonexistent.*set TMPDIR"):
        open_image(image, snapshot=True)
    open_image(image).close()


# -- locks -------------------------------------------------------------------------------------------------------------


def test_an_image_opened_twice_for_writing_is_refused(image: Path) -> None:
    disk = open_image(image)
    for options in ({}, {"readonly": True}, {"snapshot": True}):
        with pytest.raises(ConfigError, match=r"disk\.img: in use .*by this or another machine"):
            open_image(image, **options)
    disk.close()
    open_image(image).close()


def test_an_image_being_read_is_not_opened_for_writing(image: Path) -> None:
    one, two = open_image(image, readonly=True), open_image(image, snapshot=True)
    with pytest.raises(ConfigError, match="in use"):
        open_image(image)
    one.close()
    two.close()
    open_image(image).close()


def test_another_process_is_kept_out_too(image: Path) -> None:
    disk = open_image(image)
    code = "import sys; from vmm.host.block import open_image; open_image(sys.argv[1])"
    found = subprocess.run([sys.executable, "-c", code, str(image)], capture_output=True, text=True)
    assert "in use by this or another machine" in found.stderr
    disk.close()


def test_closing_some_other_handle_of_the_file_does_not_give_up_the_lock(image: Path) -> None:
    disk = open_image(image)
    image.read_bytes()  # with POSIX record locks this open and close would have released it
    with pytest.raises(ConfigError, match="in use"):
        open_image(image)
    disk.close()


# -- images that cannot be disks ---------------------------------------------------------------------------------------


def _one_line(path: Path, **options: bool) -> str:
    with pytest.raises(ConfigError) as caught:
        open_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    assert "No such file" in _one_line(tmp_path / "no.img")


def test_a_directory_or_a_pipe_is_no_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "must be a file or a block device" in _one_line(tmp_path)
    assert "must be a file or a block device" in _one_line(tmp_path / "pipe")


def test_an_empty_image_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    path.touch()
    assert "truncate -s 1G" in _one_line(path)


def test_an_image_of_a_broken_size_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(1000))
    assert "truncate -s %512" in _one_line(path)


@pytest.mark.parametrize(("kind", "at", "magic"), [(kind, at, magic) for at, magic, kind in block.FOREIGN])
def test_an_image_of_another_format_is_refused_with_the_remedy(
    tmp_path: Path, kind: str, at: int, magic: bytes
) -> None:
    path = tmp_path / "foreign.img"
    path.write_bytes((bytes(at) + magic).ljust(512, b"\0"))
    assert f"{kind} image, not a raw one; convert it: qemu-img convert -O raw" in _one_line(path, readonly=True)


@pytest.mark.parametrize("number", [13, 30, 16, 22, 5])
def test_an_image_that_does_not_open_says_what_the_host_said(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    assert os.strerror(number) in _one_line(image)


def test_a_file_system_without_locks_is_refused(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, argument: bytes) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(block.fcntl, "fcntl", refuse)
    assert "cannot be locked: No locks available" in _one_line(image)


# -- block devices -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices")
def test_a_block_device_is_a_disk(image: Path) -> None:
    attach = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if attach.returncode:
        pytest.skip(f"losetup: {attach.stderr}")
    device = attach.stdout.strip()
    try:
        disk = open_image(device)
        assert (disk.size, disk.block_size) == (MIB, 512)
        write(disk, 4096, b"b" * 4096)
        disk.write_zeroes(8192, 4096, unmap=True)
        disk.flush()
        assert read(disk, 4096, 8192) == b"b" * 4096 + bytes(4096)
        with pytest.raises(ConfigError, match=r"in use|busy"):
            open_image(device)
        disk.close()
        with open(device, "rb") as raw:
            raw.seek(4096)
            assert raw.read(8192) == b"b" * 4096 + bytes(4096)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
