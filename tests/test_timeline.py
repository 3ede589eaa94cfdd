"""The timeline's file: whole at every moment, whatever happens."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from vmm import timeline
from vmm.errors import ConfigError
from vmm.timeline import BUFFER, MOST_WAITING, Timeline, Track


def events(path: Path) -> list[dict[str, Any]]:
    loaded = json.loads(path.read_text())
    assert isinstance(loaded, list)
    return loaded


def fill(track: Track, count: int = BUFFER) -> None:
    for at in range(count):
        track.span("uart", "hold", at, at + 1)


def test_spans_come_out_on_the_track_of_their_thread(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Timeline(str(path))
    zero = trace._zero
    trace.begin()
    trace.track("vcpu0").span("guest", "guest", zero + 1500, zero + 4000, {"idle_ns": 7})

    def other() -> None:
        trace.track('io "1"').span("timer", "timer", zero, zero + 1)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    trace.close()
    rows = events(path)
    names = {row["tid"]: row["args"]["name"] for row in rows if row["ph"] == "M"}
    assert sorted(names.values()) == ['io "1"', "vcpu0"]
    (guest,) = (row for row in rows if row["name"] == "guest")
    assert names[guest["tid"]] == "vcpu0"
    assert guest == {
        "ph": "X",
        "name": "guest",
        "cat": "guest",
        "pid": os.getpid(),
        "tid": guest["tid"],
        "ts": 1.5,
        "dur": 2.5,
        "args": {"idle_ns": 7},
    }


def test_the_file_loads_after_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    trace = Timeline(str(path))
    seen: list[int] = []
    write = Timeline._write

    def write_and_load(self: Timeline, rows: str) -> None:
        write(self, rows)
        seen.append(len(events(path)))

    monkeypatch.setattr(Timeline, "_write", write_and_load)
    trace.begin()
    track = trace.track("vcpu0")
    for _ in range(3):
        fill(track)
    trace.close()
    assert seen == [BUFFER + 1, 2 * BUFFER + 1, 3 * BUFFER + 1, 3 * BUFFER + 1]


def test_a_trace_without_spans_is_an_empty_array(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("what was there before, and longer than the trace will be")
    trace = Timeline(str(path))
    trace.begin()
    trace.close()
    assert events(path) == []


def test_a_trace_that_never_began_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("kept")
    for path in (old, new):
        Timeline(str(path)).close()
    assert old.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize("name", ["missing/trace.json", "."])
def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"--trace .*: give a file that can be written"):
        Timeline(str(tmp_path / name))


@pytest.mark.parametrize("fits", [0, 100])
def test_a_full_disk_cuts_the_trace_after_its_last_whole_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    path = tmp_path / "trace.json"
    room = [10**9]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        extends = at + len(data) > os.fstat(fd).st_size
        if extends and not room[0]:
            raise OSError(28, "No space left on device")
        some = data[: room[0]] if extends else data
        room[0] -= len(some) if extends else 0
        return real(fd, some, at)

    real = os.pwrite
    monkeypatch.setattr(timeline.os, "pwrite", pwrite)
    trace = Timeline(str(path))
    trace.begin()
    track = trace.track("vcpu0")
    trace.hand_over(track, [("guest", "guest", 0, 1, None)] * 3)
    while not trace.statistics()["written"]:
        pass
    room[0] = fits
    fill(track, 10 * BUFFER)
    trace.close()
    assert trace.problem.startswith("No space left on device: the trace is cut after ")
    assert len(events(path)) == 4
    assert "No space left" in repr(trace)


def test_what_the_writer_cannot_keep_up_with_is_dropped_and_counted(tmp_path: Path) -> None:
    trace = Timeline(str(tmp_path / "trace.json"))
    track = trace.track("vcpu0")  # nobody takes a buffer before `begin`
    for _ in range(MOST_WAITING + 2):
        fill(track)
    assert trace.problem == f"{2 * BUFFER} spans are missing: they came faster than they could be written"
    trace.begin()
    trace.close()
    assert len(events(tmp_path / "trace.json")) == MOST_WAITING * BUFFER + 1


def test_a_pipe_gets_one_array(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    trace = Timeline(str(path))
    trace.begin()
    trace.track("vcpu0").span("guest", "guest", 0, 1)
    trace.close()
    assert len(json.loads(os.read(reader, 1 << 16))) == 2
    os.close(reader)


def test_a_reader_that_has_gone_ends_the_trace_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    trace = Timeline(str(path))
    os.close(reader)
    trace.begin()
    trace.track("vcpu0").span("guest", "guest", 0, 1)
    trace.close()
    assert trace.problem.startswith("Broken pipe")
