"""How long one layer takes as compiled code on this machine: its kernel alone, timed in a loop of machine code."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import tvm

from exporters.errors import ExportError
from exporters.qnet import QConv, QDepthwise, QLinear, QTensor, QuantizedNetwork
from exporters.tvm.families import family_of
from exporters.tvm.lowering import plan
from exporters.tvm.targets import resolve_target
from hwmodels.layers import ConvLayer, Precision

SAMPLE_SECONDS = 5e-4  # a sample is the mean of as many runs as fill this time
_SEED = 0


def layer_seconds(layer: ConvLayer, precision: Precision, threads: int = 1) -> Iterator[float]:
    """Seconds of one run of the layer after another, without end; each is the mean of a short loop.

    The kernel is the one that a network with this layer would get on this machine. Weights are random.

    Raises: ExportError for a layer that has no kernel, or bits that do not fit a byte.
    """
    net = single_layer(layer, precision)
    target = resolve_target("host")
    program = plan(net, target.isa)
    step = program.steps[1]
    function = family_of(target.isa).kernel(target.isa, step.spec, threads).function("main")
    with tvm.transform.PassContext(opt_level=3):
        library = tvm.compile(tvm.IRModule({"main": function}), target=tvm.target.Target(dict(target.llvm)))
    rng = np.random.default_rng(_SEED)
    source = rng.integers(0, 2**precision.act_bits, program.layouts[step.sources[0]].size).astype(np.uint8)
    result = np.zeros(program.layouts[step.target].size, np.uint8)
    arguments = [tvm.runtime.tensor(array) for array in (source, *step.constants, result)]
    device = tvm.cpu()
    once = library.mod.time_evaluator("main", device, number=10)(*arguments).mean
    number = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-9)))
    timer = library.mod.time_evaluator("main", device, number=number)
    while True:
        yield float(timer(*arguments).mean)


def single_layer(layer: ConvLayer, precision: Precision) -> QuantizedNetwork:
    """A network of this layer alone, with random weights.

    Raises: ExportError for groups that are neither 1 nor depthwise, and for more than 8 bits.
    """
    if layer.groups != 1 and not layer.is_depthwise:
        raise ExportError(f"{layer}: no kernel for grouped convolutions; supported are groups 1 and depthwise")
    if max(precision.weight_bits, precision.act_bits) > 8 or precision.weight_bits < 2:
        raise ExportError(f"{layer}: kernels take weights of 2 to 8 bits and activations of up to 8, got {precision}")
    rng = np.random.default_rng(_SEED)
    highest = 2 ** (precision.weight_bits - 1) - 1
    shape = (layer.out_channels, layer.in_channels // layer.groups, layer.kernel_size, layer.kernel_size)
    weight = rng.integers(-highest, highest + 1, shape).astype(np.int8)
    scale = np.full(layer.out_channels, 1 / highest / math.sqrt(shape[1] * shape[2] * shape[3]), np.float32)
    bias = np.zeros(layer.out_channels, np.int32)
    top = 2**precision.act_bits - 1
    is_linear = layer.in_size == 1 and layer.kernel_size == 1 and not layer.is_depthwise
    size = () if is_linear else (layer.in_size, layer.in_size)
    out_size = () if is_linear else (layer.out_size, layer.out_size)
    image = QTensor("image", (layer.in_channels, *size), 1 / top, 0, precision.act_bits, 0, top)
    output = QTensor("layer", (layer.out_channels, *out_size), 1 / 255, 0, 8, 0, 255)
    if is_linear:
        made = QLinear("layer", "image", output, weight[:, :, 0, 0], scale, precision.weight_bits, bias)
        return QuantizedNetwork("layer", image, (made,))
    kind = QDepthwise if layer.is_depthwise else QConv
    padding = (layer.padding, layer.padding, layer.padding, layer.padding)
    made = kind("layer", "image", output, weight, scale, precision.weight_bits, bias, layer.stride, padding)
    return QuantizedNetwork("layer", image, (made,))
