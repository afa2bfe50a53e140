"""Constant operands of a node as they lie in the file, whatever tool wrote it: codes, type, bits and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from exporters.onnx_graph import Graph, attributes, to_array
from exporters.onnx_layers import Constant, fold_constant, quantize_constant

TYPE_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.INT16: 16,
    TensorProto.UINT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}
# of newer onnx releases only
TYPE_BITS |= {getattr(TensorProto, name): 2 for name in ("INT2", "UINT2") if hasattr(TensorProto, name)}


@dataclass(frozen=True, eq=False)
class StoredConstant:
    """A constant operand. array: its codes, or its values if it is float.

    zero_point: of the codes. storage_bits: per element in the file. names: the initializers it is made of.
    """

    array: NDArray
    is_quantized: bool
    zero_point: int
    storage_bits: int
    names: frozenset[str]

    @property
    def bits_used(self) -> int | None:
        """The fewest bits that hold the codes; None for float values.

        With zero point 0 as two's complement, with another as many levels as the codes span.
        """
        if not self.is_quantized or not self.array.size:
            return None
        low, high = int(self.array.min()), int(self.array.max())
        if self.zero_point or self.array.dtype.kind == "u":
            return max(1, (high - low).bit_length())
        return max(max(high, 0).bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1


def stored_constant(graph: Graph, value: str) -> StoredConstant | None:
    """The constant behind a value, or None if the value is computed from the network's input.

    Raises: UnsupportedGraph if it is computed from constants in a way that is not understood.
    """
    found: dict[str, NDArray | None] = {}
    array = _evaluate(graph, value, found, 0)
    if array is None:
        return None
    node = graph.producer.get(value)
    is_dequantized = node is not None and node.op_type == "DequantizeLinear"
    zero_point = 0
    parameters = set[str]()
    if is_dequantized and node is not None:
        parameters = set(node.input[1:])
        if len(node.input) > 2 and node.input[2]:
            points = _evaluate(graph, node.input[2], {}, 0)
            if points is not None and points.size:
                zero_point = int(points.flat[0])
    elements = array.size
    names = frozenset(name for name in found if name in graph.initializers)
    storage = sum(
        TYPE_BITS.get(graph.initializers[name].data_type, 8)
        for name in names - parameters
        if _size(graph.initializers[name]) == elements
    )
    is_quantized = is_dequantized or array.dtype.kind in "iu"
    return StoredConstant(array, is_quantized, zero_point, storage, names)


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _evaluate(graph: Graph, value: str, found: dict[str, NDArray | None], depth: int) -> NDArray | None:
    """Codes or float values behind `value`, a DequantizeLinear looked through. found: each value on the way, once."""
    if value not in found:
        found[value] = None  # what it reads may not be itself
        found[value] = _computed(graph, value, found, depth)
    return found[value]


def _computed(graph: Graph, value: str, found: dict[str, NDArray | None], depth: int) -> NDArray | None:
    if value in graph.initializers:
        return to_array(graph.initializers[value])
    node = graph.producer.get(value)
    if node is None or depth > 16:
        return None
    arrays = [_evaluate(graph, name, found, depth + 1) for name in node.input if name]
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        if not arrays or arrays[0] is None:
            return None
        if node.op_type == "DequantizeLinear":
            return arrays[0]
        constants = [Constant(array) for array in arrays[1:] if array is not None]
        return quantize_constant(node, Constant(arrays[0]), constants).array
    if any(array is None for array in arrays):
        return None
    known = [array for array in arrays if array is not None]
    if node.op_type == "Transpose" and len(known) == 1:
        order = attributes(node).get("perm", tuple(reversed(range(known[0].ndim))))
        if isinstance(order, tuple) and sorted(order) == list(range(known[0].ndim)):
            return known[0].transpose(order)
    return fold_constant(node, [Constant(array) for array in known]).array
