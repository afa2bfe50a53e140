"""MobileNetV2 as ONNX with random weights, batch norm folded: in float, and as onnxruntime's own tool quantizes it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from benchmarks.float_graph import FloatGraph, Value

# expansion, output channels, blocks, stride of the first block. Source: MobileNetV2 (CVPR 2018), table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def scaled(channels: int, width: float) -> int:
    """Channels times `width`, to a multiple of 8. Source: MobileNetV2's reference, which never drops over 10 %."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


def block(graph: FloatGraph, name: str, value: Value, expansion: int, out_channels: int, stride: int) -> Value:
    """An inverted residual block."""
    inside = value
    if expansion > 1:
        inside = graph.conv(f"{name}.expand", inside, value.shape[0] * expansion, 1)
        inside = graph.relu6(f"{name}.expand.clip", inside)
    channels = inside.shape[0]
    inside = graph.conv(f"{name}.depthwise", inside, channels, 3, stride, groups=channels)
    inside = graph.relu6(f"{name}.depthwise.clip", inside)
    inside = graph.conv(f"{name}.project", inside, out_channels, 1, deviation=1.0)
    if stride == 1 and value.shape[0] == out_channels:
        return graph.add(f"{name}.add", value, inside)
    return inside


def mobilenet_v2(
    path: str | os.PathLike[str],
    rng: np.random.Generator,
    size: int = 224,
    width: float = 1.0,
    classes: int = 1000,
) -> None:
    """Write the network to `path`: input "image" (N, 3, size, size) from 0 to 1, output "logits" (N, classes)."""
    graph = FloatGraph(rng)
    value = graph.conv("stem", graph.image(3, size), scaled(32, width), 3, stride=2)
    value = graph.relu6("stem.clip", value)
    for stage, (expansion, channels, blocks, stride) in enumerate(STAGES, start=1):
        for index in range(blocks):
            name = f"stage{stage}.block{index + 1}"
            value = block(graph, name, value, expansion, scaled(channels, width), stride if index == 0 else 1)
    value = graph.conv("head", value, scaled(1280, max(1.0, width)), 1)
    value = graph.global_average_pool("pool", graph.relu6("head.clip", value))
    graph.save(path, graph.linear("classifier", value, classes), "mobilenet_v2")


class _RandomImages(CalibrationDataReader):
    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(1)
        self.batches = iter([rng.random((1, 3, size, size), dtype=np.float32) for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def quantized_mobilenet(folder: Path, size: int, classes: int, width: float = 1.0) -> tuple[Path, Path]:
    """Paths of the quantized and the float MobileNetV2 at `size`, written to `folder`."""
    source, target = folder / f"float{size}.onnx", folder / f"int8_{size}.onnx"
    mobilenet_v2(source, np.random.default_rng(0), size=size, width=width, classes=classes)
    logging.getLogger().setLevel(logging.ERROR)  # quantize_static advises pre-processing on every call
    quantize_static(
        source,
        target,
        _RandomImages(size),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target, source
