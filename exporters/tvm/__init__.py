"""Quantized networks as integer kernels through TVM."""

from __future__ import annotations

from exporters.tvm import versions as _checked_first  # noqa: F401 - refuses versions of TVM that would crash
from exporters.tvm.build import compile_tvm
from exporters.tvm.compiled import CompiledModel

__all__ = ["CompiledModel", "compile_tvm"]
