"""Fakes, benches and contract suites for tests of devices, here and in other projects."""
