"""OS threads that py-spy, gdb and `top -H` show by name."""

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
