"""Quantized network -> compiled model."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import tvm

from exporters.errors import ExportError
from exporters.qnet import QuantizedNetwork, QWeighted
from exporters.tvm.compiled import CompiledModel
from exporters.tvm.link import compiler, linker
from exporters.tvm.lowering import LOGITS, Program, build_module, plan
from exporters.tvm.metadata import LayerEntry, Metadata, TensorEntry, network_sha256, seal
from exporters.tvm.pipeline import PIPELINE
from exporters.tvm.targets import resolve_target

MOST_THREADS = 64


def compile_tvm(
    net: QuantizedNetwork,
    target: str = "host",
    threads: int = 1,
    *,
    pack_weights: bool = False,
    source_sha256: str | None = None,
) -> CompiledModel:
    """The network compiled for `target`, with codes equal to onnxruntime's.

    target: "host" or a name from `exporters.tvm.targets.TARGETS`. threads: how many the kernels are split over.
    pack_weights: keep the weights of convolutions of at most 4 bits two to a byte, unpacked in registers: a smaller
    library. source_sha256: of the ONNX file, for the metadata.

    Raises: ExportError if the target is unknown, or what links a library for it is missing.
    """
    chosen = resolve_target(target)
    if not 1 <= threads <= MOST_THREADS:
        raise ExportError(f"threads must be from 1 to {MOST_THREADS}, got {threads}")
    if not net.layers:
        raise ExportError(f"network {net.name} has no layers to compile")
    compiler(chosen)  # before the work, not after
    program = plan(net, chosen.isa, pack_weights=pack_weights)
    module = build_module(program, chosen.isa, threads)
    sha256 = source_sha256 or network_sha256(net)
    metadata = Metadata(
        name=net.name,
        tool_version=version("apq-deploy"),
        target=chosen.name,
        architecture=chosen.architecture,
        features=chosen.features,
        threads=threads,
        pack_weights=pack_weights,
        sha256=sha256,
        image_shape=net.input.shape,
        output_shape=net.output.shape,
        tensors=_tensor_entries(net, program),
        layers=_layer_entries(net, program),
    )
    with tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(module, target=tvm.target.Target(dict(chosen.llvm)), tir_pipeline=PIPELINE)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        executable.export_library(str(library), fcompile=linker(chosen, metadata))
        return CompiledModel(seal(library.read_bytes()), metadata)


def _tensor_entries(net: QuantizedNetwork, program: Program) -> tuple[TensorEntry, ...]:
    tensors = net.tensors
    return tuple(
        TensorEntry(step.target, tensors[step.target].shape, tensors[step.target].dtype, program.layouts[step.target])
        for step in program.steps
        if step.target != LOGITS
    )


def _layer_entries(net: QuantizedNetwork, program: Program) -> tuple[LayerEntry, ...]:
    layers = {layer.name: layer for layer in net.layers}
    names = program.kernel_names()
    entries = []
    for index, step in enumerate(program.steps):
        kernel = names[step.spec]
        if step.layer not in layers:
            tensor = net.output if index else net.input
            entries.append(LayerEntry(step.layer, step.layer.capitalize(), kernel, None, tensor.bits))
            continue
        layer = layers[step.layer]
        weight_bits = layer.weight_bits if isinstance(layer, QWeighted) else None
        entries.append(LayerEntry(layer.name, type(layer).__name__, kernel, weight_bits, layer.output.bits))
    return tuple(entries)
