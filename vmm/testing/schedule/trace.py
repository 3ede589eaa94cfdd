"""What is written down of a schedule, so that it can be had again: by this version of the program, and no other."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from vmm.errors import ConfigError, HostError
from vmm.testing.schedule.core import Scheduler, Switch
from vmm.testing.schedule.operations import Operation

FORMAT: Final = 1
Program = Callable[[Scheduler], object]


def program_name(program: Program) -> str:
    """`module:function`, as the command line takes it; other callables by their type."""
    name = getattr(program, "__qualname__", type(program).__qualname__)
    return f"{program.__module__}:{name}"


def load_program(name: str) -> Program:
    """The program that `name`, `module:function`, means. Raises ConfigError."""
    module, _, function = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: no such program ({error}): give MODULE:FUNCTION") from None
    if not callable(found):
        raise ConfigError(f"{name} cannot be called: give MODULE:FUNCTION")
    return found  # type: ignore[no-any-return]


def version(program: Program) -> str:
    """A digest of all that a schedule depends on: this package, and the file that the program is in."""
    digest = hashlib.sha256(_package_digest())
    try:
        digest.update(Path(inspect.getsourcefile(inspect.unwrap(program)) or "").read_bytes())
    except (TypeError, OSError):
        digest.update(program_name(program).encode())
    return digest.hexdigest()[:12]


@cache
def _package_digest() -> bytes:
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]  # vmm
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.digest()


def steps_text(scheduler: Scheduler) -> str:
    """A schedule as text, a line for each step."""
    return "".join(f"{index} {operation.label}\n" for index, operation in scheduler.trace)


def steps_digest(steps: Sequence[tuple[int, Operation]]) -> str:
    """The same for every run that takes the same steps, on any Python."""
    return hashlib.sha256("".join(f"{i} {operation.label}\n" for i, operation in steps).encode()).hexdigest()


def switches_text(switches: Iterable[Switch]) -> str:
    return ",".join(".".join(map(str, switch)) for switch in switches)


def parse_switches(text: str) -> tuple[Switch, ...]:
    """Raises ConfigError."""
    try:
        parsed = [tuple(map(int, one.split("."))) for one in text.split(",") if one]
        return tuple((thread, steps, to) for thread, steps, to in parsed)
    except ValueError:
        raise ConfigError(f"switches {text!r} are not of the form THREAD.STEPS.TO,...") from None


@dataclass(frozen=True)
class Trace:
    """One schedule of one version of a program, as its switches away from the calm one."""

    program: str
    version: str
    strategy: str
    seed: int
    kind: str
    """How it fails; empty when it does not."""
    switches: tuple[Switch, ...]
    digest: str
    """Of the steps: whoever takes the same switches must come to the same."""
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises HostError."""
        text = json.dumps({**asdict(self), "switches": switches_text(self.switches)}, indent=1, sort_keys=True) + "\n"
        beside = path.with_name(path.name + ".part")
        try:
            try:
                beside.write_text(text, encoding="utf-8")
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"--trace {path}: {error.strerror}: give a file that can be written") from None

    @staticmethod
    def read(path: Path) -> Trace:
        """Raises ConfigError."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--trace {path}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"--trace {path}: not a trace of a schedule") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ConfigError(f"--trace {path}: not a trace of a schedule in format {FORMAT}")
        try:
            return Trace(**{**fields, "switches": parse_switches(fields["switches"])})
        except (TypeError, KeyError, AttributeError):
            raise ConfigError(f"--trace {path}: not a trace of a schedule in format {FORMAT}") from None

    def check(self, program: Program) -> None:
        """Raises ConfigError unless it is of this program as it is now."""
        if (name := program_name(program)) != self.program:
            raise ConfigError(f"the trace is of {self.program}, not of {name}")
        if (now := version(program)) != self.version:
            raise ConfigError(f"the trace is of version {self.version} of {self.program}, and this is {now}")
