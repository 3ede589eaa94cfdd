"""Benchmarks: each is a module, `python -m benchmarks.NAME --help`; `python -m benchmarks.all` runs them all."""
