"""Disks in the hands of Linux: what is written stays, what may not be written does not change."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.boot.linux import INIT_S, POWER_OFF, REPLY_S, Shell, script, shell
from tests.machines import Machines
from vmm.guests.debian import DebianGuest
from vmm.machine.config import Drive

SIZE = 8 << 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def image(path: Path, seed: int, size: int = SIZE) -> str:
    """A disk of random bytes; returns their SHA-256."""
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def test_a_file_system_keeps_its_files_over_a_reboot_and_in_a_new_machine(
    boot: Machines, guest: DebianGuest, tmp_path: Path
) -> None:
    disk = Drive(tmp_path / "disk.img")
    disk.file.write_bytes(bytes(SIZE))
    machine = boot(shell(guest, smp=2, drive=(disk,), check_locks=True))
    run = Shell(machine)
    run("mkdosfs /dev/vda && mount -t vfat /dev/vda /mnt")
    digest = run("dd if=/dev/urandom bs=64k count=64 2>/dev/null | tee /mnt/file | sha256sum && sync").split()[0]
    run.type("reboot -f")
    machine.serial.expect("Linux version", INIT_S)
    run = Shell(machine)
    assert run("mount -t vfat /dev/vda /mnt && sha256sum /mnt/file").split()[0] == digest
    run.type("umount /mnt; poweroff -f")
    assert machine.wait(REPLY_S) == POWER_OFF

    check = f"mount -t vfat -o ro /dev/vda /mnt && sha256sum /mnt/file | grep {digest}"
    assert boot(script(guest, check, drive=(disk,))).wait(INIT_S + REPLY_S) == POWER_OFF


def test_raw_disks_are_written_read_only_or_dropped_as_their_options_say(
    boot: Machines, guest: DebianGuest, tmp_path: Path
) -> None:
    plain, fixed, dropped = (tmp_path / name for name in ("plain", "fixed", "dropped"))
    digests = {path: image(path, seed) for seed, path in enumerate((plain, fixed, dropped))}
    drives = (Drive(plain, id="the-plain-one"), Drive(fixed, readonly=True), Drive(dropped, snapshot=True))
    machine = boot(shell(guest, smp=2, drive=drives, locking="bql"))
    run = Shell(machine)
    assert run("cat /sys/block/vda/serial; echo; cat /sys/block/vd?/ro /sys/block/vd?/size").split() == [
        "the-plain-one",
        *("0", "1", "0"),
        *3 * [str(SIZE // 512)],
    ]
    for name, path in zip(("vda", "vdb", "vdc"), (plain, fixed, dropped), strict=True):
        assert run(f"sha256sum /dev/{name}").split()[0] == digests[path]

    # in direct and in cached writes, of sizes and at places that are not a page's
    written = run(
        "( dd if=/dev/urandom of=/tmp/data bs=1000 count=3000;"
        "for disk in vda vdc; do dd if=/tmp/data of=/dev/$disk bs=1000 seek=1000 conv=notrunc,fsync; "
        "dd if=/tmp/data of=/dev/$disk bs=4k count=256 seek=1000 conv=notrunc oflag=direct; done;"
        "sync; echo 3 >/proc/sys/vm/drop_caches; for disk in vda vdc; do sha256sum </dev/$disk; done ) 2>/dev/null"
    ).split()[::2]
    assert written[0] != digests[plain]
    assert run("! dd if=/tmp/data of=/dev/vdb bs=4k count=1 && sha256sum /dev/vdb").split()[-2] == digests[fixed]

    run.type("reboot -f")
    machine.serial.expect("Linux version", INIT_S)
    run = Shell(machine)
    after = run("sha256sum </dev/vda; sha256sum </dev/vdb; sha256sum </dev/vdc").split()[::2]
    assert after == [written[0], digests[fixed], written[1]]
    run.type("poweroff -f")
    assert machine.wait(REPLY_S) == POWER_OFF
    assert hashlib.sha256(plain.read_bytes()).hexdigest() == written[0]
    for path in (fixed, dropped):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digests[path]


def test_flush_and_many_writers_at_once_lose_nothing(boot: Machines, guest: DebianGuest, tmp_path: Path) -> None:
    disks = tuple(Drive(tmp_path / f"disk{n}") for n in range(3))
    for disk in disks:
        disk.file.write_bytes(bytes(SIZE))
    # 12 writers, each with its own megabyte of one of three disks, and one reader; then all is checked
    run = Shell(boot(shell(guest, smp=4, drive=disks)))
    run(
        "dd if=/dev/urandom of=/tmp/m bs=1M count=1 2>/dev/null;"
        "for n in 0 1 2 3; do for d in a b c; do (for i in 1 2 3; do "
        "dd if=/tmp/m of=/dev/vd$d bs=8k seek=$((n * 128)) conv=notrunc,fsync oflag=direct 2>/dev/null;"
        "done) & done; done; dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null & wait",
        4 * REPLY_S,
    )
    digest = run("for n in 0 1 2 3; do cat /tmp/m; done | sha256sum").split()[0]
    for disk in disks:
        assert hashlib.sha256(disk.file.read_bytes()[: 4 << 20]).hexdigest() == digest
