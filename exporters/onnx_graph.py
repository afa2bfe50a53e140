"""An ONNX file as a checked, ordered list of nodes: what the reader and the audit look at."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from ml_dtypes import int4, uint2
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from exporters.errors import ExportError, UnsupportedGraph
from exporters.files import MAX_FILE_BYTES, read_file

Attribute = int | float | str | tuple[int, ...]

# weights of two and four bits are unpacked to these
_UNPACKED = {np.dtype(int4): np.dtype(np.int8), np.dtype(uint2): np.dtype(np.uint8)}


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model in the file, with the weights of any side files.

    Raises: ExportError if the file is missing, cut short or no ONNX model.
    """
    model = parse_model(read_file(path), os.fspath(path))
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    folder, total = Path(path).parent, 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of keys that it does not know
            for tensor in tensors:
                total += _side_bytes(tensor, folder)
                if total > MAX_FILE_BYTES:
                    raise ValueError(f"more than the {MAX_FILE_BYTES} bytes that are read of a model")
                load_external_data_for_tensor(tensor, str(folder))  # refuses what lies outside of the folder
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ExportError(
            f"{os.fspath(path)}: its weights lie in a side file that cannot be read: {_line(error)}"
        ) from error
    return model


def _side_bytes(tensor: onnx.TensorProto, folder: Path) -> int:
    """Bytes of a tensor that lies in a side file. Raises: OSError or ValueError where that is none."""
    place = ExternalDataInfo(tensor)
    if place.length is not None:
        return place.length
    return max(0, (folder / place.location).stat().st_size - (place.offset or 0))


def parse_model(content: bytes, origin: str = "model") -> onnx.ModelProto:
    """The model in the bytes. origin: what messages call it.

    Raises: ExportError if the bytes are no ONNX model.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        _check_texts(model)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ExportError(f"{origin}: not an ONNX model, or cut short ({_line(error)}); export it again") from error
    if not model.graph.node:
        raise ExportError(f"{origin}: holds no ONNX graph ({len(content)} bytes); export it again")
    return model


def _check_texts(message: Message) -> None:
    """Raises: ValueError for text that is not UTF-8, which protobuf passes on as bytes."""
    for kind, value in message.ListFields():
        values = value if kind.is_repeated else (value,)
        if kind.type == FieldDescriptor.TYPE_MESSAGE:
            for each in values:
                _check_texts(each)
        elif kind.type == FieldDescriptor.TYPE_STRING and any(isinstance(each, bytes) for each in values):
            raise ValueError(f"{kind.name} is no text in UTF-8")


def _line(error: BaseException) -> str:
    """The message of someone else's error in one short line."""
    return " ".join(str(error).split())[:200]


def label(node: onnx.NodeProto) -> str:
    """How messages name a node."""
    return f"{node.op_type} node {node.name or (node.output[0] if node.output else '?')!r}"


def attributes(node: onnx.NodeProto) -> dict[str, Attribute]:
    """Attributes by name: numbers, text and lists of whole numbers.

    Raises: UnsupportedGraph for an attribute of another type.
    """
    values: dict[str, Attribute] = {}
    for attribute in node.attribute:
        match attribute.type:
            case onnx.AttributeProto.INT:
                values[attribute.name] = attribute.i
            case onnx.AttributeProto.FLOAT:
                values[attribute.name] = attribute.f
            case onnx.AttributeProto.STRING:
                values[attribute.name] = attribute.s.decode("utf-8", errors="replace")
            case onnx.AttributeProto.INTS:
                values[attribute.name] = tuple(attribute.ints)
            case onnx.AttributeProto.TENSOR if node.op_type == "Constant":
                continue
            case _:
                raise UnsupportedGraph(
                    f"{label(node)}: attribute {attribute.name!r} is of a type that is not supported"
                )
    return values


def integers(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An attribute that is a list of whole numbers.

    Raises: UnsupportedGraph if it is something else.
    """
    value = attributes(node).get(name, default)
    if not isinstance(value, tuple):
        raise UnsupportedGraph(f"{label(node)}: attribute {name!r} should be a list of whole numbers, got {value!r}")
    return value


def to_array(tensor: onnx.TensorProto) -> NDArray:
    """The tensor's values; INT4 and UINT2 come as int8 and uint8.

    Raises: ExportError if its data does not fit its shape and type.
    """
    if uses_external_data(tensor):
        raise ExportError(f"tensor {tensor.name!r} lies in a side file; supported for a graph's initializers only")
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # whatever the decoder stumbles over in a broken file
        raise ExportError(f"tensor {tensor.name!r} cannot be read: {_line(error)}; export the model again") from error
    return array.astype(_UNPACKED.get(array.dtype, array.dtype))


@dataclass
class Graph:
    """A model's nodes in their order, with look-ups.

    nodes: those that the outputs depend on. names: a unique name per node, by the node's position in `nodes`.
    """

    model: onnx.ModelProto
    nodes: list[onnx.NodeProto] = field(init=False)
    initializers: dict[str, onnx.TensorProto] = field(init=False)
    producer: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {}
        for node in graph.node:
            for output in filter(None, node.output):
                if output in self.producer:
                    raise ExportError(f"value {output!r} is written twice; the file is broken")
                self.producer[output] = node
        self.nodes = self._needed()
        self.consumers = {}
        for node in self.nodes:
            for value in node.input:
                self.consumers.setdefault(value, []).append(node)

    def _needed(self) -> list[onnx.NodeProto]:
        """Nodes that the graph's outputs depend on, in the file's order."""
        wanted = [output.name for output in self.model.graph.output]
        seen: set[str] = set()
        while wanted:
            value = wanted.pop()
            if value and value not in seen:
                seen.add(value)
                if value in self.producer:
                    wanted.extend(self.producer[value].input)
        return [node for node in self.model.graph.node if any(output in seen for output in node.output)]

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Graph inputs that no initializer fills."""
        return [value for value in self.model.graph.input if value.name not in self.initializers]


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name: its own, else that of its first output."""
    seen: Counter[str] = Counter()
    for position, node in enumerate(model.graph.node):
        name = node.name or (node.output[0] if node.output else f"node{position}")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}.{position}"


def image_shape(value: onnx.ValueInfoProto) -> tuple[int, int, int]:
    """Channels, height, width of a float image input.

    Raises: UnsupportedGraph if it is none, or its sizes are open.
    """
    tensor = value.type.tensor_type
    sizes = [dimension.dim_value for dimension in tensor.shape.dim]
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(sizes) != 4 or min(sizes[1:]) < 1:
        known = onnx.TensorProto.DataType
        kind = known.Name(tensor.elem_type) if tensor.elem_type in known.values() else "an unknown type"
        raise UnsupportedGraph(
            f"input {value.name!r} should be float32 (N, channels, height, width) with fixed sizes, "
            f"got {kind} {sizes}; export with a fixed image size"
        )
    if max(sizes[1:]) > 2**14:
        raise UnsupportedGraph(f"input {value.name!r} of {sizes} is larger than any image that is supported")
    return sizes[1], sizes[2], sizes[3]
