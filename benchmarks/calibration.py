"""Calibration side by side: the KL search with plain loops, a whole network with onnxruntime's entropy calibration.

`python -m benchmarks.calibration` prints both, and what each clip method leaves of generated tensors. The second part
runs each tool in a process of its own, on the same MobileNetV2 with random weights, the same images of noise and the
same tensors; `--images`, `--size` and `--batch` set how much. `--sqnr` prints the last part alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import CalibrationDataReader, EntropyCalibrater

from apq_deploy.quantize.histogram import Histogram
from apq_deploy.quantize.thresholds import METHODS, choose_clip, kl_divergences, weight_clip
from benchmarks.mobilenet_v2 import mobilenet_v2

SEED = 0
BINS = 2048
BITS = 8
TOOLS = {
    "apq-deploy": "KL, 2048 bins",
    "onnxruntime-128": "entropy, its default of 128 bins",
    "onnxruntime-2048": "entropy, 2048 bins",
}


# The search


def kl_of_clip(counts: NDArray[np.int64], levels: int, clip: int) -> float:
    """KL divergence of the clip at the upper edge of bin clip - 1; a loop over levels, as calibrators write it."""
    steps = levels - 1
    p = counts[:clip].astype(np.float64)
    p[-1] += counts[clip:].sum()
    q = np.zeros(clip)
    starts = [0, *(((2 * k - 1) * clip + steps - 1) // (2 * steps) for k in range(1, levels)), clip]
    for start, end in pairwise(starts):
        occupied = p[start:end] > 0
        if occupied.any():
            q[start:end] = np.where(occupied, counts[start:end].sum() / occupied.sum(), 0)
    return _divergence(p, q)


def kl_of_clip_by_array(counts: NDArray[np.int64], levels: int, clip: int) -> float:
    """The same with array operations inside a candidate, so that only the loop over candidates is left."""
    steps = levels - 1
    p = counts[:clip].astype(np.float64)
    p[-1] += counts[clip:].sum()
    occupied = p > 0
    level = ((2 * np.arange(clip) + 1) * steps + clip) // (2 * clip)
    mass = np.bincount(level, counts[:clip], levels)
    bins = np.bincount(level, occupied, levels)
    return _divergence(p, np.where(occupied, (mass / np.maximum(bins, 1))[level], 0))


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    held = p > 0
    if (q[held] == 0).any():
        return float("inf")
    share = p[held] / p.sum()
    return float((share * np.log(share / (q[held] / q.sum()))).sum())


def time_s(call: Callable[[], object], repeats: int) -> float:
    """Shortest time of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_searches() -> None:
    """Print time and best candidate of the search and of the plain loops, at 8, 64 and 256 levels."""
    values = np.random.default_rng(SEED).laplace(size=1_000_000).astype(np.float32)
    histogram = Histogram(BINS, signed=True)
    # The largest magnitude at the end of the range: all 2,048 bins are in use.
    histogram.update(values / np.abs(values).max())
    counts = histogram.counts
    print(f"KL search over all clips, {BINS} bins, 1,000,000 Laplace values (best of 20; loops once)")
    print("levels  candidates   search    loop, numpy inside     loop over levels       same clip")
    for levels in (8, 64, 256):
        candidates = range(levels, BINS + 1)
        fast_s = time_s(lambda levels=levels: kl_divergences(counts, levels, levels), 20)
        fast = kl_divergences(counts, levels, levels).argmin()
        loops = []
        same = True
        for divergence in (kl_of_clip_by_array, kl_of_clip):
            start = time.perf_counter()
            best = np.argmin([divergence(counts, levels, clip) for clip in candidates])
            loops.append(time.perf_counter() - start)
            same &= bool(best == fast)
        columns = "   ".join(f"{1e3 * loop:9.1f} ms {loop / fast_s:6.0f}x" for loop in loops)
        print(f"{levels:6d}  {len(candidates):10d}  {1e3 * fast_s:5.2f} ms  {columns}   {'yes' if same else 'NO'}")


# The whole network


def images(count: int, size: int, batch: int) -> Iterator[NDArray[np.float32]]:
    """Batches of noise, made one at a time so that they take no memory of note."""
    rng = np.random.default_rng(SEED)
    for start in range(0, count, batch):
        yield rng.random((min(batch, count - start), 3, size, size), dtype=np.float32)


def calibrate_here(path: Path, batches: Iterator[NDArray[np.float32]]) -> dict[str, float]:
    """Clip by tensor name, each batch counted and dropped."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    unsigned = {"image"} | {node.output[0] for node in model.graph.node if node.op_type in ("Clip", "Relu")}
    model.graph.output.extend(model.graph.value_info)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as its calibrators do
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    histograms = {name: Histogram(BINS, signed=name not in unsigned) for name in ("image", *names)}
    for batch in batches:
        histograms["image"].update(batch)
        for name, array in zip(names, session.run(None, {"image": batch}), strict=True):
            histograms[name].update(array)
    return {
        name: choose_clip(histogram, BITS, "kl", drop_zeros=name in unsigned) for name, histogram in histograms.items()
    }


class Reader(CalibrationDataReader):
    """The batches as onnxruntime wants them."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:  # type: ignore[override]
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def calibrate_onnxruntime(path: Path, batches: Iterator[NDArray[np.float32]], bins: int) -> dict[str, float]:
    """Clip by tensor name, from onnxruntime's entropy calibration; 128 levels, as is its default."""
    augmented = path.with_name("augmented.onnx")
    calibrater = EntropyCalibrater(str(path), None, str(augmented), num_bins=bins)
    calibrater.augment_graph()
    calibrater.create_inference_session()
    calibrater.collect_data(Reader(batches))
    data = calibrater.compute_data().data
    return {name: float(np.abs(entry.range_value).max()) for name, entry in data.items()}


