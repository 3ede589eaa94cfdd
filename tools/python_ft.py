"""Find or make a free-threaded Python, and a virtual environment on it with what the test suite needs.

In this order: `python3.14t` or `python3.13t` on PATH; one built here before; one that `uv` has or can download; one
built from Debian's source package of Python 3.13, which the host's own apt fetches and verifies, kept in the user's
cache. Prints the path of what it found or made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from vmm.cachedir import default_directory, private_directory
from vmm.errors import ConfigError, HostError, VmmError
from vmm.guests import apt, cache
from vmm.guests.progress import Progress, TextProgress

VERSIONS = ("3.14t", "3.13t")
SUITE = "testing"
PACKAGE = "python3.13"
ARCHITECTURE = "amd64"
BUILD_SPACE = 1 << 30  # bytes: the source, its objects and what is installed
UV_SECONDS = 300

# Without the static library and the test suite it is a fifth of the size. Profile-guided optimisation would take
# twenty minutes more, so benchmarks print which build ran.
CONFIGURE = ("--disable-gil", "--disable-test-modules", "--without-static-libpython", "--with-ensurepip=install")

NEED = Path(__file__).with_name("need.sh")
DEBIAN_PACKAGES = (
    "build-essential",
    "libbz2-dev",
    "libffi-dev",
    "liblzma-dev",
    "libreadline-dev",
    "libsqlite3-dev",
    "libssl-dev",
    "zlib1g-dev",
)

# llvmlite has no wheel for 3.13t. It reaches its library by ctypes alone, so that of 3.14t serves.
LLVMLITE_WHEEL = (
    "--no-deps",
    "--only-binary=:all:",
    "--python-version=3.14",
    "--abi=cp314t",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_27_x86_64",
)

PROBE = """
import bz2, ctypes, lzma, ssl, sys, zlib
assert sys.version_info >= (3, 13) and not sys._is_gil_enabled()
"""


def works(interpreter: str | Path) -> bool:
    """Whether it is a free-threaded Python with the modules that the project uses."""
    return subprocess.run([interpreter, "-c", PROBE], capture_output=True, check=False).returncode == 0


def on_path() -> Iterator[Path]:
    for version in VERSIONS:
        found = shutil.which(f"python{version}")
        if found:
            yield Path(found)


def from_uv(progress: Progress) -> Iterator[Path]:
    uv = shutil.which("uv")
    if uv is None:
        return
    for version in VERSIONS:
        progress(f"Asking uv for Python {version}", None)
        try:
            subprocess.run([uv, "python", "install", version], capture_output=True, check=False, timeout=UV_SECONDS)
            found = subprocess.run(
                [uv, "python", "find", version], capture_output=True, check=False, timeout=UV_SECONDS, text=True
            ).stdout.strip()
        except subprocess.TimeoutExpired:
            continue
        if found:
            yield Path(found)


def built_before(kept: Path) -> Iterator[Path]:
    yield from sorted(kept.glob("*/bin/python3.13t"), reverse=True)


class SourceArchive(apt.Archive):
    """Debian's source packages."""

    source_type = "deb-src"

    def download(self, package: str, directory: Path) -> Path:
        """The upstream tarball of `package`, checked by apt against the archive's signature."""
        self._update()
        self._run(["apt-get", "source", "--download-only", package], f"Downloading the source of {package}", directory)
        tarballs = sorted(directory.glob("*.orig.tar.*"))
        if not tarballs:
            raise HostError(f"python-ft: Debian's source package {package} holds no upstream tarball")
        return tarballs[0]


def build(kept: Path, progress: Progress) -> Path:
    """Build Debian's Python 3.13 without the GIL; its interpreter, in a directory below `kept`."""
    if subprocess.run([NEED, *DEBIAN_PACKAGES], stdout=sys.stderr, check=False).returncode:
        raise ConfigError("python-ft: what the build needs is not installed")
    cache.require_space(kept, BUILD_SPACE)
    with cache.unfinished(kept) as scratch:
        tarball = SourceArchive(
            private_directory(scratch / "apt"), SUITE, ARCHITECTURE, progress, refresh=True
        ).download(PACKAGE, scratch)
        progress("Unpacking", None)
        with tarfile.open(tarball) as archive:
            # Debian 12's Python 3.11.2 has no filters yet; apt has verified the archive
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(scratch)
        (source,) = (path for path in scratch.glob("Python-*") if path.is_dir())
        prefix = kept / source.name.removeprefix("Python-")
        staging = scratch / "staging"
        log = kept / "build.log"
        log.unlink(missing_ok=True)
        progress("Configuring", None)
        _logged(["./configure", f"--prefix={prefix}", *CONFIGURE], source, log)
        progress(f"Compiling {source.name} (about five minutes on two cores)", None)
        _logged(["nice", "make", f"-j{os.cpu_count() or 1}"], source, log)
        progress("Installing", None)
        _logged(["make", "install", f"DESTDIR={staging}"], source, log)
        shutil.rmtree(prefix, ignore_errors=True)
        os.replace(staging / prefix.relative_to("/"), prefix)
    return prefix / "bin" / "python3.13t"


def _logged(command: list[str], directory: Path, log: Path) -> None:
    # make's own variables would reach the Makefile of the build
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    with log.open("ab") as output:
        done = subprocess.run(command, cwd=directory, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise HostError(f"python-ft: {' '.join(command)} failed; see {log}")


def find_or_make(progress: Progress) -> Path:
    """A free-threaded interpreter; ConfigError or HostError with one line where none is to be had."""
    kept = private_directory(private_directory(default_directory()) / "python-ft")
    ways: list[Callable[[], Iterator[Path]]] = [on_path, lambda: built_before(kept), lambda: from_uv(progress)]
    for way in ways:
        for interpreter in way():
            if works(interpreter):
                return interpreter
    with cache.exclusive(kept, progress):
        for interpreter in built_before(kept):  # by the one that was waited for
            if works(interpreter):
                return interpreter
        interpreter = build(kept, progress)
    if not works(interpreter):
        raise HostError(f"python-ft: {interpreter} was built and does not work; try it by hand")
    return interpreter


def make_environment(directory: Path, interpreter: Path, progress: Progress) -> Path:
    """A virtual environment with this project, editable, and its test dependencies; its interpreter."""
    progress(f"Making {directory}", None)
    _checked([interpreter, "-m", "venv", "--clear", directory])
    python = directory / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    progress("Installing llvmlite", None)
    if subprocess.run(
        [*pip, "install", "--only-binary=:all:", "llvmlite"], capture_output=True, check=False
    ).returncode:
        with TemporaryDirectory() as scratch:
            _checked([*pip, "download", "--dest", scratch, *LLVMLITE_WHEEL, "llvmlite"])
            where = subprocess.run(
                [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                capture_output=True,
                check=True,
                text=True,
            ).stdout.strip()
            (wheel,) = Path(scratch).glob("llvmlite-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(where)
    progress("Installing the project and what its tests need", None)
    # preferring wheels: the newest version of a dependency may have none for a free-threaded build, an older one does
    _checked([*pip, "install", "--prefer-binary", "--editable", ".[test]"])
    return python


def _checked(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or "without saying why").splitlines()[-1]
        raise HostError(f"python-ft: {' '.join(map(str, command))} failed: {complaint}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python_ft", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, metavar="DIR", help="make a virtual environment for the test suite there")
    options = parser.parse_args()
    progress = TextProgress()
    try:
        found = find_or_make(progress)
        if options.venv:
            found = make_environment(options.venv, found, progress)
    except VmmError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
