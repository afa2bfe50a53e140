"""`train` and `collect` killed at random moments and started again, against a run that nobody disturbed.

Run by test_endurance.py with few kills and by `make endurance` with 20 of each. A kill is SIGKILL to the command and
all its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, safe_open

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "apq_deploy.cli")
SPACE = """
schema = 1
name = "tiny"
input_channels = 1
input_size = 28
num_classes = 3
stem_channels = 4
head_channels = 8
kernel_sizes = [3, 5]
expand_min = 2
expand_max = 4
channel_step = 4
bits = [4, 8]
fixed_bits = 8
stages = [{ out_channels = 4, stride = 2, depths = [1, 2] }, { out_channels = 6, stride = 2, depths = [1, 2] }]
"""
Row = tuple[str, int, str, float, float]
"""kind, number, genes, accuracy, seconds"""


@dataclass(frozen=True)
class Place:
    """A folder with a tiny space and a tiny data set in FashionMNIST's format."""

    path: Path

    @classmethod
    def make(cls, path: Path, images: int = 240) -> Place:
        raw = path / "data" / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        (path / "tiny.toml").write_text(SPACE, encoding="utf-8")
        rng = np.random.default_rng(0)
        for part, n in (("train", images), ("t10k", 60)):
            labels = rng.integers(0, 3, n).astype(np.uint8)
            pixels = rng.integers(0, 150, (n, 28, 28)).astype(np.uint8)
            for image, label in zip(pixels, labels, strict=True):
                image[9 * label : 9 * label + 9, 6:22] += 70
            for name, content, head in (("images-idx3", pixels, (2051, n, 28, 28)), ("labels-idx1", labels, (2049, n))):
                (raw / f"{part}-{name}-ubyte").write_bytes(np.array(head, ">i4").tobytes() + content.tobytes())
        return cls(path)

    def start(self, *arguments: str, model: Path) -> subprocess.Popen[str]:
        """A command on the tiny space, in a process group of its own."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*COMMAND, *arguments, "--space", "tiny.toml", "--model", str(model), "--data", "data"],
            cwd=self.path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


def rows(model: Path) -> list[Row]:
    """All points of a model folder; looked at in a copy, as opening a database mends what a kill has left."""
    if not (model / "points.sqlite").exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        for file in model.glob("points.sqlite*"):
            shutil.copy(file, folder)
        db = sqlite3.connect(Path(folder) / "points.sqlite")
        try:
            return db.execute("SELECT * FROM points ORDER BY kind, number").fetchall()
        except sqlite3.OperationalError:
            return []  # killed before the table was made
        finally:
            db.close()


def training_state(model: Path) -> str:
    """Phase and step of the checkpoint, empty without one."""
    path = model / "training.safetensors"
    if not path.exists():
        return ""
    with safe_open(path, framework="np") as file:
        run = json.loads(file.metadata()["run"])
    return f"{run['phase']} step {run['step']}"


@dataclass
class Outcome:
    """What became of a command that was killed again and again."""

    kills: int = 0
    log: list[str] = field(default_factory=list)
    states: list[object] = field(default_factory=list)


def finish(process: subprocess.Popen[str]) -> float:
    """Seconds that the rest of a run took. Raises: AssertionError if it failed."""
    started = time.monotonic()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return time.monotonic() - started


def kill_and_restart(
    start: Callable[[], subprocess.Popen[str]],
    state: Callable[[], object],
    kills: int,
    seconds: tuple[float, float],
    seed: int,
) -> Outcome:
    """The log of a command that is killed `kills` times, then left alone. seconds: until its first work, and in all.

    A third of the kills falls into the start, the others some time after a start has kept new work, however slow the
    machine is at the moment.
    """
    rng = random.Random(seed)
    outcome = Outcome()
    while outcome.kills < kills:
        before, process, started = state(), start(), time.monotonic()
        first, whole = seconds
        if rng.random() < 1 / 3:
            delay = rng.uniform(0, first)
        else:
            while state() == before and process.poll() is None:
                time.sleep(0.02)
            delay = rng.uniform(0, 0.7 * (whole - first) / kills)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:
            finish(process)
            outcome.log.append(f"done before kill {outcome.kills + 1}")
            return outcome
        outcome.kills += 1
        outcome.states.append(found := state())
        words = f"{len(found)} points" if isinstance(found, list) else found or "no checkpoint yet"
        outcome.log.append(f"kill {outcome.kills:2} after {time.monotonic() - started:5.2f} s: {words}")
    took = finish(start())
    outcome.log.append(f"left alone: done after {took:.1f} s more")
    return outcome


def timed(process: subprocess.Popen[str], begun: Callable[[], bool]) -> tuple[float, float]:
    """Seconds until the first work was kept, and until the end, of a run that nobody disturbs."""
    started = time.monotonic()
    while not begun() and process.poll() is None:
        time.sleep(0.02)
    first = time.monotonic() - started
    finish(process)
    return first, time.monotonic() - started


def killed_training(place: Place, kills: int, seed: int, steps: tuple[int, int, int, int]) -> list[str]:
    """The log. Raises: AssertionError if the weights are not those of an undisturbed run."""
    names = ("--largest-steps", "--kernel-steps", "--depth-steps", "--width-steps")
    arguments = ["train", "--batch-size", "32"]
    arguments += [word for name, n in zip(names, steps, strict=True) for word in (name, str(n))]
    calm, rough = place.path / "calm", place.path / "rough"
    seconds = timed(place.start(*arguments, model=calm), (calm / "training.safetensors").exists)
    outcome = kill_and_restart(
        lambda: place.start(*arguments, model=rough),
        lambda: training_state(rough),
        kills,
        seconds,
        seed,
    )
    assert sorted(p.name for p in rough.iterdir()) == sorted(p.name for p in calm.iterdir())
    for name in ("supernet.safetensors", "training.safetensors"):
        ours, theirs = load_file(rough / name), load_file(calm / name)
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            assert np.array_equal(ours[key], array), f"{name}: {key} differs"
    measured = [json.loads((m / "provenance.json").read_text())["steps"]["train"] for m in (calm, rough)]
    assert measured[0]["test_accuracy_percent"] == measured[1]["test_accuracy_percent"]
    head = f"train: undisturbed {seconds[1]:.1f} s, first checkpoint after {seconds[0]:.1f} s; {outcome.kills} kills"
    return [head, *outcome.log, f"weights equal, {len(theirs)} tensors of the checkpoint too"]


def killed_collection(place: Place, kills: int, seed: int, counts: tuple[int, int], workers: int = 2) -> list[str]:
    """The log. Raises: AssertionError if a point is lost, doubled, measured twice, or another."""
    arguments = ["collect", "--float-points", str(counts[0]), "--quantized-points", str(counts[1])]
    arguments += ["--finetune-steps", "4", "--held-out-images", "40", "--workers", str(workers)]
    trained, calm, rough = (place.path / name for name in ("calm", "calm-points", "rough-points"))
    for folder in (calm, rough):
        folder.mkdir()
        shutil.copy(trained / "supernet.safetensors", folder)
    seconds = timed(place.start(*arguments, model=calm), lambda: bool(rows(calm)))
    outcome = kill_and_restart(lambda: place.start(*arguments, model=rough), lambda: rows(rough), kills, seconds, seed)
    ours, theirs = rows(rough), rows(calm)
    assert [row[:4] for row in ours] == [row[:4] for row in theirs]
    assert len({row[:2] for row in ours}) == len(ours)
    for before in outcome.states:
        assert isinstance(before, list)
        assert set(before) <= set(ours), "a point that was there has gone, or was measured anew"
    assert sorted(p.name for p in rough.iterdir()) == sorted(p.name for p in calm.iterdir())
    head = f"collect, {workers} workers: undisturbed {seconds[1]:.1f} s, first point after {seconds[0]:.1f} s; "
    return [
        f"{head}{outcome.kills} kills, points after each:",
        *outcome.log,
        f"{len(ours)} points equal, none lost, none doubled, none measured twice",
    ]


def main() -> None:
    """Print the log of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Place.make(Path(name))
        print("\n".join(killed_training(place, arguments.kills, arguments.seed, (2000, 1200, 1200, 2000))), flush=True)
        print("\n".join(killed_collection(place, arguments.kills, arguments.seed, (160, 80))), flush=True)


if __name__ == "__main__":
    main()
