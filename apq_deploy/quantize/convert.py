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

from apq_deploy.quantize.network import QuantizedSubnet, QuantizedUnit
from apq_deploy.quantize.quantizers import Quantizer
from exporters.qnet import QAdd, QConv, QDepthwise, QLayer, QLinear, QPool, QTensor, QuantizedNetwork

# A channel whose folded weights are nearly zero would get a scale so small that its bias overflows the accumulator; the
# scale is raised until the bias stays below this, within which float32 sums are exact too.
LARGEST_BIAS = 2**23


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
    image = QTensor("image", (space.input_channels, size, size), _f32(1 / 255), 0, 8, 0, 255)
    layers: list[QLayer] = []

    def conv(layer: str, unit: QuantizedUnit, source: QTensor) -> QTensor:
        stride, padding = unit.conv.stride[0], int(unit.conv.padding[0])  # type: ignore[arg-type]
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
                (padding,) * 4,
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
    return QTensor(name, shape, scale, 0, bits, 0, 2**bits - 1)


def _fold(unit: QuantizedUnit, input_scale: float) -> _Weights:
    bn = unit.bn
    assert bn.running_mean is not None and bn.running_var is not None
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    bias = bn.bias - bn.running_mean * factor
    return _integers(unit.conv.weight, unit.weight, factor, bias, input_scale)


def _linear(network: QuantizedSubnet, input_scale: float) -> _Weights:
    weight = network.classifier.weight
    return _integers(weight, network.classifier_weight, torch.ones(len(weight)), network.classifier.bias, input_scale)


def _integers(weight: Tensor, quantizer: Quantizer, factor: Tensor, bias: Tensor, input_scale: float) -> _Weights:
    """Codes, per-channel scales and integer biases of one layer.

    A channel whose scale had to be raised for its bias is quantized anew at that scale.
    """
    scale, highest = quantizer.scale.detach().cpu(), quantizer.levels
    g = factor.detach().cpu().double()
    b = bias.detach().cpu().double()
    own = (g.abs() * scale.double()).clamp(min=1e-30)
    least = b.abs() / (input_scale * LARGEST_BIAS)
    channel_scale = torch.maximum(own, least).float()
    shape = (-1,) + (1,) * (weight.ndim - 1)
    codes = (weight.detach().cpu() / scale).round().clamp(-highest, highest)
    codes = codes * torch.where(g < 0, -1.0, 1.0).float().view(shape)
    shrink = (own / channel_scale.double()).float().view(shape)
    codes = torch.where((least > own).view(shape), (codes * shrink).round(), codes)
    bias_codes = (b / (input_scale * channel_scale.double())).round()
    return _Weights(codes.to(torch.int8).numpy(), channel_scale.numpy(), bias_codes.to(torch.int32).numpy())
