"""From an ONNX file to a compiled library that is checked and timed against onnxruntime."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_deploy.deployment import COMPILE_SCHEMA
from apq_deploy.errors import UserError
from apq_deploy.files import write_json
from apq_deploy.model import samples_for
from apq_deploy.progress import cpu_seconds
from apq_deploy.text import table
from apq_deploy.versions import versions
from exporters.onnx_reader import read_onnx
from exporters.parity import parity
from exporters.qnet import QuantizedNetwork
from exporters.runtime import run_onnx
from exporters.tvm import CompiledModel, compile_tvm
from exporters.tvm.standalone import compile_standalone
from exporters.tvm.targets import resolve_target
from exporters.tvm.timing import random_image, time_compiled

LIBRARY, STANDALONE = ".so", (".c", ".a")
REFERENCE_IMAGES = 16
RANDOM_IMAGES = 64
LAYER_REPEATS = 200


def compile_model(
    model: Path,
    output: Path,
    target: str,
    threads: int,
    pack_weights: bool,
    timed: bool,
    record: Path | None,
    *,
    per_layer: bool = False,
) -> dict[str, Any]:
    """What was built, how it agrees with onnxruntime, and how fast it is; the library is in `output`.

    per_layer: measure every layer of the library too.

    Where the target is not this machine's, the library is written but neither run nor compared, and the report says so.

    Raises: ExportError for a file or a target that cannot be used.
    """
    if output.suffix not in (LIBRARY, *STANDALONE):
        raise UserError(f"expected a name that ends in {LIBRARY}, {' or '.join(STANDALONE)}, got {output}")
    if output.suffix == LIBRARY:
        resolve_target(target)  # an unknown one is told at once
    elif threads > 1 or pack_weights or per_layer:
        raise UserError(
            f"expected a name that ends in {LIBRARY} with --threads, --pack-weights or --layers, got {output}: C "
            "source and static libraries compute on one thread, with weights as they are, and are not run here"
        )
    net = read_onnx(model)
    if output.suffix in STANDALONE:
        return _standalone(net, model, output, target)
    started = time.perf_counter()
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    compiled = compile_tvm(net, target, threads, pack_weights=pack_weights, source_sha256=digest)
    seconds = time.perf_counter() - started
    output.parent.mkdir(parents=True, exist_ok=True)
    compiled.save(output)
    report: dict[str, Any] = {
        "schema": COMPILE_SCHEMA,
        "model": model.name,
        "model_sha256": digest,
        "library": output.name,
        "target": compiled.metadata.target,
        "threads": threads,
        "compile_seconds": round(seconds, 2),
        "library_bytes": output.stat().st_size,
        "agreement": None,
        "latency": None,
        "layers": None,
    }
    if resolve_target(target).runs_here:
        loaded = CompiledModel.load(output)
        report["agreement"] = agreement(net, model, loaded, threads)
        if timed:
            print("timing the library and onnxruntime, each in its own processes", file=sys.stderr)
            report["latency"] = time_compiled(output, model, threads=threads).as_dict()
        if per_layer:
            report["layers"] = layer_times(loaded)
    report["versions"] = versions("numpy", "onnx", "onnxruntime", "apache-tvm")
    report["cpu_seconds"] = cpu_seconds()
    if record is not None:
        write_json(record, report)
    return report


def _standalone(net: QuantizedNetwork, model: Path, output: Path, target: str) -> dict[str, Any]:
    """C source or a static library, for programs without TVM's runtime; it is neither run nor compared here."""
    started = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".c":
        compile_standalone(net, output)
    else:
        compile_standalone(net, output, target=target)
    return {
        "schema": COMPILE_SCHEMA,
        "model": model.name,
        "library": output.name,
        "target": "C source" if output.suffix == ".c" else target,
        "threads": 1,
        "compile_seconds": round(time.perf_counter() - started, 2),
        "library_bytes": output.stat().st_size,
        "agreement": None,
        "latency": None,
        "layers": None,
    }


def layer_times(compiled: CompiledModel) -> list[dict[str, Any]]:
    """Median time of every layer within the whole network, in order, for JSON."""
    image = random_image(compiled.metadata.image_shape)
    return [
        {
            "name": entry.layer.name,
            "kind": entry.layer.kind,
            "weight_bits": entry.layer.weight_bits,
            "output_bits": entry.layer.act_bits,
            "microseconds": round(entry.microseconds, 3),
            "share_percent": round(100 * entry.share, 2),
        }
        for entry in compiled.profile(image, LAYER_REPEATS)
    ]


def describe_layers(layers: list[dict[str, Any]]) -> str:
    """The times of the layers for a reader, and their sum."""
    rows = [
        (
            row["name"],
            row["kind"],
            "-" if row["weight_bits"] is None else row["weight_bits"],
            row["output_bits"],
            f"{row['microseconds']:.1f}",
            f"{row['share_percent']:.1f}",
        )
        for row in layers
    ]
    total = sum(row["microseconds"] for row in layers)
    return f"{table(rows, ('layer', 'kind', 'weight bits', 'output bits', 'us', '%'))}\nsum {total:.1f} us"


def agreement(net: QuantizedNetwork, model: Path, compiled: CompiledModel, threads: int) -> dict[str, Any]:
    """How the compiled model's logits and tensors differ from onnxruntime's and from the NumPy reference's."""
    source, images, labels = test_images(net)
    ours, theirs = compiled(images), run_onnx(model, images, threads)
    step = np.float32(net.output.scale)
    distance = np.abs(np.rint((ours - theirs) / step))
    found: dict[str, Any] = {
        "images": len(images),
        "source": source,
        "differing_logits": int(np.count_nonzero(distance)),
        "largest_difference_codes": int(distance.max()),
        "same_class": int((ours.argmax(1) == theirs.argmax(1)).reshape(len(images), -1).all(axis=1).sum()),
    }
    if labels is not None:
        found["accuracy_percent"] = 100 * float((ours.argmax(1) == labels).mean())
    few = images[:REFERENCE_IMAGES]
    found["tensors"] = parity(net, None, few, {"TVM": compiled.tensors(few)}).as_dict()
    return found


def test_images(net: QuantizedNetwork) -> tuple[str, NDArray[np.float32], NDArray[np.int64] | None]:
    """Images to compare on: the test images of the model that the network comes from, else random ones."""
    samples = samples_for(net.metadata.get("space"), net.input.shape)
    if samples is not None:
        images = samples.held_out.astype(np.float32) / np.float32(255)
        return "test images of the model", images, samples.held_out_labels
    rng = np.random.default_rng(0)
    return "random images", rng.random((RANDOM_IMAGES, *net.input.shape), np.float32), None
