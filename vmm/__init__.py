"""A virtual machine monitor with preemptive threads and a lock in every device."""

from __future__ import annotations

__version__ = "0.1.0"
