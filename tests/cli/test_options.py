from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmm.cli.options import EXAMPLES, GUESTS, Option, groups
from vmm.cli.parser import make_parser, parse
from vmm.cli.status import MEANINGS
from vmm.cli.values import parse_drive, parse_size, split_pairs
from vmm.errors import ConfigError
from vmm.machine.config import Drive


@pytest.mark.parametrize(
    ("text", "size"),
    [("64", 64 << 20), ("64M", 64 << 20), ("64m", 64 << 20), ("1G", 1 << 30), ("1GiB", 1 << 30), ("32768K", 32 << 20)],
)
def test_a_size_has_a_unit_and_a_bare_number_counts_mebibytes(text: str, size: int) -> None:
    assert parse_size("--mem", text) == size


def test_a_comma_in_a_value_is_written_twice() -> None:
    assert split_pairs("--drive", "file=a,,b,,,readonly,id=c") == {"file": "a,b,", "readonly": "on", "id": "c"}


def test_a_drive_has_the_keys_of_qemu() -> None:
    drive = parse_drive("--drive", "file=d.img,format=raw,readonly=on,snapshot=off,id=root,if=virtio")
    assert drive == Drive(Path("d.img"), "raw", readonly=True, snapshot=False, id="root")


def test_options_become_settings() -> None:
    guest, settings = parse(
        [
            *("--kernel", "Image", "--smp", "2", "--mem", "1G", "--no-rng", "--balloon", "--timeout", "2.5"),
            *("--drive", "file=a", "--drive", "file=/b,snapshot=on", "--expect", "x+", "--locking", "bql"),
            *("--trace-exits", "--trace-exec=trace.txt"),
        ]
    )
    assert guest is None
    assert settings == {
        "kernel": Path("Image"),
        "smp": 2,
        "mem": 1 << 30,
        "rng": False,
        "balloon": True,
        "timeout": 2.5,
        "drive": (Drive(Path("a")), Drive(Path("/b"), snapshot=True)),
        "expect": re.compile(b"x+"),
        "locking": "bql",
        "trace_exits": "-",
        "trace_exec": "trace.txt",
    }


def test_a_guest_is_the_first_word() -> None:
    guest, settings = parse(["debian", "--run", "nproc", "--smp", "4"])
    assert guest is not None
    assert guest.name == "debian"
    assert settings == {"run": "nproc", "smp": 4}


def test_a_configuration_file_gives_options_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(
        'kernel = "Image"\nsmp = 2\nmem = 64\nrng = false\nno-reboot = true\ntimeout = 3\n'
        '[[drive]]\nfile = "disk.img"\nsnapshot = true\n[[drive]]\nfile = "/abs.img"\n'
    )
    _, settings = parse(["--config", str(file), "--smp", "4"])
    assert settings == {
        "kernel": tmp_path / "Image",
        "smp": 4,
        "mem": 64 << 20,
        "rng": False,
        "no_reboot": True,
        "timeout": 3.0,
        "drive": (Drive(tmp_path / "disk.img", snapshot=True), Drive(Path("/abs.img"))),
    }


BAD_ARGUMENTS: list[tuple[list[str], str]] = [
    (["--kernl", "x"], "--kernl: is not an option here: did you mean --kernel?"),
    (["--frobnicate"], "--frobnicate: is not an option here: see"),
    (["Image"], "Image: is neither an option nor the value of one"),
    (["--smp", "2", "debian"], "debian: comes too late"),
    (["debian", "--kernel", "x"], "--kernel: `vmm-run debian` brings its own"),
    (["demo", "--bios=x"], "--bios: `vmm-run demo` brings its own"),
    (["--smp"], "--smp: expected one argument"),
    (["--smp", "two"], "--smp: 'two' is not a whole number"),
    (["--smp", "2.5"], "--smp: '2.5' is not a whole number"),
    (["--mem", "lots"], "--mem: 'lots' is not a size"),
    (["--mem", "-5"], "--mem"),
    (["--timeout", "0"], "--timeout: '0' is not a time"),
    (["--timeout", "soon"], "--timeout: 'soon' is not a time"),
    (["--timeout", "nan"], "--timeout: 'nan' is not a time"),
    (["--expect", "("], "--expect: '(' is not a regular expression"),
    (["--locking", "none"], "--locking: 'none' is not a policy: give one of device, bql"),
    (["--kernel", ""], "--kernel: names no file"),
    (["--drive", "readonly=on"], "--drive: names no file"),
    (["--drive", "file="], "--drive: names no file"),
    (["--drive", "file=a,file=b"], "--drive: file is given twice"),
    (["--drive", "file=a,"], "has an empty part"),
    (["--drive", "file=a,cache=none"], "--drive: unknown key 'cache'"),
    (["--drive", "file=a,readonly=maybe"], "readonly=maybe is neither on nor off"),
    (["--drive", "file=a,if=scsi"], "--drive: if=scsi is not known"),
    (["--config", "/nonexistent.toml"], "--config /nonexistent.toml: cannot be read"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS)
def test_bad_arguments_are_one_line_that_names_the_option(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_FILES: list[tuple[str, str]] = [
    ("smp = ", "is not TOML"),
    ("kernl = 'x'", "kernl: is not an option: did you mean kernel?"),
    ("zzz = 1", "zzz: is not an option: known are kernel, "),
    ("config = 'other.toml'", "config: is not an option"),
    ("smp = 'two'", "smp: 'two' is not a whole number"),
    ("smp = 2.0", "smp: 2.0 is not a whole number"),
    ("smp = true", "smp: True is not a whole number"),
    ("kernel = 5", "kernel: 5 is not a text"),
    ("rng = 'no'", "rng: 'no' is not a switch: write true or false"),
    ("mem = 1.5", "mem: 1.5 is not a whole number"),
    ("timeout = false", "timeout: False is not a time"),
    ("locking = 'x'", "locking: 'x' is not a policy"),
    ("drive = 5", "drive: 5 is not a drive"),
    ("[[drive]]\nformat = 'raw'", "drive: names no file"),
    ("[[drive]]\nfile = 'x'\nsize = 5", "drive: unknown key 'size'"),
    ("[[drive]]\nfile = 'x'\nid = 5", "drive: id is not a text"),
]


@pytest.mark.parametrize(("text", "words"), BAD_FILES)
def test_a_bad_configuration_file_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(file)])
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("guest", [None, *GUESTS])
def test_help_explains_every_option_the_statuses_and_the_keys(guest: object) -> None:
    text = make_parser(guest).format_help()  # type: ignore[arg-type]
    options: list[Option] = [option for _, found in groups(guest) for option in found]  # type: ignore[arg-type]
    assert all(f"--{option.name}" in text or f"--no-{option.name}" in text for option in options)
    assert all(meaning in text for _, meaning in MEANINGS)
    assert "C-a x" in text


def test_the_examples_in_the_help_are_valid() -> None:
    for command, _ in EXAMPLES:
        words = [word.strip("'") for word in command.split()[1:]]
        parse(words)


def test_the_pages_of_the_documentation_are_up_to_date() -> None:
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    check = [sys.executable, "-m", "tools.docs_cli", "--check"]
    done = subprocess.run(check, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
