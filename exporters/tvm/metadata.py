"""What a compiled model says about itself: readable from the file's bytes alone, before any of its code is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from exporters.errors import ExportError
from exporters.qnet import QuantizedNetwork
from exporters.tvm.layout import SIGNED_SHIFT, Layout

SCHEMA = 2
SYMBOL = "apq_deploy_metadata"
_MARKER = b"apq-deploy compiled model: "


@dataclass(frozen=True)
class TensorEntry:
    """An activation: its name, shape and type in the network, and how its bytes lie in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout

    @property
    def shift(self) -> int:
        """What the stored bytes are above the network's codes."""
        return SIGNED_SHIFT if self.dtype == "int8" else 0


@dataclass(frozen=True)
class LayerEntry:
    """A layer: weight_bits is None where there are no weights; kernel is the function that computes it."""

    name: str
    kind: str
    kernel: str
    weight_bits: int | None
    act_bits: int


@dataclass(frozen=True)
class Metadata:
    """What is written into the library.

    architecture, features: what the CPU must have. sha256: of the ONNX file, or of the network where there was none.
    image_shape: without the batch. layers: every call of a kernel, in order, quantization and dequantization included.
    """

    name: str
    tool_version: str
    target: str
    architecture: str
    features: tuple[str, ...]
    threads: int
    pack_weights: bool
    sha256: str
    image_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tensors: tuple[TensorEntry, ...]
    layers: tuple[LayerEntry, ...]

    def to_bytes(self) -> bytes:
        """The marker, JSON, and a zero byte."""
        content = {"schema": SCHEMA, **asdict(self)}
        return _MARKER + json.dumps(content, separators=(",", ":")).encode() + b"\0"

    @classmethod
    def find(cls, library: bytes, where: str) -> Metadata:
        """The metadata within a library's bytes. where: the file's name, for messages.

        Raises: ExportError if there is none, or it is of another version.
        """
        start = library.find(_MARKER)
        end = library.find(b"\0", start)
        if start < 0 or end < 0:
            raise ExportError(f"{where} is no model compiled by apq-deploy, or is damaged; compile it again")
        try:
            content = json.loads(library[start + len(_MARKER) : end])
            if content.pop("schema") != SCHEMA:
                raise ExportError(f"{where} was compiled by another version of apq-deploy; compile it again")
            return _parse(content)
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ExportError(f"{where} holds damaged metadata; compile it again") from error


def _parse(content: dict[str, Any]) -> Metadata:
    tensors = tuple(
        TensorEntry(
            entry["name"],
            tuple(entry["shape"]),
            entry["dtype"],
            Layout(**{**entry["layout"], "border": tuple(entry["layout"]["border"])}),
        )
        for entry in content.pop("tensors")
    )
    layers = tuple(LayerEntry(**entry) for entry in content.pop("layers"))
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return Metadata(**{**content, **lists}, tensors=tensors, layers=layers)


def network_sha256(net: QuantizedNetwork) -> str:
    """A hash of everything that the network computes: layers, weights, scales, clamps; not its metadata."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(value).encode() + b"\0")

    add(net.input)
    for layer in net.layers:
        add(type(layer).__name__)
        for name in type(layer).__slots__:
            add(getattr(layer, name))
    return digest.hexdigest()


_SEAL = b"apq-deploy sha256 "


def seal(library: bytes) -> bytes:
    """The library with its own hash behind it, where the loader of the system does not look."""
    return library + _SEAL + hashlib.sha256(library).digest()


def check_seal(library: bytes, where: str) -> None:
    """Nothing, if the bytes are whole. A damaged library could crash the process that loads it.

    Raises: ExportError
    """
    content, end = library[: -len(_SEAL) - 32], library[-len(_SEAL) - 32 :]
    if end != _SEAL + hashlib.sha256(content).digest():
        raise ExportError(f"{where} is damaged or cut short; compile it again")
