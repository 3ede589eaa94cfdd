"""Debian packages of any suite and architecture, downloaded by the host's own apt without touching the host.

apt keeps its proxy, authentication and certificate settings; its state, cache, sources and status file are ours, and
so it needs no privileges. The mirror is the one the host's sources name. Signatures are always checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmm.cachedir import default_directory, private_directory
from vmm.errors import ConfigError, HostError
from vmm.guests import cache, deb
from vmm.guests.progress import Progress, silent

KEYRINGS = tuple(
    Path("/usr/share/keyrings", name) for name in ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
)

#: A source counts as Debian's main archive when its suite is one of these and it carries `main`.
SUITES = frozenset(
    {"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid"}
    | {"oldoldstable", "oldstable", "stable", "testing", "unstable"}
)

#: Free space that apt gets for its package lists, in bytes.
SPARE_SPACE = 64 << 20

#: Free space for a package with all that it depends on, packed and unpacked, in bytes.
TREE_SPACE = 500 << 20

# Read after the host's own configuration (apt.conf(5)), so that it wins. The host's hooks would run as the user.
CONFIGURATION = """\
#clear APT::Default-Release;
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
"""


@dataclass(frozen=True)
class Source:
    """One `deb` entry of the host's sources."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]

    @property
    def is_main_archive(self) -> bool:
        return "security" not in self.uri and "main" in self.components and not SUITES.isdisjoint(self.suites)


def parse_one_line(text: str) -> Iterator[Source]:
    """Entries of a `sources.list` (sources.list(5), "one-line-style format")."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            yield Source(match[1], (match[2],), tuple(match[3].split()))


def parse_deb822(text: str) -> Iterator[Source]:
    """Entries of a `.sources` file (sources.list(5), "deb822-style format")."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"(?m)^([A-Za-z-]+):((?:.*(?:\n[ \t].*)*))", stanza)
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled", ["yes"])[0].lower() not in ("no", "false"):
            for uri in fields.get("uris", ()):
                yield Source(uri, tuple(fields.get("suites", ())), tuple(fields.get("components", ())))


def host_sources(listing: Path, parts: Path) -> Iterator[Source]:
    """All entries that the host's apt would use, given its main list and its directory of more."""
    files = [listing, *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    for path in files:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        yield from (parse_deb822 if path.suffix == ".sources" else parse_one_line)(text)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"apt: no '{name}' on this host; Debian's packages can be fetched on Debian and its kin only")
    return found


def _keyring() -> Path:
    for path in KEYRINGS:
        if path.exists():
            return path
    raise ConfigError(f"apt: no {KEYRINGS[0]}; install the package debian-archive-keyring")


