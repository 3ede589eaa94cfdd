"""Every place where one thread waits for another says for whom, by a `Progress`, or stands here with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vmm"
WAITS = {"wait", "wait_for", "join", "sigwait", "communicate"}

# (file, function) -> why nobody needs to know for whom it waits
REASONS = {
    ("cli/run.py", "_follow"): "`Lifecycle.wait` says it",
    ("cli/signals.py", "Signals.__exit__"): "the main thread, holding nothing; the watcher only sees that it is to end",
    ("cli/signals.py", "Signals._watch"): "for the kernel, holding nothing: it is how the thread rests",
    ("devices/virtio/device.py", "VirtioDevice.quiesce"): "`InFlight.wait` says it",
    ("devices/virtio/device.py", "VirtioDevice.reset"): "`InFlight.wait` says it",
    ("devices/virtio/device.py", "VirtioDevice.stop_queue"): "`InFlight.wait` says it",
    ("fabric/workers.py", "Workers._main"): "for work, holding nothing: it is how the thread rests",
    ("guests/apt.py", "Archive._run"): "for another process, before there is a machine",
    ("host/chardev.py", "StreamChardev._write_out"): "for work, holding nothing, and for its own pace",
    ("host/chardev.py", "StreamChardev.close"): "its writer takes the character device's own LEAF lock and no other",
    ("host/transcript.py", "Transcript.expect"): "a program's own thread, for what the guest prints",
    ("lockcheck.py", "CheckedCondition.wait"): "the checked kind itself",
    ("lockcheck.py", "CheckedCondition.wait_for"): "the checked kind itself",
    ("lockcheck.py", "_Joined.join"): "the checked kind itself",
    ("machine/lifecycle.py", "Lifecycle._run"): "for work, holding nothing: it is how the thread rests",
    ("machine/machine.py", "Machine.stop"): "`Lifecycle.join` says it",
    ("machine/machine.py", "Machine.wait"): "`Lifecycle.wait` says it",
    ("machine/software.py", "SoftwareHarts.stop"): "`VcpuThread.join` says it",
    ("machine/machine.py", "Machine.unplug"): "`Slots.wait` says it",
    ("timeline.py", "Timeline.close"): "its writer takes no lock",
    ("watchdog.py", "Watchdog._main"): "for time to pass, holding nothing: it is how the thread rests",
    ("watchdog.py", "Watchdog.stop"): "holding nothing: `Machine.stop` has waited for all others before",
}


def sites(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(function, line, whether it is under some `.waiting()`) of each wait in a file."""

    def walk(node: ast.AST, names: tuple[str, ...], named: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = (*names, node.name)
            named = False
        elif isinstance(node, ast.With):
            named = named or any(
                isinstance(call := item.context_expr, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "waiting"
                for item in node.items
            )
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_wait(node, node.func):
            yield ".".join(names), node.lineno, named
        for child in ast.iter_child_nodes(node):
            yield from walk(child, names, named)

    yield from walk(ast.parse(path.read_text(), str(path)), (), False)


def is_wait(call: ast.Call, function: ast.Attribute) -> bool:
    """A queue's `get` has no argument; a text's `join`, and that of paths, waits for nobody, and nor does telling of a
    wait."""
    of = ast.unparse(function.value)
    if function.attr == "get":
        return not call.args and not call.keywords and of in ("self._jobs", "self._tokens")
    if function.attr == "join" and (of == "os.path" or isinstance(function.value, (ast.Constant, ast.JoinedStr))):
        return False
    return function.attr in WAITS and of != "sighting"


def unnamed() -> dict[tuple[str, str], int]:
    """(file, function) -> line of the waits under no `Progress`."""
    found = {}
    for path in sorted(set(PACKAGE.rglob("*.py")) - set(PACKAGE.joinpath("testing").rglob("*.py"))):
        file = str(path.relative_to(PACKAGE))
        for function, line, named in sites(path):
            if not named:
                found[file, function] = line
    return found


def test_the_finder_sees_waits_and_their_names(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "class A:\n"
        "    def bare(self): self._thread.join()\n"
        "    def named(self):\n"
        "        with self._turn.waiting(), self._changed:\n"
        "            self._changed.wait_for(len)\n"
        "    def text(self): return ', '.join('ab') + f'{1}'.join('cd')\n"
        "    def work(self): return self._jobs.get()\n"
        "    def later(self):\n"
        "        with self._turn.waiting():\n"
        "            def call(): self._done.wait()\n"
    )
    assert list(sites(path)) == [("A.bare", 2, False), ("A.named", 5, True), ("A.work", 7, False),
                                 ("A.later.call", 10, False)]  # fmt: skip


def test_every_wait_says_for_whom_or_has_its_reason() -> None:
    wrong = [f"vmm/{file}:{line} {function}" for (file, function), line in unnamed().items()
             if (file, function) not in REASONS]  # fmt: skip
    assert not wrong, "under no Progress and without a reason:\n" + "\n".join(wrong)


def test_every_reason_is_still_needed() -> None:
    assert set(REASONS) <= set(unnamed())
