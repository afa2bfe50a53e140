"""From a fake-quantized subnet to the integers of a QuantizedNetwork.

Batch norm becomes part of the per-channel weight scale and of the bias: with the factor g = gamma / sqrt(var + eps) of
a channel, scale |g| s and codes of the sign of g, which the symmetric code range makes exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apq_deploy.quantize.network import (
    IMAGE_SCALE,
    POWER_IMAGE_SCALE,
    QuantizedSubnet,
    QuantizedUnit,
    accumulator_scale,
    folded_scale,
)
from apq_deploy.quantize.quantizers import RELU6_CLIP, Quantizer
from exporters.qnet import QAdd, QConv, QDepthwise, QLayer, QLinear, QPool, QTensor, QuantizedNetwork


@dataclass(frozen=True)
class _Weights:
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]


@torch.no_grad()
def to_integers(network: QuantizedSubnet, name: str | None = None) -> QuantizedNetwork:
    """The integer network that `network` simulates, in evaluation mode."""
    space = network.space
    size = space.input_size
    step = POWER_IMAGE_SCALE if network.pool.power_of_two else IMAGE_SCALE
    image = QTensor("image", (space.input_channels, size, size), _f32(step), 0, 8, 0, 255)
    layers: list[QLayer] = []

    def conv(layer: str, unit: QuantizedUnit, source: QTensor) -> QTensor:
        stride, padding = unit.conv.stride[0], int(unit.conv.padding[0])
        out_size = (source.shape[1] - 1) // stride + 1
        output = _tensor(layer, (unit.conv.out_channels, out_size, out_size), unit.output)
        weights = _fold(unit, source.scale)
        kind = QDepthwise if unit.conv.groups > 1 else QConv
        layers.append(
            kind(
                layer,
                source.name,
                output,
                weights.codes,
                weights.scale,
                unit.weight.bits,
                weights.bias,
                stride,
                (padding, padding, padding, padding),
            )
        )
        return output

    x = conv("stem", network.stem, image)
    for block_name, block in network.named_blocks():
        y = conv(f"{block_name}.expand", block.expand, x) if block.expand is not None else x
        y = conv(f"{block_name}.depthwise", block.depthwise, y)
        y = conv(f"{block_name}.project", block.project, y)
        if block.add is not None:
            total = _tensor(f"{block_name}.add", y.shape, block.add)
            layers.append(QAdd(total.name, x.name, y.name, total))
            y = total
        x = y
    x = conv("head", network.head, x)
    pooled = _tensor("pool", (x.shape[0],), network.pool)
    layers.append(QPool("pool", x.name, pooled))
    logits = _tensor("classifier", (space.num_classes,), network.logits)
    weights = _linear(network, pooled.scale)
    layers.append(
        QLinear(
            "classifier",
            "pool",
            logits,
            weights.codes,
            weights.scale,
            network.classifier_weight.bits,
            weights.bias,
        )
    )
    metadata = {"space": space.name, "arch": json.dumps(network.arch.to_json())}
    return QuantizedNetwork(name or f"{space.name}-subnet", image, tuple(layers), metadata)


def _f32(value: float) -> float:
    """The nearest float32, as a Python float: what the file holds."""
    return float(np.float32(value))


def _tensor(name: str, shape: tuple[int, ...], quantizer: Quantizer) -> QTensor:
    scale, bits = _f32(quantizer.scale.item()), quantizer.bits
    if quantizer.signed:
        return QTensor(name, shape, scale, 2 ** (bits - 1), bits, 1, 2**bits - 1)
    # ReLU6 is part of the clamp: with a scale rounded up to a power of two the codes could go beyond 6.
    highest = min(2**bits - 1, round(RELU6_CLIP / scale))
    return QTensor(name, shape, scale, 0, bits, 0, highest)


def _fold(unit: QuantizedUnit, input_scale: float) -> _Weights:
    factor, bias = unit.batch_norm()
    return _integers(unit.conv.weight, unit.weight, factor, bias, input_scale)


def _linear(network: QuantizedSubnet, input_scale: float) -> _Weights:
    weight = network.classifier.weight
    return _integers(weight, network.classifier_weight, torch.ones(len(weight)), network.classifier.bias, input_scale)


def _integers(weight: Tensor, quantizer: Quantizer, factor: Tensor, bias: Tensor, input_scale: float) -> _Weights:
    """Codes, per-channel scales and integer biases of one layer."""
    scale, highest = quantizer.scale.detach().cpu(), quantizer.levels
    g, b, w = factor.detach().cpu().double(), bias.detach().cpu().double(), weight.detach().cpu()
    shape = (-1,) + (1,) * (w.ndim - 1)
    own = folded_scale(g, quantizer).cpu().detach()
    if quantizer.power_of_two:
        codes = (w.double() * g.view(shape) / own.view(shape)).round().clamp(-highest, highest)
    else:
        codes = (w / scale).round().clamp(-highest, highest).double() * torch.where(g < 0, -1.0, 1.0).view(shape)
    largest = codes.abs().flatten(1).amax(1)
    channel_scale = accumulator_scale(own, largest, b, quantizer, input_scale)
    # A whole number where the scale became finer; a fraction where it had to be raised for the bias.
    codes = (codes * (own / channel_scale).view(shape)).round()
    codes = torch.where((largest > 0).view(shape), codes, 0.0)
    channel_scale = channel_scale.float()  # what the file holds
    bias_codes = (b / (input_scale * channel_scale.double())).round()
    return _Weights(codes.to(torch.int8).numpy(), channel_scale.numpy(), bias_codes.to(torch.int32).numpy())
