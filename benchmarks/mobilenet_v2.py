"""Float MobileNetV2 as ONNX, batch norm folded, with random weights: the network that the benchmarks time."""

from __future__ import annotations

import os

import numpy as np

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
