"""`vmm-run` with one more device at 0x20000000: a read of it waits until somebody writes to the FIFO in $FIFO."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from vmm.cli import main
from vmm.locks import Device, entry
from vmm.machine import machine
from vmm.machine.virt import Board


class Blocked(Device):
    @entry
    def read(self, offset: int, size: int) -> int:
        return len(Path(os.environ["FIFO"]).read_bytes())

    @entry
    def write(self, offset: int, size: int, value: int) -> None:
        """Ignored."""


class BoardWithOneMore(Board):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bus.map(0x2000_0000, 0x1000, self.locking.make(Blocked, "blocked"), "blocked")


if __name__ == "__main__":
    machine.Board = BoardWithOneMore  # type: ignore[misc]
    sys.exit(main())
