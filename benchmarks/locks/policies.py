"""Who takes which lock while Debian boots and works, under each policy.

One boot for each policy, by `vmm-run debian --lock-stat`: the guest writes and reads its disk, draws random numbers,
writes to its console, sets alarms of its clock, and powers off. Each acquisition is counted once, under what
the thread that took the lock was doing:

  exit ...     a hart has left the guest; KICK is a request to look at the gate
  doorbell     the I/O thread, or a disk's own one, answers the driver's notification
  timer, I/O   the I/O thread: a device's timer, a descriptor that is ready
  posted ...   the I/O thread makes a call that a thread of this kind has posted; by a worker, it is a completion
  io           the I/O thread takes the big lock for a turn of whatever is due
  lifecycle    a transition, or the end of the run

Under `bql` the devices' rows say for whom the one lock was used: by a thread that held it already, as a hart's does
outside the guest, or else that took it there.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.guests import Python, debian, pythons, running, vmm_run
from benchmarks.report import Figure, Report, parser
from vmm.bql import POLICIES

# It is part of the kernel's command line, of which Linux takes 1023 bytes. Linux offers no alarm of this clock, so its
# registers are set by hand, each time for a second later.
SCRIPT: Final = """\
d=/dev/vda
dd if=/dev/zero of=$d bs=64k count=256 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
dd if=$d of=/dev/null bs=4k count=1024 2>/dev/null
dd if=/dev/hwrng of=/dev/null bs=1k count=32 2>/dev/null
for n in 1 2 3 4; do echo line $n >/dev/hvc0; usleep 20000; done
hwclock -r >/dev/null
echo 101000.rtc >/sys/bus/platform/drivers/goldfish_rtc/unbind
r() { devmem 0x1010$1 32 $2; }
r 10 1
for n in 1 2 3; do
l=$(r 00) h=$(r 04)
t=$(( (h << 32 | l) + 1000000000 ))
r 0c $((t >> 32))
r 08 $((t & 0xffffffff))
while [ $(r 18) != 0x00000000 ]; do usleep 100000; done
done
"""
OPTIONS: Final = ("--smp", "2", "--console", "null", "--balloon")
BIG: Final = "bql"
OUTSIDERS: Final = frozenset({"lifecycle", "worker", "MainThread"})
"""What is no VCPU, I/O or timer work."""


def boot(python: Python, policy: str) -> dict[str, Any]:
    """What `--lock-stat` found."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "locks.json")
        argv = vmm_run(python, "debian", *OPTIONS, "--locking", policy, "--lock-stat", file, "--run", SCRIPT)
        with running(argv) as run:
            run.ended(300)
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def causes(found: dict[str, dict[str, Any]]) -> list[str]:
    """Of all policies, the most frequent first."""
    counts: dict[str, int] = {}
    for figures in found.values():
        for lock in figures["locks"]:
            for cause, of in lock["causes"].items():
                counts[cause] = counts.get(cause, 0) + of["acquired"]
    return sorted(counts, key=lambda cause: -counts[cause])


def by_inner_threads(lock: dict[str, Any]) -> int:
    """Acquisitions by VCPU, I/O and timer threads."""
    return sum(of["acquired"] for cause, of in lock["causes"].items() if cause not in OUTSIDERS)


def add(report: Report, found: dict[str, dict[str, Any]]) -> None:
    columns = causes(found)
    big = {
        policy: by_inner_threads(next(lock for lock in figures["locks"] if lock["name"] == BIG))
        for policy, figures in found.items()
    }
    report.add(
        Figure(
            "the big lock, taken by VCPU, I/O and timer threads from the start to power-off",
            "acquisitions",
            {policy: [count] for policy, count in big.items()},
            bound=f"{big['device']:,} times under `device`, {big['bql']:,} under `bql`; under `device` never",
            met=big["device"] == 0,
        )
    )
    for policy, figures in found.items():
        taken = [lock for lock in figures["locks"] if lock["acquired"]]
        names = {lock["name"]: lock["name"] if lock["name"] != BIG else "the big lock" for lock in taken}
        for lock in taken:
            counts: dict[str, list[float]] = {
                cause: [lock["causes"][cause]["acquired"] if cause in lock["causes"] else 0] for cause in columns
            }
            report.add(Figure(names[lock["name"]], f"acquisitions under `{policy}`", counts))
        for lock in taken:
            report.add(Figure(names[lock["name"]], f"locks under `{policy}`", summary(lock)))
        for name, stalls in figures["outside_guest"].items():
            for cause, times in (("outside the guest, in all", stalls), *stalls["causes"].items()):
                report.add(Figure(f"{name}: {cause}", f"harts under `{policy}`, us", stall(times)))


def summary(lock: dict[str, Any]) -> dict[str, list[float]]:
    return {
        "taken": [lock["acquired"]],
        "waited for": [lock["contended"]],
        "handed over": [lock["handoffs"]],
        "wait p50, us": [lock["wait"]["p50_ns"] / 1e3],
        "wait p99, us": [lock["wait"]["p99_ns"] / 1e3],
        "hold p50, us": [lock["hold"]["p50_ns"] / 1e3],
        "hold p99, us": [lock["hold"]["p99_ns"] / 1e3],
        "hold max, us": [lock["hold"]["max_ns"] / 1e3],
    }


def stall(times: dict[str, Any]) -> dict[str, list[float]]:
    return {
        "times": [times["count"]],
        "in all": [times["total_ns"] / 1e3],
        "p50": [times["p50_ns"] / 1e3],
        "p99": [times["p99_ns"] / 1e3],
        "max": [times["max_ns"] / 1e3],
    }


def main() -> int:
    options_parser = parser(__doc__, rounds=1)
    options_parser.add_argument(
        "--python", type=Path, action="append", metavar="PATH", help="run on this Python (the last of several)"
    )
    options = options_parser.parse_args()
    report = Report("The two policies: who takes which lock", __doc__ or "")
    python = pythons(options.python)[-1]
    report.facts["python"] = python.build
    report.facts["kernel"] = f"Debian {debian().version}"
    command = ["vmm-run", "debian", *OPTIONS, "--locking", "POLICY", "--lock-stat", "FILE"]
    report.facts["command"] = f"`{shlex.join(command)} --run SCRIPT`, SCRIPT as in `benchmarks/locks/policies.py`"
    add(report, {policy: boot(python, policy) for policy in POLICIES})
    return report.finish(options)


if __name__ == "__main__":
    raise SystemExit(main())
