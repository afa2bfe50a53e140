"""Bit widths and names as they travel inside an ONNX file.

The model's own metadata is the truth: it reaches every user of onnxruntime and survives onnxruntime's save. The same
widths stand on each node, for people who open the file in a viewer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import onnx

from exporters.errors import ExportError
from exporters.qnet import QLayer, QuantizedNetwork, QWeighted

METADATA_KEY = "apq-deploy"
SCHEMA = 1


@dataclass(frozen=True)
class Claims:
    """What a file says about itself.

    weight_bits: by layer name. act_bits: bits of the layer's output, by layer name. kinds: layer class by layer name.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    input_bits: int | None = None
    weight_bits: dict[str, int] = field(default_factory=dict)
    act_bits: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


def describe_network(net: QuantizedNetwork) -> str:
    """The JSON text for the model's metadata."""
    layers = []
    for layer in net.layers:
        entry: dict[str, str | int] = {"name": layer.name, "kind": type(layer).__name__, "act_bits": layer.output.bits}
        if isinstance(layer, QWeighted):
            entry["weight_bits"] = layer.weight_bits
        layers.append(entry)
    content = {"schema": SCHEMA, "input_bits": net.input.bits, "layers": layers, "metadata": net.metadata}
    return json.dumps(content, separators=(",", ":"))


def node_metadata(net: QuantizedNetwork, layer: QLayer) -> dict[str, str]:
    """What a viewer shows beside the layer's node."""
    props = {"input_bits": ", ".join(str(net.tensors[name].bits) for name in layer.inputs)}
    if isinstance(layer, QWeighted):
        props["weight_bits"] = str(layer.weight_bits)
    return props | {"output_bits": str(layer.output.bits)}


def read_claims(model: onnx.ModelProto) -> Claims | None:
    """The claims of a file, or None where it makes none.

    Raises: ExportError if there are claims that cannot be understood.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        return None
    problem = f"the file's {METADATA_KEY!r} metadata should be JSON of schema {SCHEMA}"
    try:
        content = json.loads(texts[0])
        if content["schema"] != SCHEMA:
            raise ExportError(f"{problem}, it has schema {content['schema']!r}; export the network anew")
        layers = {_string(entry["name"]): entry for entry in content["layers"]}
        return Claims(
            metadata={_string(key): _string(value) for key, value in content["metadata"].items()},
            input_bits=_bits(content["input_bits"]),
            weight_bits={name: _bits(entry["weight_bits"]) for name, entry in layers.items() if "weight_bits" in entry},
            act_bits={name: _bits(entry["act_bits"]) for name, entry in layers.items()},
            kinds={name: _string(entry["kind"]) for name, entry in layers.items()},
        )
    except ExportError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{problem}, and is not ({error}); export the network anew") from error


def _bits(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, got {value!r}")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value
