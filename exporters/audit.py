"""What a model file really holds: bits claimed, bits used, bytes stored, and whether onnxruntime runs it in integers.

Works on the files of this project and on those of other tools; what a file does not say about itself is None.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import numpy as np
import onnx

from exporters.errors import ExportError, UnsupportedGraph
from exporters.onnx_graph import Graph, attributes, load_model, name_nodes, to_array
from exporters.onnx_metadata import Claims, read_claims
from exporters.onnx_weights import StoredConstant, stored_constant
from exporters.runtime import Kernel, kernels

# where the weights and the bias of an operator stand among its inputs
OPERANDS = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1, None),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3, None),
    "QGemm": (3, 6),
}
CODE_ACTIVATIONS = ("QLinearAdd", "QLinearGlobalAveragePool", "QLinearAveragePool")
ACTIVATIONS = ("Add", "GlobalAveragePool", "AveragePool", "MaxPool", "ReduceMean", *CODE_ACTIVATIONS)
SHAPE_ONLY = ("Flatten", "Reshape", "Squeeze", "Transpose", "Identity", "MaxPool")


@dataclass(frozen=True, slots=True)
class LayerAudit:
    """One layer of the file.

    claimed_*: by the file's own word. used_weight_bits: the fewest that hold the weights' values. used_input_bits,
    used_output_bits: what the clamp lets through; None in float. storage_bits: per weight. size_bytes: weights,
    scales and bias. kernel: operator in onnxruntime's optimised graph; None if it cannot be loaded. is_integer:
    whether that kernel works on codes.
    """

    name: str
    kind: str
    claimed_weight_bits: int | None
    claimed_input_bits: int | None
    claimed_output_bits: int | None
    used_weight_bits: int | None
    used_input_bits: int | None
    used_output_bits: int | None
    weights: int
    storage_bits: int | None
    size_bytes: int
    kernel: str | None
    is_integer: bool | None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """layers: in the file's order. other_bytes: graph, activation parameters, metadata. false_claims: one line each."""

    path: str
    size_bytes: int
    other_bytes: int
    layers: tuple[LayerAudit, ...]
    false_claims: tuple[str, ...]

    @property
    def is_true(self) -> bool:
        """Whether no claim is false."""
        return not self.false_claims

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "is_true": self.is_true}


def audit(path: str | os.PathLike[str]) -> AuditReport:
    """Bits, bytes and kernels of every layer in the file, and the claims that are false.

    A claim is false where values need more bits than the file says, where a layer with quantized weights and input
    runs in float, where the file speaks of a layer that it does not have, or where onnxruntime cannot load it.

    Raises: ExportError if the file is no model.
    """
    model = load_model(path)
    size_bytes = model.ByteSize()
    claims = read_claims(model)
    name_nodes(model)
    graph = Graph(model)
    problems: list[str] = []
    found: dict[str, Kernel] | None = None
    try:
        found = kernels(model)
    except ExportError as error:
        problems.append(str(error))
    inspector = _Inspector(graph, claims, found)
    layers = [layer for node in graph.nodes if (layer := inspector.layer(node)) is not None]
    for layer in layers:
        problems.extend(_false_claims(layer, inspector.is_quantized(layer), found is not None))
    if claims is not None:
        names = {node.name for node in graph.nodes}
        missing = [name for name in claims.act_bits if name not in names]
        problems.extend(f"layer {name}: the file speaks of it, but has no such node" for name in missing)
    other = size_bytes - sum(layer.size_bytes for layer in layers)
    return AuditReport(os.fspath(path), size_bytes, other, tuple(layers), tuple(problems))


