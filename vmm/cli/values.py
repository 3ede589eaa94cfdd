"""Values of options: sizes, drives, and lists of key=value with doubled commas."""

from __future__ import annotations

import re
from pathlib import Path

from vmm.errors import ConfigError
from vmm.machine.config import Drive

_UNITS = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SWITCH = {"on": True, "off": False}


def parse_size(option: str, text: str) -> int:
    """Bytes of a size such as 512M or 2G; a bare number counts MiB, as in QEMU."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option}: {text!r} is not a size: write one such as 512M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def split_pairs(option: str, text: str) -> dict[str, str]:
    """The parts of "key=value,key=value". A comma inside a value is written twice; a bare key means key=on."""
    pairs: dict[str, str] = {}
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.replace("\0", ",").partition("=")
        if not key:
            raise ConfigError(f"{option}: {text!r} has an empty part: write key=value,key=value")
        if key in pairs:
            raise ConfigError(f"{option}: {key} is given twice in {text!r}: give it once")
        pairs[key] = value if equals else "on"
    return pairs


def parse_drive(option: str, text: str) -> Drive:
    """A drive as `--drive` takes it: file=PATH,format=raw[,readonly=on][,snapshot=on][,id=NAME]."""
    return make_drive(option, dict(split_pairs(option, text)))


def make_drive(option: str, keys: dict[str, object]) -> Drive:
    """A drive from its keys; switches may be "on", "off" or booleans."""
    known = {"file", "format", "readonly", "snapshot", "id", "if"}
    for key in keys:
        if key not in known:
            raise ConfigError(f"{option}: unknown key {key!r}: known are {', '.join(sorted(known))}")
    if keys.get("if", "virtio") != "virtio":
        raise ConfigError(f"{option}: if={keys['if']} is not known: every drive is a virtio disk, leave it out")
    file = keys.get("file", "")
    if not isinstance(file, str) or not file:
        raise ConfigError(f"{option}: names no file: give file=PATH")
    for key in ("format", "id"):
        if not isinstance(keys.get(key, ""), str):
            raise ConfigError(f"{option}: {key} is not a text: write it in quotes")
    return Drive(
        file=Path(file),
        format=str(keys.get("format", "raw")),
        readonly=_switch(option, "readonly", keys.get("readonly", False)),
        snapshot=_switch(option, "snapshot", keys.get("snapshot", False)),
        id=str(keys.get("id", "")),
    )


def _switch(option: str, key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("on", "off"):
        return _SWITCH[str(value)]
    raise ConfigError(f"{option}: {key}={value} is neither on nor off: write one of them")
