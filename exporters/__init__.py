"""From a quantized network to ONNX, to integer codes and to compiled code. Knows no supernet and no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.errors import ExportError, UnsupportedGraph
    from exporters.onnx_reader import read_onnx
    from exporters.onnx_writer import write_onnx
    from exporters.qnet import (
        QAdd,
        QAddConstant,
        QClip,
        QConv,
        QDepthwise,
        QLinear,
        QMaxPool,
        QPool,
        QTensor,
        QuantizedNetwork,
    )
    from exporters.reference import run_reference
    from exporters.tvm import CompiledModel, compile_tvm

_HOME = {
    "ExportError": "exporters.errors",
    "UnsupportedGraph": "exporters.errors",
    "QAdd": "exporters.qnet",
    "QAddConstant": "exporters.qnet",
    "QClip": "exporters.qnet",
    "QConv": "exporters.qnet",
    "QDepthwise": "exporters.qnet",
    "QLinear": "exporters.qnet",
    "QMaxPool": "exporters.qnet",
    "QPool": "exporters.qnet",
    "QTensor": "exporters.qnet",
    "QuantizedNetwork": "exporters.qnet",
    "read_onnx": "exporters.onnx_reader",
    "write_onnx": "exporters.onnx_writer",
    "run_reference": "exporters.reference",
    "compile_tvm": "exporters.tvm",
    "CompiledModel": "exporters.tvm",
}
__all__ = [
    "CompiledModel",
    "ExportError",
    "QAdd",
    "QAddConstant",
    "QClip",
    "QConv",
    "QDepthwise",
    "QLinear",
    "QMaxPool",
    "QPool",
    "QTensor",
    "QuantizedNetwork",
    "UnsupportedGraph",
    "compile_tvm",
    "read_onnx",
    "run_reference",
    "write_onnx",
]


def __getattr__(name: str) -> Any:
    """Load a name when it is first asked for: onnx, onnxruntime and TVM are slow to import."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporters' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
