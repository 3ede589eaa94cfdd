"""Generators of the software VCPU's native code. `build.image()` is the way in; nothing else is imported warm."""
