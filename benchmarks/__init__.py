"""Benchmarks: each is a module, `python -m benchmarks.NAME [--rounds N] [--json FILE]`."""
