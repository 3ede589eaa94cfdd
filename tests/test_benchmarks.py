"""The benchmarks' own machinery: what they measure with, and the page that shows it."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import page, quiet
from benchmarks.exits import Cell, distribution, measure
from benchmarks.guests import ROOT, Line
from benchmarks.locks import blocks, headline, latency, model, seamless, seams, threads
from benchmarks.plot import chart, svg
from benchmarks.quiet import Quiet
from vmm.bql import POLICIES, Policy


def test_the_page_shows_the_committed_results() -> None:
    assert page.write(page.RESULTS, page.PAGE, check=True) == 0


def test_a_guest_that_exits_is_measured() -> None:
    timed = measure(Cell(timed=True, beside="RTC", load="completions", accesses=200))
    assert timed["rate"] > 0
    assert timed["total"] >= timed["rate"]  # the other hart may not have had its turn
    assert 0 < timed["p50"] <= timed["p99"] <= timed["max"] + 0.1
    assert "p50" not in measure(Cell(accesses=200))


def test_a_register_that_syncs_and_accesses_apart_are_measured() -> None:
    apart = Cell(register="RBR", timed=True, apart=50, accesses=100)
    assert measure(apart)["rate"] < 1e6 / 50
    assert measure(replace(apart, register="time"))["p50"] < measure(apart)["p50"]


def test_percentiles_are_interpolated_within_a_tick() -> None:
    taken = distribution([20] * 60 + [21] * 39 + [500])
    assert taken["p50"] == pytest.approx(1.95 + 0.1 * 50 / 60)
    assert taken["p99"] == pytest.approx(2.15)
    assert taken["max"] == 50.0


def test_a_disturbed_sample_is_taken_again_while_there_is_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.0, 0.9, 0.0, 0.01, 0.9])  # before, beside, before, beside; beside the second sample

    class Span:
        def share(self) -> float:
            return next(shares)

    monkeypatch.setattr(quiet, "_Span", Span)
    monkeypatch.setattr(quiet, "LOOK_S", 0.0)
    patient = Quiet(60)
    values = iter(["disturbed", "good", "with no patience left"])
    assert patient.sample(lambda: next(values)) == "good"
    patient._left = 0
    assert patient.sample(lambda: next(values)) == "with no patience left"
    assert str(patient).endswith("1 disturbed samples repeated")


def test_a_plot_holds_every_line() -> None:
    picture = svg("<latency>", {"idle, Python 3.11": [(1.4, 0.5), (900.0, 1e-4)], "idle, Python 3.13t": [(2.0, 0.5)]})
    assert "&lt;latency&gt;" in picture
    assert picture.count('class="l"') == 4
    assert picture.count("stroke-dasharray") == 2


def test_a_chart_shows_values_over_a_count_and_bands_around_them() -> None:
    lines = {"device, Python 3.13t": [(1, 2e6, 1e6, 3e6), (64, 90e6, 50e6, 95e6)]}
    picture = chart("two policies (model)", "threads", lines, bands=True)
    assert picture.count("fill-opacity") == 1
    assert ">64</text>" in picture
    assert ">100 M</text>" in picture
    assert "fill-opacity" not in chart("two policies", "threads", {"device": [(1, 2.0), (8, 3.0)]})


def test_every_benchmark_can_be_run_by_its_name() -> None:
    for module in page.MODULES:
        assert importlib.util.find_spec(f"benchmarks.{module}") is not None


def test_what_two_harts_do_is_compared_with_what_each_does_alone() -> None:
    said = {"rtc-1": Line(100, 1.0), "uart-1": Line(300, 1.0), "rtc-2": Line(90, 1.0), "uart-2": Line(210, 1.0)}
    assert headline.alone(said) == pytest.approx(200)
    assert headline.together(said) == pytest.approx(300)
    assert headline.scale(said) == pytest.approx(1.5)


def test_fairness_is_1_when_all_get_the_same_and_1_of_n_when_one_gets_all() -> None:
    assert threads.jain([3.0, 3.0, 3.0]) == pytest.approx(1)
    assert threads.jain([0.0, 5.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_scaling_counts_each_thread_by_what_its_device_gives_to_one() -> None:
    assert threads.scaling([100.0, 10.0], [100.0, 20.0]) == pytest.approx(1.5)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert threads.percentile(range(1, 101), 0.99) == 99
    assert threads.percentile([7], 0.5) == 7


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_on_devices_are_measured(policy: Policy) -> None:
    cell = threads.Cell(policy, 4, (threads.UART, threads.RTC, threads.RNG, threads.BALLOON), seconds=0.001)
    result = threads.measure(cell)
    assert len(result["rates"]) == 4
    assert all(rate > 0 for rate in result["rates"])
    assert 0 < result["p50"] <= result["p99"]
    assert cell.name == "4 threads on UART and RTC and rng and balloon"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_that_blocks_is_measured_beside_another(policy: Policy) -> None:
    assert blocks.measure(blocks.Cell(policy, blocks.BLOCKED, seconds=0.02))["p50"] > 0


def test_the_io_threads_lateness_is_measured() -> None:
    result = latency.measure(latency.Cell("device", "two harts on devices", seconds=0.05))
    assert result["rate"] > 0
    assert all(result[event]["max"] > 0 for event in latency.EVENTS)


PARAMETERS = model.Parameters(alone=500.0, held=0.8, call=0.0, wake=0.0, latency=0.0, handover=0.0)


def total(load: model.Load, parameters: model.Parameters = PARAMETERS) -> float:
    return sum(model.rates(load, parameters, duration=1e6))


def test_in_the_model_threads_on_locks_of_their_own_scale_with_the_processors() -> None:
    assert total(model.Load(1, 1, 1)) == pytest.approx(2e6, rel=0.01)
    assert total(model.Load(4, 4, 4)) == pytest.approx(8e6, rel=0.01)
    assert total(model.Load(6, 6, 2)) == pytest.approx(4e6, rel=0.02)


def test_in_the_model_one_lock_gives_what_its_holder_gets_through() -> None:
    free = total(model.Load(4, 1, 4))
    assert 1e9 / 500 < free < 1.02e9 / 400


def test_in_the_model_who_releases_pays_for_those_that_wait() -> None:
    slow_to_wake = replace(PARAMETERS, call=2000.0, latency=1e9)
    assert total(model.Load(2, 1, 2), slow_to_wake) == pytest.approx(1e9 / (500 + 2000), rel=0.02)


def test_in_the_model_a_line_that_all_move_bounds_them_together() -> None:
    shared = replace(PARAMETERS, shared=1.0, line=200.0)
    assert total(model.Load(32, 32, 32), shared) == pytest.approx(5e6, rel=0.05)
    assert total(model.Load(1, 1, 32), shared) == pytest.approx(2e6, rel=0.01)


def test_in_the_model_threads_take_turns_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "SLICE_NS", 20_000)
    rates = model.rates(model.Load(3, 1, 1), PARAMETERS, duration=1e6)
    assert all(rates)
    assert sum(rates) <= 2.05e6


def test_the_model_is_of_a_free_threaded_build(tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    with pytest.raises(SystemExit, match=r"--points .*: No such file"):
        model.points(file)
    file.write_text('{"figures": [{"name": "x", "unit": "accesses/s", "medians": {"bql, Python 3.11": 1}}]}')
    with pytest.raises(SystemExit, match="nothing was measured on a free-threaded build"):
        model.points(file)
    file.write_text("no JSON")
    with pytest.raises(SystemExit, match="no result of"):
        model.points(file)


def test_the_model_sees_points_of_few_threads_only_and_is_checked_by_the_others() -> None:
    assert model.is_fitted(("bql", 2, 2))
    assert not model.is_fitted(("device", 8, 8))
    assert model.load_of(("bql", 8, 8), 2) == model.Load(threads=8, locks=1, processors=2)
    assert model.load_of(("device", 8, 4), 2) == model.Load(threads=8, locks=4, processors=2)


def test_a_run_without_seams_has_none_and_still_takes_its_locks(tmp_path: Path) -> None:
    look = """
