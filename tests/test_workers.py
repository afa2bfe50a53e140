"""Workers: results as they come, killed processes, errors; a timer of many machines."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from apq_deploy import UserError
from apq_deploy.cluster import RayWorkers
from apq_deploy.tables import build_model_table
from apq_deploy.workers import Processes
from hwmodels import ConvLayer, Cost, Precision
from hwmodels.measured import MeasuredDevice, TimingPlan, measure_entries


def square(folder: Path, number: int, deaths: int) -> int:
    """The square of 0, 1, ..; task 1 first kills its own process so many times."""
    marks = len(list(folder.iterdir()))
    if number == 1 and marks < deaths:
        (folder / str(marks)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number < 0:
        raise UserError("expected a number from 0, got less")
    return number**2


def test_a_killed_process_costs_only_its_task(tmp_path: Path) -> None:
    with Processes(2) as workers:
        found = dict(workers.results(square, [(tmp_path, n, 2) for n in range(6)]))
    assert found == {(tmp_path, n, 2): n**2 for n in range(6)}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_task_that_always_kills_its_process_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="killed 3 times at the same task"), Processes(1) as workers:
        list(workers.results(square, [(tmp_path, n, 9) for n in (0, 1)]))
    assert len(list(tmp_path.iterdir())) == 3


def test_errors_of_a_task_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a number from 0"), Processes(1) as workers:
        list(workers.results(square, [(tmp_path, -1, 0)]))
    with pytest.raises(UserError, match="at least one worker, got 0"):
        Processes(0)


def test_a_timer_measures_what_is_missing_in_any_order(tmp_path: Path) -> None:
    entries = [(ConvLayer(8, 4 * n, 4, 1), Precision(8, 8)) for n in (1, 2, 3)]
    device, plan = MeasuredDevice("many", {}), TimingPlan(0, 2)
    journal = tmp_path / "journal.csv"

    def never(layer: ConvLayer, precision: Precision) -> list[float]:
        raise AssertionError

    def timer(missing: object) -> list:
        assert isinstance(missing, list)
        asked.append(missing)
        return [(e, Cost(e[0].out_channels, source="measured", spread_ms=0.0, repeats=2)) for e in reversed(missing)]

    asked: list[list] = []
    part = measure_entries(never, device, entries[:1], plan, journal, timer=timer)
    whole = measure_entries(never, device, entries, plan, journal, timer=timer)
    assert asked == [entries[:1], entries[1:]]
    assert list(whole) == entries
    assert [cost.latency_ms for cost in whole.values()] == [4, 8, 12]
    assert whole[entries[0]] == part[entries[0]]


def test_what_ray_is_not_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the cluster says how many"):
        RayWorkers("10.0.0.1:6379", 4)
    with pytest.raises(UserError, match=r"expected the hardware 'host' with --ray, .* got 'bitfusion'"):
        build_model_table("bitfusion", tmp_path / "table.csv", "fashion", None, 1, 20, "local")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'apq-deploy\[ray\]'"), RayWorkers("local"):
        pass
