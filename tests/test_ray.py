"""Points and host tables by Ray: a cluster of this machine, one worker of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from endurance import ROOT, Place, finish, rows

from apq_deploy import SearchSpace
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.train import save_supernet
from apq_deploy.workload import ALL_WIDTHS, space_entries
from hwmodels import CostTable

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: `make test-ray` installs it")
POINTS = 8
TIMED = 20


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the processes below `pid`, by their ids."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except (OSError, ValueError):
            continue  # it has just ended

    def below(each: int) -> bool:
        return each in parents and (parents[each] == pid or below(parents[each]))

    return {each: line for each, line in lines.items() if below(each)}


def kill_a_worker(driver: subprocess.Popen[str], model: Path) -> int:
    """Number of points that were there when a worker of Ray was killed amidst a task."""
    while driver.poll() is None:
        found = len(rows(model))
        busy = [pid for pid, line in descendants(driver.pid).items() if line.startswith("ray::_timed")]
        if found and busy:
            os.kill(busy[0], signal.SIGKILL)
            return found
        time.sleep(0.05)
    raise AssertionError(driver.communicate()[1])


def test_a_killed_worker_costs_only_its_point(tmp_path: Path) -> None:
    """All points are there, and they are those of processes of this machine that nobody disturbs."""
    place = Place.make(tmp_path)
    models = [tmp_path / name for name in ("calm", "rough")]
    for model in models:
        model.mkdir()
        save_supernet(Supernet(SearchSpace.load(place.path / "tiny.toml")), model / "supernet.safetensors")
    (models[1] / "supernet.safetensors").write_bytes((models[0] / "supernet.safetensors").read_bytes())
    call = ("collect", "--float-points", str(POINTS), "--quantized-points", str(POINTS), "--finetune-steps", "2")
    call += ("--held-out-images", "40")
    finish(place.start(*call, model=models[0]))
    driver = place.start(*call, "--ray", "local", "--workers", "2", model=models[1])
    before = kill_a_worker(driver, models[1])
    finish(driver)
    calm, rough = ([row[:4] for row in rows(model)] for model in models)
    assert before < len(calm) == 3 * POINTS
    assert rough == calm


def test_a_host_table_by_ray(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    command = [sys.executable, "-m", "apq_deploy.cli", "lut", "build", "host", "--space", "tiny.toml"]
    command += ["-o", "table.csv", "--subset", str(TIMED), "--repeats", "3", "--ray", "local"]
    done = subprocess.run(
        command, cwd=place.path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = CostTable.load(place.path / "table.csv")
    assert set(table.costs) >= set(space_entries(SearchSpace.load(place.path / "tiny.toml"), ALL_WIDTHS))
    assert sum(cost.source == "measured" for cost in table.costs.values()) == TIMED
    assert len((place.path / "table.journal.csv").read_text().splitlines()) == 3 + TIMED