from benchmarks.locks import seamless
seamless.take_out()
import inspect, linecache
from vmm.devices.uart16550 import Uart16550
from vmm.fabric.iothread import IoThread
from vmm.locks import Device, DeviceLock, Locking, entry
assert "serving" not in IoThread._main.__code__.co_names
assert "__enter__" not in vars(DeviceLock)
assert "contend" not in "".join(linecache.getlines(Uart16550.read.__code__.co_filename))
class Thing(Device):
    @entry
    def held(self):
        return self._lock.held()
assert Locking().make(Thing, "thing0").held()
"""
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    subprocess.run([sys.executable, "-c", look], cwd=ROOT, env=env, check=True)


def test_the_places_that_are_taken_out_are_found() -> None:
    source = "with a.serving(), b:\n    c\nwith d.waiting():\n    e\nwith f.serving(1): g"
    tree, found = seamless.without_seams(source, "x")
    assert found == 2
    assert ast.unparse(tree).splitlines() == ["with b:", "    c", "e", "with f.serving(1):", "    g"]
    assert seams.seams() >= 10


def test_an_interval_holds_its_median() -> None:
    low, high = seams.interval([1.0, 1.01, 1.02, 1.03, 1.5])
    assert 1.0 <= low <= 1.02 <= high <= 1.5
    assert seams.interval([1.0, 1.0]) == (1.0, 1.0)
