"""Latency of compiled models beside the runtimes a user would pick otherwise: each in its own process, in turn.

python -m benchmarks.runtime            MobileNetV2 1.0 at 224 and at 32, from onnxruntime's quantize_static
python -m benchmarks.runtime model.onnx [float.onnx]       another quantized file, with its float original beside it

Ours, onnxruntime int8 and fp32, OpenVINO int8 (where `openvino` is installed) and TVM's own import of the same file,
with 1 and 2 threads. Medians over all rounds, the 10th and 90th percentile, and ratios to onnxruntime int8.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.mobilenet_v2 import quantized_mobilenet
from exporters import CompiledModel, compile_tvm, read_onnx
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
THREADS = (1, 2)
PARITY_IMAGES = 16
SLOW_REPEATS = 8  # of TVM's own import, which takes some forty times as long


def compare(quantized: Path, original: Path | None, folder: Path, repeats: int, rounds: int, with_import: bool) -> None:
    """Print parity, compile time, library size, latencies and the profile of one model."""
    net = read_onnx(quantized)
    print(f"\n{quantized.name}: {net.name}, image {' x '.join(map(str, net.input.shape))}")
    imported = folder / "imported.so"
    if with_import:
        started = time.perf_counter()
        build_import(quantized, imported)
        print(f"TVM's own import compiled in {time.perf_counter() - started:.1f} s")
    for threads in THREADS:
        library = folder / f"model{threads}.so"
        started = time.perf_counter()
        model = compile_tvm(net, threads=threads)
        seconds = time.perf_counter() - started
        model.save(library)
        if threads == 1:
            print(
                f"target {model.metadata.target}, compiled in {seconds:.1f} s, {model.size_bytes / 1e6:.2f} MB; "
                f"{differing(net, quantized, model)} logits of {PARITY_IMAGES} images differ from onnxruntime's"
            )
        commands = {
            COMPILED: worker_command(COMPILED, library, threads, repeats),
            INT8: worker_command(ONNXRUNTIME, quantized, threads, repeats),
        }
        if original is not None:
            commands[FP32] = worker_command(ONNXRUNTIME, original, threads, repeats)
        if find_spec("openvino"):
            commands[OPENVINO] = own_command(OPENVINO, quantized, threads, repeats)
        if with_import:
            commands[TVM_IMPORT] = own_command(TVM_IMPORT, imported, threads, SLOW_REPEATS)
        show(run_in_turn(commands, threads, rounds))
        if threads == 1:
            show_profile(model, net)


def differing(net: QuantizedNetwork, quantized: Path, model: CompiledModel) -> int:
    """How many logits of random images differ from onnxruntime's."""
    images = np.random.default_rng(2).random((PARITY_IMAGES, *net.input.shape), dtype=np.float32)
    return int(np.count_nonzero(model(images) != run_onnx(quantized, images)))


def show(report: TimingReport) -> None:
    print(f"{report.timings[0].threads} thread(s), load average {report.load:.1f}, {os.cpu_count()} cores")
    print(f"  {'':20} {'median ms':>10} {'10 % .. 90 %':>20} {'CPU ms':>9} {'ratio':>7} {'CPU ratio':>10}")
    base = next(timing for timing in report.timings if timing.runtime == INT8)
    for timing in report.timings:
        spread = f"{timing.low_ms:.3f} .. {timing.high_ms:.3f}"
        ratio, cpu_ratio = timing.median_ms / base.median_ms, timing.cpu_ms / base.cpu_ms
        print(
            f"  {timing.runtime:20} {timing.median_ms:10.3f} {spread:>20} {timing.cpu_ms:9.3f} {ratio:7.2f} "
            f"{cpu_ratio:10.2f}"
        )


def show_profile(model: CompiledModel, net: QuantizedNetwork) -> None:
    """The layers that take most of the time."""
    profile = model.profile(random_image(net.input.shape))
    print("  slowest layers")
    for entry in sorted(profile, key=lambda entry: -entry.microseconds)[:6]:
        print(f"    {entry.layer.name:28} {entry.layer.kind:11} {entry.microseconds:8.1f} us {entry.share:6.1%}")


def own_command(runtime: str, path: Path, threads: int, repeats: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.runtime", "--worker", runtime, str(path), str(threads), str(repeats)]


def build_import(quantized: Path, library: Path) -> None:
    """Compile the file the way TVM's ONNX frontend takes it, for this CPU."""
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

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

    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    image = random_image([dimension.get_length() for dimension in list(compiled.input(0).partial_shape)[1:]])
    request = compiled.create_infer_request()
    return lambda: request.infer([image])


def _import_run(path: Path) -> Callable[[], object]:
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    size = int(os.environ["IMAGE_SIZE"])
    image = tvm.runtime.tensor(random_image((3, size, size)))
    return lambda: machine["main"](image)


def main() -> None:
    """Compare the runtimes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="quantized ONNX, and its float original")
    parser.add_argument("--repeats", type=int, default=100, help="runs in each process")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each runtime")
    parser.add_argument("--no-import", action="store_true", help="leave out TVM's own import, the slow one")
    parser.add_argument("--worker", nargs=4, metavar=("RUNTIME", "PATH", "THREADS", "REPEATS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        runtime, path, threads, repeats = options.worker
        worker(runtime, Path(path), int(threads), int(repeats))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.models:
            pairs = [(options.models[0], options.models[1] if len(options.models) > 1 else None)]
        else:
            pairs = [quantized_mobilenet(folder, 224, 1000), quantized_mobilenet(folder, 32, 10)]
        for quantized, original in pairs:
            os.environ["IMAGE_SIZE"] = str(read_onnx(quantized).input.shape[1])
            compare(quantized, original, folder, options.repeats, options.rounds, not options.no_import)


if __name__ == "__main__":
    main()
