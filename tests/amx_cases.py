"""Kernels with AMX tiles beside the reference and onnxruntime, as JSON: run with tests/amx_emulator.c preloaded.

python amx_cases.py EMULATOR FOLDER      FOLDER: for the files in between
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from networks import BITS, random_image, random_network
from test_tvm_layers import zoo

from benchmarks.mobilenet_v2 import quantized_mobilenet
from exporters import QuantizedNetwork, compile_tvm, read_onnx, write_onnx
from exporters.parity import parity
from exporters.qnet import QConv, QTensor
from exporters.runtime import run_onnx
from exporters.tvm import families, targets, tiles

TARGET = "x86-64-amx"


def pretend_amx() -> None:
    """Let this process believe that its CPU has AMX, as the emulator makes it seem."""
    features = targets.cpu_features() | set(targets.TARGETS[TARGET].features)
    targets.cpu_features = lambda: features
    targets.request_tiles = lambda: True


def odd_layers(seed: int) -> int:
    """Differing codes of layers of odd shapes, all of them in tiles, on two threads where the seed is odd."""
    tiles.LEAST_PRODUCTS, families.WORK_FOR_THREADS = 0, 0
    net = zoo(seed)
    images = np.random.default_rng(seed).normal(0, 2, (2, *net.input.shape)).astype(np.float32)
    found = compile_tvm(net, TARGET, threads=1 + seed % 2).tensors(images)
    return _differing(net, None, images, {"AMX": found})


def bit_pair(path: Path, weight_bits: int, act_bits: int) -> int:
    """Differing codes of a network at one pair of bit widths, odd channel counts, all products in tiles."""
    tiles.LEAST_PRODUCTS = 0
    rng = np.random.default_rng(10 * weight_bits + act_bits)
    net = random_network(rng, (weight_bits,), (act_bits,), size=int(rng.integers(9, 20)))
    images = random_image(net, 4, rng)
    write_onnx(net, path)
    return _differing(net, path, images, {"AMX": compile_tvm(net, TARGET).tensors(images)})


def uneven_chunks() -> int:
    """Differing codes where the words of a sum are no multiple of a tile's: 37, 17 three times, and 1 alone."""
    tiles.LEAST_PRODUCTS = 0
    rng = np.random.default_rng(5)
    value = image = QTensor("image", (2, 9, 9), 1 / 255, 0, 8, 0, 255)
    layers = []
    for channels, kernel in ((148, 1), (67, 1), (21, 3)):
        name, shape = f"conv{len(layers)}", (channels, value.shape[0], kernel, kernel)
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        output = QTensor(name, (channels, *value.shape[1:]), 1 / 255, 128, 8, 0, 255)
        scale = np.full(channels, 0.01 / np.sqrt(weight[0].size), np.float32)
        bias = rng.integers(-9_000, 9_000, channels).astype(np.int32)
        border = kernel // 2
        layers.append(QConv(name, value.name, output, weight, scale, 8, bias, 1, (border, border, border, border)))
        value = output
    net = QuantizedNetwork("uneven", image, tuple(layers))
    images = random_image(net, 2, rng)
    return _differing(net, None, images, {"AMX": compile_tvm(net, TARGET).tensors(images)})


def small_mobilenet(folder: Path) -> int:
    """Differing codes and logits of a quantized MobileNetV2, tiles where they pay."""
    path, _ = quantized_mobilenet(folder, 64, classes=30, width=0.5)
    net = read_onnx(path)
    images = random_image(net, 2, np.random.default_rng(2))
    model = compile_tvm(net, TARGET)
    logits = int(np.count_nonzero(model(images) != run_onnx(path, images)))
    return logits + _differing(net, None, images, {"AMX": model.tensors(images)})


def _differing(
    net: QuantizedNetwork, path: Path | None, images: np.ndarray, found: dict[str, dict[str, np.ndarray]]
) -> int:
    report = parity(net, path, images, found)
    if report.compared["AMX"] != len(net.tensors):
        raise AssertionError(f"{report.compared} of {len(net.tensors)} tensors were compared")
    return sum(difference.differing for difference in report.differences)


def cases(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and differing codes of each case."""
    yield "small MobileNetV2", small_mobilenet(folder)
    yield "uneven chunks", uneven_chunks()
    for seed in range(3):
        yield f"odd layers {seed}", odd_layers(seed)
    for weight_bits in BITS:
        for act_bits in BITS:
            yield f"bits {weight_bits} x {act_bits}", bit_pair(folder / "pair.onnx", weight_bits, act_bits)


def main() -> None:
    """Print {case: [differing codes, tile instructions carried out]}."""
    emulator, folder = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2])
    emulator.amx_instructions.restype = ctypes.c_long
    pretend_amx()
    results, before = {}, 0
    for name, differing in cases(folder):
        carried_out = emulator.amx_instructions()
        results[name] = [differing, carried_out - before]
        before = carried_out
    print(json.dumps(results))


if __name__ == "__main__":
    main()
