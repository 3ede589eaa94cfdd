"""`vmm-run`, the command line."""

from __future__ import annotations

from vmm.cli.run import main

__all__ = ["main"]
