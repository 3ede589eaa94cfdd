"""Fetching packages: which mirror, what is kept, and one line for everything that can go wrong."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.guests.packages import FakeApt, deb
from vmm.cachedir import default_directory, private_directory
from vmm.errors import ConfigError, HostError, VmmError
from vmm.guests import apt, cache
from vmm.guests.apt import Source, archive, fetch, parse_deb822, parse_one_line

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://one.example/debian
  http://two.example/debian
Suites: trixie trixie-updates
# within a stanza
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: trixie
Components: main
"""

ONE_LINE = """\
# deb http://comment.example/debian bookworm main
deb http://plain.example/debian bookworm main contrib  # trailing
deb [arch=amd64 signed-by=/a/b] https://options.example/debian stable main
deb-src http://source.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
deb https://other.example/linux/debian bookworm stable
deb mirror+file:/etc/apt/mirrors/debian.list sid main
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """A host whose apt is a fake, and whose cache is empty."""
    fake = FakeApt(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.bin}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(apt, "KEYRINGS", (keyring,))
    fake.add("thing", deb({"usr/share/thing": b"contents"}))
    return fake


def kept(host: FakeApt) -> list[str]:
    """Everything in the cache that was not there before a package was asked for."""
    root = default_directory()
    return sorted(path.name for path in root.rglob("*") if "thing" in path.name or path.name.startswith("."))


def test_deb822_sources_are_understood() -> None:
    assert list(parse_deb822(DEB822)) == [
        Source("http://one.example/debian", ("trixie", "trixie-updates"), ("main",)),
        Source("http://two.example/debian", ("trixie", "trixie-updates"), ("main",)),
    ]


def test_one_line_sources_are_understood() -> None:
    sources = list(parse_one_line(ONE_LINE))
    assert [source.uri.split(":")[1].split("/")[2] for source in sources if "//" in source.uri] == [
        "plain.example",
        "options.example",
        "security.example",
        "other.example",
    ]
    assert sources[0] == Source("http://plain.example/debian", ("bookworm",), ("main", "contrib"))


def test_only_the_main_archive_counts_as_a_mirror() -> None:
    mirrors = [source.uri for source in parse_one_line(ONE_LINE) if source.is_main_archive]
    assert mirrors == [
        "http://plain.example/debian",
        "https://options.example/debian",
        "mirror+file:/etc/apt/mirrors/debian.list",
    ]


def test_a_package_is_downloaded_once(host: FakeApt) -> None:
    first = fetch("thing", "trixie", "riscv64")
    assert first == fetch("thing", "trixie", "riscv64")
    assert first.name == "thing_1%3a2.0-1_riscv64.deb"
    assert host.runs("download") == 1
    assert kept(host) == [first.name]


def test_a_kept_package_needs_no_network(host: FakeApt) -> None:
    first = fetch("thing", "trixie", "riscv64")
    host.fail("update")
    assert fetch("thing", "trixie", "riscv64") == first


def test_refreshing_replaces_an_older_version(host: FakeApt) -> None:
    fetch("thing", "trixie", "riscv64")
    host.add("thing", deb({"usr/share/thing": b"newer"}), version="3.0-1")
    with archive("trixie", "riscv64", refresh=True) as debian:
        newer = debian.fetch("thing")
    assert newer.name == "thing_3.0-1_riscv64.deb"
    assert kept(host) == [newer.name]


def test_one_file_of_a_package_is_unpacked(host: FakeApt) -> None:
    with archive("trixie", "riscv64") as debian:
        path = debian.fetch_file("thing", "usr/share/thing")
        assert path.read_bytes() == b"contents"
        assert path == debian.fetch_file("thing", "usr/share/thing")
        with pytest.raises(HostError, match="no usr/share/nothing in this package"):
            debian.fetch_file("thing", "usr/share/nothing")


def test_apt_is_told_to_leave_the_host_alone_and_to_check_signatures(host: FakeApt) -> None:
    path = fetch("thing", "trixie", "riscv64").parent
    options = (path / "apt.conf").read_text()
    for directory in ("Dir::State", "Dir::Cache", "Dir::State::status", "Dir::Etc::sourcelist"):
        assert f'{directory} "{path}/' in options
    assert 'APT::Get::AllowUnauthenticated "false"' in options
    source = (path / "sources.list").read_text()
    assert "signed-by=" in source
    assert "http://mirror.example/debian trixie main" in source


def test_concurrent_runs_download_once(host: FakeApt) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch("thing", "trixie", "riscv64"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert host.runs("download") == 1


def test_progress_is_told(host: FakeApt) -> None:
    steps: list[tuple[str, float | None]] = []
    with archive("trixie", "riscv64", progress=lambda step, done: steps.append((step, done))) as debian:
        debian.fetch("thing")
    assert steps[0] == ("Reading the package lists of Debian trixie (riscv64)", None)
    assert steps[-1] == ("Downloading thing (0.0 MB)", 1.0)


# What goes wrong: each is one line that names what is wrong, and nothing of the package is left behind.


def failure(expected: type[VmmError], host: FakeApt, package: str = "thing") -> str:
    with pytest.raises(expected) as caught:
        fetch(package, "trixie", "riscv64")
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_status == 2
    assert kept(host) == []
    return message


def test_no_apt(host: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no 'apt-config' on this host" in failure(ConfigError, host)


def test_no_keyring(host: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "KEYRINGS", (Path("/nowhere/keyring.gpg"),))
    assert "install the package debian-archive-keyring" in failure(ConfigError, host)


def test_no_mirror(host: FakeApt) -> None:
    host.sources.write_text("deb https://other.example/linux/debian bookworm stable\n")
    assert "name no Debian mirror" in failure(ConfigError, host)


def test_no_package_lists(host: FakeApt) -> None:
    host.fail("update")
    message = failure(HostError, host)
    assert "package lists" in message
    assert "Failed to fetch the thing" in message


def test_no_such_package(host: FakeApt) -> None:
    assert "Looking up nonesuch" in failure(HostError, host, "nonesuch")


def test_a_broken_download_can_be_tried_again(host: FakeApt) -> None:
    host.fail("download")
    assert "Downloading thing" in failure(HostError, host)
    host.work_again()
    assert fetch("thing", "trixie", "riscv64").exists()


def test_too_little_space(host: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    assert "1 MB of free space" in failure(HostError, host)


def test_a_disk_that_runs_full(host: FakeApt) -> None:
    def fill(step: str, done: float | None) -> None:
        if step.startswith("Downloading"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(HostError, match="no space left"), archive("trixie", "riscv64", progress=fill) as debian:
        debian.fetch("thing")
    assert kept(host) == []


def test_an_interrupted_download_leaves_nothing(host: FakeApt) -> None:
    def interrupt(step: str, done: float | None) -> None:
        if step.startswith("Downloading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), archive("trixie", "riscv64", progress=interrupt) as debian:
        debian.fetch("thing")
    assert kept(host) == []
    assert fetch("thing", "trixie", "riscv64").exists()


def test_what_a_killed_run_left_is_cleared(host: FakeApt) -> None:
    directory = fetch("thing", "trixie", "riscv64").parent
    (directory / f"{cache.UNFINISHED}abc").mkdir()
    with archive("trixie", "riscv64"):
        assert not list(directory.glob(f"{cache.UNFINISHED}*"))


# The cache itself.


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == tmp_path / ".cache/vmm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_directory() == Path("/elsewhere/vmm")


def test_every_directory_of_the_cache_is_private(host: FakeApt) -> None:
    directory = fetch("thing", "trixie", "riscv64").parent
    assert (directory.stat().st_mode & 0o777, directory.parent.stat().st_mode & 0o777) == (0o700, 0o700)


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="mode 0755, not 0700"):
        private_directory(tmp_path)


def test_a_file_in_the_place_of_the_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.touch()
    with pytest.raises(ConfigError, match="cannot make"):
        private_directory(path)


def test_a_link_in_the_place_of_the_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    path = tmp_path / "cache"
    path.symlink_to("real")
    with pytest.raises(ConfigError, match="is not a directory"):
        private_directory(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        private_directory(tmp_path / "cache")