class _Inspector:
    def __init__(self, graph: Graph, claims: Claims | None, found: dict[str, Kernel] | None) -> None:
        self.graph = graph
        self.claims = claims
        self.kernels = found
        self.counted: set[str] = set()
        self.quantized: set[str] = set()
        self.images = {value.name for value in graph.inputs}

    def layer(self, node: onnx.NodeProto) -> LayerAudit | None:
        """What is to be said about a node, or None if it is no layer."""
        if not node.input or self._constant(node.input[0]) is not None:
            return None  # joins or scales weights
        if node.op_type in OPERANDS:
            weight_index, bias_index = OPERANDS[node.op_type]
            operands = [index for index in (weight_index, bias_index) if index is not None and index < len(node.input)]
            constants = [self._constant(node.input[index]) for index in operands]
            weight = constants[0] if constants else None
        elif node.op_type in ACTIVATIONS:
            weight, constants = None, []
        else:
            return None
        claims = self.claims or Claims()
        kernel = self.kernels.get(node.name) if self.kernels is not None else None
        used_input = self._bits_before(node.input[0])
        used_output = self._bits_after(node)
        layer = LayerAudit(
            name=node.name,
            kind=self._kind(node, weight),
            claimed_weight_bits=claims.weight_bits.get(node.name),
            claimed_input_bits=self._claimed_before(node.input[0], claims),
            claimed_output_bits=claims.act_bits.get(node.name),
            used_weight_bits=weight.bits_used if weight else None,
            used_input_bits=used_input,
            used_output_bits=used_output,
            weights=weight.array.size if weight else 0,
            storage_bits=weight.storage_bits if weight else None,
            size_bytes=self._size(constants),
            kernel=kernel.op_type if kernel else None,
            is_integer=kernel.is_integer if kernel else None,
        )
        if weight is not None and weight.is_quantized and used_input is not None:
            self.quantized.add(node.name)
        return layer

    def is_quantized(self, layer: LayerAudit) -> bool:
        """Whether the file says, in metadata or by its nodes, that the layer works on codes."""
        return layer.name in self.quantized or layer.claimed_output_bits is not None

    def _constant(self, value: str) -> StoredConstant | None:
        """The constant behind a value; None if it is computed, or in a way that nothing can be said about."""
        try:
            return stored_constant(self.graph, value) if value else None
        except UnsupportedGraph:
            return None

    def _kind(self, node: onnx.NodeProto, weight: StoredConstant | None) -> str:
        groups = attributes(node).get("group", 1) if node.op_type in ("Conv", "QLinearConv") else 1
        if weight is not None and weight.array.ndim == 4 and groups == weight.array.shape[0] != 1:
            return f"{node.op_type} depthwise"
        return node.op_type

    def _size(self, constants: list[StoredConstant | None]) -> int:
        """Bytes of initializers that no earlier layer has counted."""
        names = set[str]().union(*(constant.names for constant in constants if constant is not None)) - self.counted
        self.counted |= names
        return sum(self.graph.initializers[name].ByteSize() for name in names)

    def _codes_before(self, value: str) -> str | None:
        """Value of the codes that a dequantized value stands for, or None if it is float."""
        for _ in range(16):
            node = self.graph.producer.get(value)
            if node is None:
                return None
            if node.op_type == "DequantizeLinear":
                return node.input[0]
            if node.op_type.startswith("QLinear") or node.op_type in ("QuantizeLinear", "Clip"):
                return value if node.op_type != "Clip" or self._bounds(node) is not None else None
            if node.op_type not in SHAPE_ONLY:
                return None
            value = node.input[0]
        return None

    def _bits_before(self, value: str) -> int | None:
        """Bits of the codes that a layer reads."""
        codes = self._codes_before(value)
        low, high = 0, 255
        for _ in range(16):
            if codes is None:
                return None
            node = self.graph.producer.get(codes)
            if node is None:
                return None
            if node.op_type == "Clip":
                bounds = self._bounds(node)
                if bounds is None:
                    return None
                low, high = max(low, bounds[0]), min(high, bounds[1])
            elif node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear"):
                return max(1, (high - low).bit_length()) if high >= low else 1
            elif node.op_type not in SHAPE_ONLY:
                return None
            codes = node.input[0]
        return None

    def _bits_after(self, node: onnx.NodeProto) -> int | None:
        """Bits of the codes that a layer's result is clamped to."""
        value, is_codes = node.output[0], node.op_type.startswith("QLinear")
        bits = 8 if is_codes else None
        for _ in range(16):
            readers = self.graph.consumers.get(value, [])
            if len(readers) != 1:
                return bits
            reader = readers[0]
            if reader.op_type == "QuantizeLinear":
                bits = 8
            elif reader.op_type == "Clip" and bits is not None:
                bounds = self._bounds(reader)
                if bounds is None:
                    return bits
                bits = min(bits, max(1, (max(bounds[1] - bounds[0], 0)).bit_length()))
            elif reader.op_type not in ("Relu", "Clip", "Flatten", "Reshape", "Squeeze"):
                return bits
            value = reader.output[0]
        return bits

    def _bounds(self, node: onnx.NodeProto) -> tuple[int, int] | None:
        """Bounds of a Clip on codes, shifted to start at 0 for int8; None if it clips floats."""
        found = [0, 255]
        for position, name in enumerate(node.input[1:3]):
            if not name:
                continue
            if name not in self.graph.initializers:
                return None
            array = to_array(self.graph.initializers[name])
            if array.dtype not in (np.uint8, np.int8) or array.size != 1:
                return None
            found[position] = int(array.flat[0]) + (128 if array.dtype == np.int8 else 0)
        is_typed = any(node.input[1:3])
        return (found[0], found[1]) if is_typed else None

    def _claimed_before(self, value: str, claims: Claims) -> int | None:
        """What the file says about the bits of a layer's input."""
        for _ in range(32):
            if value in self.images:
                return claims.input_bits
            node = self.graph.producer.get(value)
            if node is None:
                return None
            if node.name in claims.act_bits:
                return claims.act_bits[node.name]
            if not node.input:
                return None
            value = node.input[0]
        return None


def _false_claims(layer: LayerAudit, is_quantized: bool, is_loaded: bool) -> list[str]:
    """One line for each claim about the layer that does not hold."""
    lines = []
    pairs: tuple[tuple[str, int | None, int | None], ...] = (
        ("weights", layer.claimed_weight_bits, layer.used_weight_bits),
        ("input", layer.claimed_input_bits, layer.used_input_bits),
        ("output", layer.claimed_output_bits, layer.used_output_bits),
    )
    for what, claimed, used in pairs:
        if claimed is None:
            continue
        if used is None:
            lines.append(f"layer {layer.name}: {what} claimed at {claimed} bits, but in float")
        elif used > claimed:
            lines.append(f"layer {layer.name}: {what} claimed at {claimed} bits, but the values use {used}")
    if is_quantized and is_loaded and not layer.is_integer:
        kernel = f"as a float {layer.kernel}" if layer.kernel else "in float, merged into another node"
        lines.append(f"layer {layer.name}: quantized in the file, but onnxruntime runs it {kernel}")
    return lines