def _mirrors() -> list[str]:
    """Debian mirrors in the host's sources, in order, without repeats."""
    shell = subprocess.run(
        [_program("apt-config"), "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    paths = dict(re.findall(r"(?m)^(\w+)='(.*)'$", shell))
    sources = host_sources(
        Path(paths.get("LIST", "/etc/apt/sources.list")), Path(paths.get("PARTS", "/etc/apt/sources.list.d"))
    )
    mirrors = list(dict.fromkeys(source.uri for source in sources if source.is_main_archive))
    if not mirrors:
        raise ConfigError("apt: the host's sources name no Debian mirror; add one, such as 'deb URI bookworm main'")
    return mirrors


class Archive:
    """One suite and architecture of Debian, seen by the host's apt with all of its state in `directory`.

    Downloaded packages stay in `directory`. The caller holds the directory's lock: use `archive()`.
    """

    source_type = "deb"

    def __init__(self, directory: Path, suite: str, architecture: str, progress: Progress, refresh: bool) -> None:
        self.directory = directory
        self._suite = suite
        self._architecture = architecture
        self._progress = progress
        self._refresh = refresh
        self._listed = False

    def fetch(self, package: str) -> Path:
        """The .deb of `package`: the one kept here, or with `refresh` the newest, downloaded when missing."""
        kept = sorted(self.directory.glob(f"{package}_*.deb"))
        if kept and not self._refresh:
            return kept[-1]
        found = self.fields(package)
        name = f"{package}_{_in_file_name(found['version'])}_{found['architecture']}.deb"
        final = self.directory / name
        if final in kept:
            return final
        cache.require_space(self.directory, int(found["size"]) + SPARE_SPACE)
        with cache.unfinished(self.directory) as scratch:
            step = f"Downloading {package} ({int(found['size']) / 1e6:.1f} MB)"
            self._run(["apt-get", "download", f"{package}={found['version']}"], step, scratch)
            os.replace(scratch / name, final)
        for old in kept:
            old.unlink(missing_ok=True)
        return final

    def fetch_file(self, package: str, member: str) -> Path:
        """One file of `package`, unpacked; `member` is its path in the package, like "usr/bin/qemu-riscv64"."""
        source = self.fetch(package)
        directory = private_directory(self.directory / "files") / source.stem
        final = directory / Path(member).name
        if final.exists():
            return final
        cache.require_space(self.directory, SPARE_SPACE)
        for packed in deb.files(source, self._progress):
            if packed.path == member:
                with cache.unfinished(self.directory) as scratch:
                    unpacked = scratch / final.name
                    with open(unpacked, "wb") as stream:
                        shutil.copyfileobj(packed.content, stream)
                    unpacked.chmod(packed.mode)
                    directory.mkdir(exist_ok=True)
                    os.replace(unpacked, final)
                return final
        raise HostError(f"{source.name}: no {member} in this package")

    def fetch_tree(self, package: str) -> Path:
        """A directory with the files of `package` and of all that it depends on, as below "/", for `command()`."""
        trees = private_directory(self.directory / "trees")
        kept = sorted(trees.glob(f"{package}_*"))
        if kept and not self._refresh:
            return kept[-1]
        final = trees / f"{package}_{_in_file_name(self.fields(package)['version'])}"
        if final in kept:
            return final
        cache.require_space(self.directory, TREE_SPACE)
        with cache.unfinished(trees) as scratch:
            step = f"Downloading {package} and what it depends on"
            scratch_archives = f"--option=Dir::Cache::archives={scratch}"
            wanted = ["install", "--download-only", "--no-install-recommends", "--yes", package]
            self._run(["apt-get", scratch_archives, "--option=APT::Keep-Downloaded-Packages=true", *wanted], step)
            tree = scratch / "tree"
            for source in sorted(scratch.glob("*.deb")):
                self._run(["dpkg-deb", "--extract", str(source), str(tree)], f"Unpacking {package}")
            os.replace(tree, final)
        for old in kept:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def fields(self, package: str) -> dict[str, str]:
        """Control fields of the newest version of `package`, by lower-case name; HostError if there is none."""
        self._update()
        step = f"Looking up {package} in Debian {self._suite}"
        text = self._run(["apt-cache", "show", "--no-all-versions", package], step)
        return {name.lower(): value for name, value in re.findall(r"(?m)^([A-Za-z0-9-]+): (.*)$", text)}

    def _update(self) -> None:
        """Fetch the package lists, once, from the first of the host's mirrors that has them signed; else HostError."""
        if self._listed:
            return
        keyring = _keyring()
        mirrors = _mirrors()
        cache.require_space(self.directory, SPARE_SPACE)
        for path in ("state/lists/partial", "cache/archives/partial"):
            (self.directory / path).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / "status").write_bytes(b"")
        (self.directory / "apt.conf").write_text(
            CONFIGURATION.format(root=self.directory, architecture=self._architecture)
        )
        refusals = []
        for mirror in mirrors:
            (self.directory / "sources.list").write_text(
                f"{self.source_type} [arch={self._architecture} signed-by={keyring}] {mirror} {self._suite} main\n"
            )
            step = f"Reading the package lists of Debian {self._suite} ({self._architecture})"
            try:
                self._run(["apt-get", "--error-on=any", "update"], step)
            except HostError as refusal:
                refusals.append(refusal)
            else:
                self._listed = True
                return
        raise refusals[0]

    def _run(self, command: list[str], step: str, directory: Path | None = None) -> str:
        """Run a program of apt's or dpkg's in `directory`: its standard output, or HostError with its complaint."""
        self._progress(step, None)
        reports, reports_writer = os.pipe()
        arguments = [_program(command[0]), *command[1:]]
        if command[0].startswith("apt-"):
            arguments[1:1] = [
                f"--config-file={self.directory / 'apt.conf'}",
                f"--option=APT::Status-Fd={reports_writer}",
            ]
        with open(reports, "rb") as lines, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
            try:
                child = subprocess.Popen(
                    arguments,
                    cwd=directory,
                    env={**os.environ, "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=complaints,
                    pass_fds=[reports_writer],
                )
            finally:
                os.close(reports_writer)
            try:
                for line in lines:  # "dlstatus:item:percent:text", until apt closes its end
                    report = line.decode(errors="replace").split(":")
                    if report[0] == "dlstatus":
                        self._progress(step, min(float(report[2]) / 100, 0.99))
                failed = child.wait() != 0
            finally:
                child.terminate()
                child.wait()
            output.seek(0)
            complaints.seek(0)
            if failed:
                complaint = _first_complaint(complaints.read().decode(errors="replace"))
                advice = "; check the network, and try again" if command[0] == "apt-get" else ""
                raise HostError(f"apt: {step}: {complaint}{advice}")
            self._progress(step, 1.0)
            return output.read().decode(errors="replace")


def _in_file_name(version: str) -> str:
    return version.replace(":", "%3a")


def _first_complaint(text: str) -> str:
    """The first error, else the first warning, that apt printed, on one line."""
    for letter in "EW":
        found = re.search(rf"(?m)^{letter}: (.*)$", text)
        if found:
            return found[1].strip()
    return "apt failed without saying why"


@contextmanager
def archive(
    suite: str,
    architecture: str,
    cache_dir: Path | None = None,
    progress: Progress = silent,
    refresh: bool = False,
) -> Iterator[Archive]:
    """Hold the part of the cache that keeps Debian's `suite` for `architecture`, waiting for others that hold it.

    A package in the cache is used without asking the mirror for a newer one, unless `refresh` is set.

    Raises ConfigError (no apt, keyring or mirror; unusable cache) or HostError (download failed, disk full).
    """
    root = private_directory(default_directory() if cache_dir is None else cache_dir.absolute())
    directory = private_directory(root / f"debian-{suite}-{architecture}")
    with cache.exclusive(directory, progress):
        yield Archive(directory, suite, architecture, progress, refresh)


def fetch(package: str, suite: str, architecture: str, cache_dir: Path | None = None) -> Path:
    """The .deb of one package, from the cache or downloaded. Errors as of `archive()`."""
    with archive(suite, architecture, cache_dir) as debian:
        return debian.fetch(package)


def command(tree: Path, program: str) -> list[str]:
    """How to run `program` of `Archive.fetch_tree()` with its own libraries, on a host of the same architecture."""
    loader = next(tree.glob("usr/lib*/ld-linux-*.so.*"), None)
    library = next(tree.glob("usr/lib/*/libc.so.6"), None)
    if loader is None or library is None:
        raise HostError(f"{tree.name}: no C library in it")
    return [str(loader), "--library-path", str(library.parent), str(tree / program)]
