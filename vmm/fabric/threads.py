"""OS threads: their names, which py-spy, gdb and `top -H` show, and how exactly the kernel ends their waits."""

from __future__ import annotations

import threading
from pathlib import Path


def name_os_thread(name: str) -> None:
    """Name the calling thread, for Python and for the kernel (which keeps 15 characters)."""
    threading.current_thread().name = name
    try:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15])
    except OSError:  # no /proc, or a read-only one: only the label is lost
        pass


def wait_exactly() -> None:
    """Have timed waits of the calling thread end when they are over, not up to 50 us later (PR_SET_TIMERSLACK)."""
    try:
        Path(f"/proc/{threading.get_native_id()}/timerslack_ns").write_text("1")
    except OSError:  # as above: only exactness is lost
        pass
