"""The integer network in torch: the codes of every tensor, by sums that float64 holds exactly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from exporters.qnet import QAdd, QConv, QDepthwise, QLinear, QPool, QTensor, QuantizedNetwork

Codes = NDArray[np.uint8] | NDArray[np.int8]


@torch.no_grad()
def run_integers(network: QuantizedNetwork, images: Tensor) -> dict[str, Codes]:
    """Codes of every tensor by name for images (n, c, h, w) in [0, 1].

    It shares no code with the NumPy reference of `exporters`, so that each checks the other.
    """
    codes = {network.input.name: _clamp(images.float() / float(np.float32(network.input.scale)), network.input)}
    tensors = network.tensors
    for layer in network.layers:
        out = layer.output
        source = tensors[layer.inputs[0]]
        x = codes[source.name].double() - source.zero_point
        if isinstance(layer, QConv | QDepthwise):
            top, left, bottom, right = layer.padding
            weight = torch.from_numpy(layer.weight).double() - layer.weight_zero_point
            groups = x.shape[1] if isinstance(layer, QDepthwise) else 1
            bias = torch.from_numpy(layer.bias).double()
            sums = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, layer.stride, groups=groups)
            codes[out.name] = _clamp(sums.float() * _factor(layer, source)[:, None, None], out)
        elif isinstance(layer, QLinear):
            weight = torch.from_numpy(layer.weight).double() - layer.weight_zero_point
            sums = F.linear(x, weight, torch.from_numpy(layer.bias).double())
            codes[out.name] = _clamp(sums.float() * _factor(layer, source), out)
        elif isinstance(layer, QAdd):
            other = tensors[layer.other]
            codes[out.name] = _add(codes[source.name], source, codes[other.name], other, out)
        elif isinstance(layer, QPool):
            pixels = x.shape[2] * x.shape[3]
            factor = np.float32(source.scale) / (np.float32(out.scale) * np.float32(pixels))
            codes[out.name] = _clamp(x.sum((2, 3)).float() * float(factor), out)
        else:
            raise TypeError(f"a subnet has no layer of the kind {type(layer).__name__}")
    return {name: value.numpy() for name, value in codes.items()}


def _factor(layer: QConv | QDepthwise | QLinear, source: QTensor) -> Tensor:
    """What accumulators are multiplied by, each step rounded to float32, (out,)."""
    return torch.from_numpy(np.float32(source.scale) * layer.weight_scale / np.float32(layer.output.scale))


def _clamp(steps: Tensor, tensor: QTensor) -> Tensor:
    kind = torch.uint8 if tensor.dtype == "uint8" else torch.int8
    return (steps.round() + tensor.zero_point).clamp(tensor.lo, tensor.hi).to(kind)


def _add(a: Tensor, left: QTensor, b: Tensor, right: QTensor, out: QTensor) -> Tensor:
    """onnxruntime's QLinearAdd: fused multiply-adds in float32, here as float64 sums rounded once."""
    ratio_a = float(np.float32(left.scale) / np.float32(out.scale))
    ratio_b = float(np.float32(right.scale) / np.float32(out.scale))
    product = float(np.float32(np.float32(ratio_b) * np.float32(right.zero_point)))
    offset = float(np.float32(out.zero_point) - np.float32(ratio_a * left.zero_point + product))
    inner = (b.double() * ratio_b + offset).float()
    total = (a.double() * ratio_a + inner.double()).float()
    kind = torch.uint8 if out.dtype == "uint8" else torch.int8
    return total.round().clamp(out.lo, out.hi).to(kind)
