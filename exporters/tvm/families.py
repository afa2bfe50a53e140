"""Which generators write the code for an instruction set: those over vectors, over tiles, or plain loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import conv, depthwise, elementwise, ir, plain, pooling, tiles
from exporters.tvm.conv import ConvSpec
from exporters.tvm.depthwise import DepthwiseSpec
from exporters.tvm.elementwise import AddSpec, DequantizeSpec, QuantizeSpec, TableSpec
from exporters.tvm.isa import Isa
from exporters.tvm.pooling import FloatPoolSpec, MaxPoolSpec, PoolSpec
from exporters.tvm.x86 import Amx

Spec = (
    ConvSpec
    | DepthwiseSpec
    | QuantizeSpec
    | AddSpec
    | PoolSpec
    | FloatPoolSpec
    | MaxPoolSpec
    | TableSpec
    | DequantizeSpec
)


# Waking the other threads takes more than a microsecond, in which one core does some 200,000 products.
WORK_FOR_THREADS = 1_000_000


def work(spec: Spec) -> int:
    """Products that a kernel computes, or as many as would take the same time."""
    match spec:
        case ConvSpec():
            return spec.target.size * spec.steps * 4
        case DepthwiseSpec():
            return spec.target.size * spec.kernel[0] * spec.quads * 8
        case DequantizeSpec():
            return 0
        case TableSpec() | AddSpec() | QuantizeSpec():
            return spec.target.size * 16
        case PoolSpec() | FloatPoolSpec():
            return spec.source.size * 8
        case MaxPoolSpec():
            return spec.target.size * spec.kernel_size**2 * 4


@dataclass(frozen=True)
class Family:
    """generators: kernel by type of its description. The rest: how weights, and with them channels, are arranged."""

    generators: Mapping[type, Callable[[Isa, Any, int], ir.Kernel]] = field(hash=False)
    pack_conv: Callable[[Isa, ConvSpec, NDArray[np.int8]], NDArray[Any]]
    conv_order: Callable[[Isa, ConvSpec], NDArray[np.int64]]
    pack_depthwise: Callable[[Isa, DepthwiseSpec, NDArray[np.int8]], NDArray[Any]]
    depthwise_order: Callable[[Isa, DepthwiseSpec], NDArray[np.int64]]

    def kernel(self, isa: Isa, spec: Spec, threads: int) -> ir.Kernel:
        """The code for `spec`, over `threads` threads where it has enough work for them."""
        return self.generators[type(spec)](isa, spec, threads if work(spec) >= WORK_FOR_THREADS else 1)


VECTORS = Family(
    {
        ConvSpec: conv.conv_kernel,
        DepthwiseSpec: depthwise.depthwise_kernel,
        QuantizeSpec: elementwise.quantize_kernel,
        AddSpec: elementwise.add_kernel,
        PoolSpec: pooling.pool_kernel,
        FloatPoolSpec: pooling.float_pool_kernel,
        MaxPoolSpec: pooling.max_pool_kernel,
        TableSpec: elementwise.table_kernel,
        DequantizeSpec: elementwise.dequantize_kernel,
    },
    conv.pack_conv,
    conv.channel_order,
    depthwise.pack_depthwise,
    depthwise.group_order,
)
TILES = replace(VECTORS, generators={**VECTORS.generators, ConvSpec: tiles.conv_kernel})
LOOPS = Family(
    {
        ConvSpec: plain.conv_kernel,
        DepthwiseSpec: plain.depthwise_kernel,
        QuantizeSpec: plain.quantize_kernel,
        AddSpec: plain.add_kernel,
        PoolSpec: plain.pool_kernel,
        FloatPoolSpec: plain.float_pool_kernel,
        MaxPoolSpec: plain.max_pool_kernel,
        TableSpec: elementwise.table_kernel,
        DequantizeSpec: plain.dequantize_kernel,
    },
    plain.pack_conv,
    plain.natural_order,
    plain.pack_depthwise,
    plain.natural_order,
)


def family_of(isa: Isa) -> Family:
    """The generators for an instruction set."""
    if isa.lanes == 1:
        return LOOPS
    return TILES if isinstance(isa, Amx) else VECTORS
