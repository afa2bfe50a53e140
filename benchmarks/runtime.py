"""Latency of compiled networks beside the runtimes a user would pick otherwise: each in its own process, in turn.

    python -m benchmarks.runtime                              all four networks, 1 and 2 threads; some minutes
    python -m benchmarks.runtime mobilenet-224 imagenet       some of them
    python -m benchmarks.runtime --model m.onnx [float.onnx]  another quantized file, with its float original beside it
    python -m benchmarks.runtime fashion --repeats 5 --rounds 1 --threads 1     a trial

Ours, onnxruntime int8 and fp32, OpenVINO int8 (where `openvino` is installed) and TVM's own import of the same file, at
batch 1. Medians over all rounds, the 10th and 90th percentile, ratios to onnxruntime int8, and the layers of ours.

mobilenet-224, mobilenet-32: MobileNetV2 1.0 from onnxruntime's quantize_static, random weights. imagenet: the subnet of
`apq-imagenet` that a search finds within 8.4 ms on BitFusion, with random weights and a random predictor: the time of
a network of that space, not its accuracy. fashion: the demo's network, searched and exported by the commands.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mobilenet_v2 import quantized_mobilenet
from exporters import CompiledModel, ExportError, compile_tvm, read_onnx, write_onnx
from exporters.qnet import QuantizedNetwork
from exporters.runtime import run_onnx
from exporters.tvm.targets import resolve_target
from exporters.tvm.timing import (
    COMPILED,
    ONNXRUNTIME,
    TimingReport,
    print_samples,
    random_image,
    run_in_turn,
    worker_command,
)

INT8, FP32, OPENVINO, TVM_IMPORT = "onnxruntime int8", "onnxruntime fp32", "OpenVINO int8", "TVM's own import"
PARITY_IMAGES = 16
SLOW_REPEATS = 8  # of TVM's own import, which takes some forty times as long
SLOWEST = 8
IMAGE_SHAPE = "IMAGE_SHAPE"  # environment variable of the workers
Pair = tuple[Path, Path | None]


@dataclass(frozen=True)
class Settings:
    """How much is measured. repeats: runs in a process. rounds: processes of a runtime."""

    threads: Sequence[int]
    repeats: int
    rounds: int
    with_import: bool


def imagenet(folder: Path) -> Pair:
    """A searched subnet of `apq-imagenet`, and its layers in float."""
    from apq_deploy import SearchSpace
    from benchmarks.subnets import float_twin, quantized, searched

    space = SearchSpace.load("apq-imagenet")
    net = quantized(space, searched(space, 8.4))
    write_onnx(net, folder / "imagenet.onnx")
    float_twin(net, folder / "imagenet-float.onnx")
    return folder / "imagenet.onnx", folder / "imagenet-float.onnx"


def fashion(folder: Path) -> Pair:
    """The demo's network: searched and exported as in `make demo`; and its layers in float."""
    from benchmarks.subnets import float_twin

    model, run = folder / "fashion.onnx", folder / "run"
    for arguments in (("search", "--latency-ms", "0.05"), ("export", str(model))):
        command = [sys.executable, "-m", "apq_deploy.cli", *arguments, "--run", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    float_twin(read_onnx(model), folder / "fashion-float.onnx")
    return model, folder / "fashion-float.onnx"


NETWORKS: dict[str, Callable[[Path], Pair]] = {
    "mobilenet-224": lambda folder: quantized_mobilenet(folder, 224, 1000),
    "mobilenet-32": lambda folder: quantized_mobilenet(folder, 32, 10),
    "imagenet": imagenet,
    "fashion": fashion,
}


def compare(name: str, pair: Pair, folder: Path, settings: Settings) -> None:
    """Print parity, compile time, library size, latencies and the profile of one network."""
    quantized, original = pair
    net = read_onnx(quantized)
    print(f"\n{name}: {net.name}, image {' x '.join(map(str, net.input.shape))}", flush=True)
    others = other_runtimes(quantized, original, folder, settings)
    for threads in settings.threads:
        library = folder / f"model{threads}.so"
        model, seconds = compiled(net, threads)
        model.save(library)
        if threads == settings.threads[0]:
            packed, packed_seconds = compiled(net, threads, pack_weights=True)
            print(
                f"target {model.metadata.target}: compiled in {seconds:.1f} s, {model.size_bytes / 1e6:.3f} MB; "
                f"with packed weights in {packed_seconds:.1f} s, {packed.size_bytes / 1e6:.3f} MB\n"
                f"{differing(net, quantized, model)} logits of {PARITY_IMAGES} images differ from onnxruntime's, "
                f"{differing(net, quantized, packed)} with packed weights"
            )
        commands = {
            COMPILED: worker_command(COMPILED, library, threads, settings.repeats),
            **{runtime: command(threads, settings.repeats) for runtime, command in others.items()},
        }
        show(run_in_turn(commands, threads, settings.rounds))
        show_profile(model, net)


def compiled(net: QuantizedNetwork, threads: int, *, pack_weights: bool = False) -> tuple[CompiledModel, float]:
    """The compiled network, and the seconds that took."""
    started = time.perf_counter()
    model = compile_tvm(net, threads=threads, pack_weights=pack_weights)
    return model, time.perf_counter() - started


def other_runtimes(
    quantized: Path, original: Path | None, folder: Path, settings: Settings
) -> dict[str, Callable[[int, int], list[str]]]:
    """Commands by runtime, for threads and repeats; those that cannot run the file are told and left out."""

    def onnxruntime(path: Path) -> Callable[[int, int], list[str]]:
        return lambda threads, repeats: worker_command(ONNXRUNTIME, path, threads, repeats)

    found = {INT8: onnxruntime(quantized)}
    if original is not None:
        found[FP32] = onnxruntime(original)
    if find_spec("openvino"):
        found[OPENVINO] = lambda threads, repeats: own_command(OPENVINO, quantized, threads, repeats)
    if settings.with_import:
        library = folder / "imported.so"
        try:
            started = time.perf_counter()
            build_import(quantized, library)
            print(f"TVM's own import compiled in {time.perf_counter() - started:.1f} s", flush=True)
            found[TVM_IMPORT] = lambda threads, _: own_command(TVM_IMPORT, library, threads, SLOW_REPEATS)
        except Exception as error:  # the frontend raises whatever its operators raise
            print(f"TVM's own import cannot take the file: {_last_line(error)}", flush=True)
    for name, command in list(found.items()):
        try:
            run_in_turn({name: command(1, 1)}, 1, 1)
        except ExportError as error:
            print(f"left out: {_last_line(error)}", flush=True)
            del found[name]
    return found


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def differing(net: QuantizedNetwork, quantized: Path, model: CompiledModel) -> int:
    """How many logits of random images differ from onnxruntime's."""
    images = np.random.default_rng(2).random((PARITY_IMAGES, *net.input.shape), dtype=np.float32)
    return int(np.count_nonzero(model(images) != run_onnx(quantized, images)))


def show(report: TimingReport) -> None:
    print(f"{report.timings[0].threads} thread(s), load average {report.load:.1f}, {os.cpu_count()} cores")
    print(f"  {'':20} {'median ms':>10} {'10 % .. 90 %':>20} {'CPU ms':>9} {'ratio':>7} {'CPU ratio':>10}")
    base = next((timing for timing in report.timings if timing.runtime == INT8), report.timings[0])
    for timing in report.timings:
        spread = f"{timing.low_ms:.3f} .. {timing.high_ms:.3f}"
        ratio, cpu_ratio = timing.median_ms / base.median_ms, timing.cpu_ms / base.cpu_ms
        print(
            f"  {timing.runtime:20} {timing.median_ms:10.3f} {spread:>20} {timing.cpu_ms:9.3f} {ratio:7.2f} "
            f"{cpu_ratio:10.2f}",
            flush=True,
        )


def show_profile(model: CompiledModel, net: QuantizedNetwork) -> None:
    """Time by kind of layer, and the layers that take most of it."""
    profile = model.profile(random_image(net.input.shape))
    kinds: dict[str, float] = defaultdict(float)
    for entry in profile:
        kinds[entry.layer.kind] += entry.microseconds
    by_time = sorted(kinds.items(), key=lambda item: -item[1])
    print("  by kind, us: " + ", ".join(f"{kind} {microseconds:.0f}" for kind, microseconds in by_time))
    print("  slowest layers")
    for entry in sorted(profile, key=lambda entry: -entry.microseconds)[:SLOWEST]:
        print(f"    {entry.layer.name:28} {entry.layer.kind:11} {entry.microseconds:8.1f} us {entry.share:6.1%}")


def own_command(runtime: str, path: Path, threads: int, repeats: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.runtime", "--worker", runtime, str(path), str(threads), str(repeats)]


def build_import(quantized: Path, library: Path) -> None:
    """Compile the file the way TVM's ONNX frontend takes it, for this CPU."""
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx as typed_from_onnx

    from_onnx: Any = typed_from_onnx  # it takes models, though its annotation says graphs
    module = from_onnx(onnx.load(quantized), keep_params_in_input=False, shape_dict=_fixed_batch(quantized))
    with tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(module, target=tvm.target.Target(dict(resolve_target("host").llvm)))
    executable.export_library(str(library))


def _fixed_batch(quantized: Path) -> dict[str, list[int]]:
    net = read_onnx(quantized)
    return {net.input.name: [1, *net.input.shape]}


def worker(runtime: str, path: Path, threads: int, repeats: int) -> None:
    """Time OpenVINO or TVM's own import in this process."""
    print_samples(_openvino_run(path, threads) if runtime == OPENVINO else _import_run(path), repeats)


def _openvino_run(path: Path, threads: int) -> Callable[[], object]:
    import openvino

    core, image = openvino.Core(), random_image(_image_shape())
    model = core.read_model(str(path))
    model.reshape(list(image.shape))  # a fixed batch is faster
    request = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    ).create_infer_request()
    return lambda: request.infer([image])


def _import_run(path: Path) -> Callable[[], object]:
    import tvm
    from tvm import relax

    machine_of: Any = relax.VirtualMachine  # its annotation of devices is another class's
    machine = machine_of(tvm.runtime.load_module(str(path)), tvm.cpu())
    image = tvm.runtime.tensor(random_image(_image_shape()))
    return lambda: machine["main"](image)


def _image_shape() -> list[int]:
    """What the process that started this one has said."""
    return [int(size) for size in os.environ[IMAGE_SHAPE].split(",")]


def main() -> None:
    """Compare the runtimes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{', '.join(NETWORKS)}; all if left out")
    parser.add_argument("--model", nargs="+", type=Path, metavar="ONNX", help="a quantized file, and its original")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=100, help="runs in each process")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each runtime")
    parser.add_argument("--no-import", action="store_true", help="leave out TVM's own import, the slow one")
    parser.add_argument("--worker", nargs=4, metavar=("RUNTIME", "PATH", "THREADS", "REPEATS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        runtime, path, threads, repeats = options.worker
        worker(runtime, Path(path), int(threads), int(repeats))
        return
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"unknown network {min(unknown)!r}; known are {', '.join(NETWORKS)}")
    settings = Settings(options.threads, options.repeats, options.rounds, not options.no_import)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model:
            pairs = {options.model[0].name: (options.model[0], options.model[1] if len(options.model) > 1 else None)}
        else:
            pairs = {network: NETWORKS[network](folder) for network in options.networks or NETWORKS}
        for network, pair in pairs.items():
            os.environ[IMAGE_SHAPE] = ",".join(map(str, read_onnx(pair[0]).input.shape))
            compare(network, pair, folder, settings)


if __name__ == "__main__":
    main()
