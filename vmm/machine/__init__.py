"""The machine: board, boot, device tree, built-in SBI, and its life from build to stop."""

from __future__ import annotations
