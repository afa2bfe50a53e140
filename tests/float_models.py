"""Small float networks of the MobileNet and ResNet families, and onnxruntime's own quantization of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from benchmarks.float_graph import FloatGraph, Value

Pool = Literal["global", "average", "mean", "mean-keep"]
Head = Literal["gemm", "matmul", "matmul-add", "conv"]


def small_mobilenet(path: Path, rng: np.random.Generator, size: int = 18) -> None:
    """Depthwise 3, 5 (stride 2) and 7, asymmetric padding in the stem and at the stride, two residual additions."""
    graph = FloatGraph(rng)
    value = graph.relu6("stem.clip", graph.conv("stem", graph.image(3, size), 11, 3, 2, pads=(0, 0, 1, 1)))
    for index, kernel in enumerate((3, 5, 7)):
        name, stride = f"block{index}", 2 if index == 1 else 1
        inside = graph.relu6(f"{name}.expand.clip", graph.conv(f"{name}.expand", value, 22, 1))
        low, high = (kernel - stride) // 2, (kernel - stride + 1) // 2
        inside = graph.conv(f"{name}.depthwise", inside, 22, kernel, stride, groups=22, pads=(low, low, high, high))
        inside = graph.relu6(f"{name}.depthwise.clip", inside)
        inside = graph.conv(f"{name}.project", inside, 11, 1, deviation=1.0)
        value = graph.add(f"{name}.add", value, inside) if stride == 1 else inside
    value = graph.relu6("head.clip", graph.conv("head", value, 30, 1))
    graph.save(path, graph.linear("classifier", graph.global_average_pool("pool", value), 7), "small_mobilenet")


def small_resnet(path: Path, rng: np.random.Generator, size: int = 18) -> None:
    """7x7 stem, max pooling, three basic blocks, one of which has stride 2 and a projection."""
    graph = FloatGraph(rng)
    value = graph.relu("stem.relu", graph.conv("stem", graph.image(3, size), 10, 7, 2))
    value = graph.max_pool("maxpool", value)
    for index, (channels, stride) in enumerate(((10, 1), (13, 2), (13, 1))):
        name = f"block{index}"
        inside = graph.relu(f"{name}.relu1", graph.conv(f"{name}.conv1", value, channels, 3, stride, deviation=1.0))
        inside = graph.conv(f"{name}.conv2", inside, channels, 3, deviation=1.0)
        if stride != 1 or value.shape[0] != channels:
            value = graph.conv(f"{name}.shortcut", value, channels, 1, stride, pads=(0, 0, 0, 0), deviation=1.0)
        value = graph.relu(f"{name}.relu2", graph.add(f"{name}.add", inside, value))
    graph.save(path, graph.linear("classifier", graph.global_average_pool("pool", value), 7), "small_resnet")


def two_convolutions(path: Path, rng: np.random.Generator, pool: Pool, head: Head, size: int = 10) -> None:
    """A network whose end is written in other ways: pooling and classifier as named."""
    graph = FloatGraph(rng)
    value = graph.relu("conv1.relu", graph.conv("conv1", graph.image(3, size), 6, 3, 2))
    value = graph.relu("conv2.relu", graph.conv("conv2", value, 9, 1))
    match pool:
        case "global":
            graph.nodes.append(helper.make_node("GlobalAveragePool", [value.name], ["pool.4d"], name="pool"))
        case "average":
            graph.nodes.append(
                helper.make_node("AveragePool", [value.name], ["pool.4d"], name="pool", kernel_shape=value.shape[1:])
            )
        case "mean-keep":
            graph.nodes.append(helper.make_node("ReduceMean", [value.name], ["pool.4d"], name="pool", axes=[-1, -2]))
        case "mean":
            graph.nodes.append(
                helper.make_node("ReduceMean", [value.name], ["pool.flat"], name="pool", axes=[2, 3], keepdims=0)
            )
    if head == "conv":
        # the classifier as a 1x1 convolution on the pooled image, flattened after it
        result = graph.conv("classifier", Value("pool.4d", (9, 1, 1), value.mean_square), 5, 1)
        graph.nodes.append(helper.make_node("Flatten", [result.name], ["classifier.flat"], name="flat"))
        graph.save(path, Value("classifier.flat", (5,), 1.0), "two_convolutions")
        return
    if pool != "mean":
        graph.initializers.append(numpy_helper.from_array(np.array([0, -1]), "flat.shape"))
        graph.nodes.append(helper.make_node("Reshape", ["pool.4d", "flat.shape"], ["pool.flat"], name="flat"))
    pooled = Value("pool.flat", value.shape[:1], value.mean_square)
    if head == "gemm":
        graph.save(path, graph.linear("classifier", pooled, 5), "two_convolutions")
        return
    weight = rng.normal(0, 1, (9, 5)).astype(np.float32)
    graph.initializers.append(numpy_helper.from_array(weight, "classifier.weight"))
    graph.nodes.append(helper.make_node("MatMul", ["pool.flat", "classifier.weight"], ["product"], name="classifier"))
    result = Value("product", (5,), 1.0)
    if head == "matmul-add":
        graph.initializers.append(numpy_helper.from_array(rng.normal(0, 1, 5).astype(np.float32), "classifier.bias"))
        graph.nodes.append(helper.make_node("Add", ["product", "classifier.bias"], ["sum"], name="bias"))
        result = Value("sum", (5,), 1.0)
    graph.save(path, result, "two_convolutions")


class _RandomImages(CalibrationDataReader):
    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        self.batches: Iterator[np.ndarray] = iter([rng.random((2, 3, size, size), dtype=np.float32) for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def quantize(
    source: Path,
    target: Path,
    size: int,
    *,
    activation: QuantType = QuantType.QUInt8,
    weight: QuantType = QuantType.QInt8,
    per_channel: bool = True,
    options: dict[str, bool] | None = None,
) -> None:
    """What a user of onnxruntime's `quantize_static` gets, in QDQ format."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises pre-processing on every call
    try:
        quantize_static(
            source,
            target,
            _RandomImages(size),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=activation,
            weight_type=weight,
            extra_options=options,
        )
    finally:
        root.setLevel(level)
