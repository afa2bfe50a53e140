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
    from exporters.reference import reference_logits, run_reference
    from exporters.runtime import run_onnx, tensors_onnx
    from exporters.tvm import CompiledModel, compile_tvm
    from exporters.workload import float_layers, network_layers

# `audit` and `parity` are not among them: they bear the names of their modules, `exporters.audit` and so on
_HOME = {
    "CompiledModel": "exporters.tvm",
    "ExportError": "exporters.errors",
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
    "UnsupportedGraph": "exporters.errors",
    "compile_tvm": "exporters.tvm",
    "float_layers": "exporters.workload",
    "network_layers": "exporters.workload",
    "read_onnx": "exporters.onnx_reader",
    "reference_logits": "exporters.reference",
    "run_onnx": "exporters.runtime",
    "run_reference": "exporters.reference",
    "tensors_onnx": "exporters.runtime",
    "write_onnx": "exporters.onnx_writer",
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
    "float_layers",
    "network_layers",
    "read_onnx",
    "reference_logits",
    "run_onnx",
    "run_reference",
    "tensors_onnx",
    "write_onnx",
]


def __getattr__(name: str) -> Any:
    """Load a name when it is first asked for: onnx, onnxruntime and TVM are slow to import."""
    if name not in _HOME:
        raise AttributeError(f"module 'exporters' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