def peak_bytes() -> int:
    """Largest resident size that this process has had. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure(tool: str, path: Path, count: int, size: int, batch: int) -> None:
    """Calibrate with `tool` in this process and print time, memory and clips as JSON."""
    batches = images(count, size, batch)
    before = peak_bytes()
    start = time.perf_counter()
    if tool == "apq-deploy":
        clips = calibrate_here(path, batches)
    else:
        clips = calibrate_onnxruntime(path, batches, int(tool.removeprefix("onnxruntime-")))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "before_bytes": before, "peak_bytes": peak_bytes(), "clips": clips}))


def compare_networks(count: int, size: int, batch: int) -> None:
    """Print time and peak memory of each tool, and the ratios."""
    print(f"\nMobileNetV2 at {size}, {count} images, {batch} at a time, every activation tensor; a process each")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mobilenet_v2.onnx"
        mobilenet_v2(path, np.random.default_rng(SEED), size=size)
        results = {}
        for tool in TOOLS:
            arguments = ["--tool", tool, "--model", path, "--images", count, "--size", size, "--batch", batch]
            command = [sys.executable, "-m", "benchmarks.calibration", *map(str, arguments)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[tool] = json.loads(output.splitlines()[-1])
    ours = results["apq-deploy"]
    for tool, description in TOOLS.items():
        result = results[tool]
        assert result["clips"].keys() == ours["clips"].keys(), "the tools calibrated different tensors"
        print(
            f"{tool:16s} {description:33s} {result['seconds']:7.1f} s {result['peak_bytes'] / 1e9:6.2f} GB peak "
            f"({result['before_bytes'] / 1e9:.2f} before)   time {result['seconds'] / ours['seconds']:5.1f}x   "
            f"memory {result['peak_bytes'] / ours['peak_bytes']:5.1f}x"
        )


# What each method leaves of a tensor


def tensors(rng: np.random.Generator) -> Iterator[tuple[str, bool, NDArray[np.float32]]]:
    """Name, whether signed, and values of generated weights (signed) and of ReLU6 outputs."""
    spreads = np.exp(rng.normal(0, 0.8, (64, 1)))
    weights = {
        "weights: Gauss": rng.normal(size=50_000),
        "weights: Laplace": rng.laplace(size=50_000),
        "weights: heavy tails (Student t, 3)": rng.standard_t(3, size=50_000),
        "weights: 64 channels, unlike spreads": spreads * rng.normal(size=(64, 800)),
        "weights: Gauss, only 300 values": rng.normal(size=300),
    }
    activations = {
        "ReLU6 of Gauss, mean -1, deviation 1.5": rng.normal(-1, 1.5, 1_000_000),
        "ReLU6 of Gauss, mean 0, deviation 2": rng.normal(0, 2, 1_000_000),
        "ReLU6 of Gauss, mean 1, deviation 4": rng.normal(1, 4, 1_000_000),
        "ReLU6 of Laplace, mean 0, scale 0.5": rng.laplace(0, 0.5, 1_000_000),
    }
    for name, values in weights.items():
        yield name, True, values.astype(np.float32)
    for name, values in activations.items():
        yield name, False, values.clip(0, 6).astype(np.float32)


def sqnr_db(values: NDArray[np.float32], signed: bool, bits: int, clip: float) -> float:
    """Power of the values over power of the quantization error, in decibels."""
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    scale = clip / steps
    quantized = scale * np.clip(np.rint(values / scale), -steps, steps)
    return float(10 * np.log10((values**2).sum(dtype=np.float64) / ((values - quantized) ** 2).sum(dtype=np.float64)))


def compare_methods() -> None:
    """Print SQNR by tensor, bits and method, as rows of a table."""
    print("\nSQNR in dB of generated tensors, and in brackets the clip as a share of the maximum")
    print(f"| tensor | bits | {' | '.join(METHODS)} |")
    print("|---|---|" + "---|" * len(METHODS))
    for name, signed, values in tensors(np.random.default_rng(SEED)):
        histogram = Histogram(BINS, signed=signed)
        histogram.update(values)
        for bits in (4, 6, 8):
            cells = []
            for method in METHODS:
                if signed:
                    clip = weight_clip(values, bits, method)
                else:
                    clip = choose_clip(histogram, bits, method, drop_zeros=True)
                cells.append(f"{sqnr_db(values, signed, bits, clip):.1f} ({clip / histogram.max_abs:.2f})")
            print(f"| {name} | {bits} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sqnr", action="store_true", help="only the table of methods")
    parser.add_argument("--tool", choices=list(TOOLS), help="measure this one here, on --model")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if options.tool is not None:
        measure(options.tool, options.model, options.images, options.size, options.batch)
        return
    if options.sqnr:
        compare_methods()
        return
    compare_searches()
    compare_methods()
    compare_networks(options.images, options.size, options.batch)


if __name__ == "__main__":
    main()
