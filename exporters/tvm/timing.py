"""How long a compiled model takes, and onnxruntime beside it: each in a process of its own, in turn.

Both keep their threads spinning for a while after a run, so that timing them in one process would slow both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.files import read_file

COMPILED, ONNXRUNTIME = "compiled", "onnxruntime"
WARM_UP = 20  # runs before any is counted
_SEED = 0


@dataclass(frozen=True)
class Timing:
    """Latency of one image, in milliseconds of wall time, over all rounds.

    low_ms, high_ms: the 10th and the 90th percentile. cpu_ms: median of the CPU time of a run, all threads together,
    which other programs on the machine disturb less. repeats: runs counted.
    """

    runtime: str
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    cpu_ms: float
    repeats: int

    def __str__(self) -> str:
        spread = f"{self.low_ms:.3f} to {self.high_ms:.3f}"
        return f"{self.runtime}, {self.threads} thread(s): {self.median_ms:.3f} ms ({spread}), CPU {self.cpu_ms:.3f} ms"


@dataclass(frozen=True)
class TimingReport:
    """Timings of runtimes that took turns. load: the machine's load average as the measurement began."""

    timings: tuple[Timing, ...]
    load: float

    def ratio(self, runtime: str, to: str) -> float:
        """Median latency of a runtime as a share of another's."""
        by_name = {timing.runtime: timing for timing in self.timings}
        return by_name[runtime].median_ms / by_name[to].median_ms

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def time_compiled(
    path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str] | None = None,
    *,
    threads: int = 1,
    repeats: int = 200,
    rounds: int = 3,
) -> TimingReport:
    """Latency of the compiled model at `path` and, where `onnx_path` is given, of onnxruntime beside it.

    Each round starts a process for each, which warms up and then times `repeats` runs of a random image, from NumPy to
    NumPy.

    Raises: ExportError if a process fails.
    """
    commands = {COMPILED: worker_command(COMPILED, path, threads, repeats)}
    if onnx_path is not None:
        commands[ONNXRUNTIME] = worker_command(ONNXRUNTIME, onnx_path, threads, repeats)
    read_file(path)  # a missing file is told before any process starts
    return run_in_turn(commands, threads, rounds)


def worker_command(runtime: str, path: str | os.PathLike[str], threads: int, repeats: int) -> list[str]:
    """The command of a process that times `runtime` and prints its samples."""
    return [sys.executable, "-m", __name__, runtime, os.fspath(path), str(threads), str(repeats)]


def run_in_turn(commands: Mapping[str, Sequence[str]], threads: int, rounds: int) -> TimingReport:
    """Timings by running each of the commands once a round; a command prints what `print_samples` prints.

    Raises: ExportError if a command fails.
    """
    load = os.getloadavg()[0]
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    environment = {**os.environ, "TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    for _ in range(rounds):
        for name, command in commands.items():
            result = subprocess.run(command, capture_output=True, text=True, env=environment)
            if result.returncode:
                reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
                raise ExportError(f"timing {name} failed: {reason}")
            samples[name] += json.loads(result.stdout.strip().splitlines()[-1])
    return TimingReport(tuple(_summary(name, threads, found) for name, found in samples.items()), load)


def _summary(runtime: str, threads: int, samples: Sequence[tuple[float, float]]) -> Timing:
    wall = np.array([sample[0] for sample in samples])
    low, median, high = (float(value) for value in np.percentile(wall, [10, 50, 90]))
    return Timing(runtime, threads, median, low, high, statistics.median(cpu for _, cpu in samples), len(samples))


def print_samples(run: Callable[[], object], repeats: int) -> None:
    """Time `run` after a warm-up and print [wall ms, CPU ms] of each repeat as JSON."""
    for _ in range(WARM_UP):
        run()
    samples = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        samples.append([(time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3])
    print(json.dumps(samples))


def random_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """(1, *shape) from 0 to 1, the same in every process."""
    return np.random.default_rng(_SEED).random((1, *shape), dtype=np.float32)


def _compiled_run(path: str) -> Callable[[], object]:
    from exporters.tvm.compiled import CompiledModel

    model = CompiledModel.load(path)
    image = random_image(model.metadata.image_shape)
    return lambda: model(image)


def onnxruntime_run(path: str, threads: int) -> Callable[[], object]:
    """A run of an ONNX file in onnxruntime, on a random image."""
    from exporters.runtime import open_session

    session = open_session(path, threads)
    entry = session.get_inputs()[0]
    image = random_image(entry.shape[1:])
    return lambda: session.run(None, {entry.name: image})


def main() -> None:
    """Time one runtime in this process."""
    parser = argparse.ArgumentParser(description="Time one runtime; prints samples as JSON.")
    parser.add_argument("runtime", choices=(COMPILED, ONNXRUNTIME))
    parser.add_argument("path", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("repeats", type=int)
    options = parser.parse_args()
    path = str(options.path)
    run = _compiled_run(path) if options.runtime == COMPILED else onnxruntime_run(path, options.threads)
    print_samples(run, options.repeats)


if __name__ == "__main__":
    main()
