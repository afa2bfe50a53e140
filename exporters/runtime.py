"""onnxruntime: run a file, read every tensor's codes, and say which kernel each node became."""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from exporters.errors import ExportError
from exporters.files import read_file
from exporters.onnx_graph import load_model, name_nodes
from exporters.onnx_reader import read_network
from exporters.reference import Codes

# Without it, onnxruntime on x86 turns int8 activations into uint8 where it can and leaves the rest in float.
# Files with uint8 activations, all that this project writes, run the same with and without.
INT8_ALLOWED = ("session.qdqisint8allowed", "1")

# x86 without VNNI adds pairs of products in int16, which saturates where both operands use 8 bits; this option takes
# slower kernels that do not. With VNNI it would only cost time, and int8 activations.
EXACT_PRODUCTS = ("session.x64quantprecision", "1")
CPU_DESCRIPTION = Path("/proc/cpuinfo")
RUN_BATCH = 256
"""Images at a time, for a model that takes any number: memory does not grow with the data set."""

INTEGER_KERNELS = frozenset({"QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a node became in onnxruntime's optimised graph. is_integer: it reads codes, not floats."""

    op_type: str
    is_integer: bool


def run_onnx(
    model: str | os.PathLike[str] | bytes, images: NDArray[np.float32], threads: int = 1
) -> NDArray[np.float32]:
    """(n, classes) float32 logits of the file, optimised as far as onnxruntime does it.

    model: path or content. images: (n, channels, height, width) float32.
    Raises: ExportError if onnxruntime cannot load or run it.
    """
    content = model if isinstance(model, bytes) else read_file(model)
    # by path where there is one: weights may lie in a side file next to it
    return run_session(open_session(content if isinstance(model, bytes) else os.fspath(model), threads), images)


def run_session(session: ort.InferenceSession, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits from an open session; errors as `run_onnx`."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ExportError(f"the model should read one image, it reads {len(inputs)} inputs")
    return _run(session, [session.get_outputs()[0].name], images)[0]


def open_session(
    model: str | bytes, threads: int = 1, *, is_exact: bool = True, save_to: Path | None = None
) -> ort.InferenceSession:
    """A session on the CPU with every optimisation.

    is_exact: with the option under which integer kernels are exact on this CPU; else as onnxruntime starts by itself.
    save_to: where to leave the optimised graph, as it is before the layout changes of the last level, which move data
    and choose no other arithmetic.
    Raises: ExportError if onnxruntime cannot load the model.
    """
    if threads < 1:
        raise ExportError(f"threads must be at least 1, got {threads}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions
    ort.set_default_logger_severity(4)
    if is_exact:
        # onnxruntime fails to load a file under both
        options.add_session_config_entry(*(EXACT_PRODUCTS if products_saturate() else INT8_ALLOWED))
    if save_to is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(save_to)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ExportError(f"onnxruntime cannot load the model: {_line(error)}") from error


def products_saturate() -> bool:
    """Whether 8-bit products may saturate here: x86 without VNNI, or where that cannot be found out."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        description = CPU_DESCRIPTION.read_text()
    except OSError:
        return True
    return "avx512_vnni" not in description and "avx_vnni" not in description


def tensors_onnx(path: str | os.PathLike[str], images: NDArray[np.float32], threads: int = 1) -> dict[str, Codes]:
    """Codes of every tensor by name, from onnxruntime's optimised graph; each (n, *tensor.shape).

    images: (n, channels, height, width) float32.
    Raises: ExportError if the file cannot be read or run, or if looking at the tensors changes the kernels.
    """
    model = load_model(path)
    file = read_network(model)
    name_nodes(model)
    before = kernels(model, is_exact=True)
    for value in file.values.values():
        model.graph.output.append(helper.make_empty_tensor_value_info(value))
    if kernels(model, is_exact=True) != before:
        raise ExportError(f"{os.fspath(path)}: onnxruntime chooses other kernels when every tensor is an output")
    session = open_session(model.SerializeToString(), threads)
    arrays = _run(session, list(file.values.values()), images)
    shapes = file.net.tensors
    return {
        name: array.reshape(len(images), *shapes[name].shape) for name, array in zip(file.values, arrays, strict=True)
    }


def kernels(model: onnx.ModelProto, *, is_exact: bool = False) -> dict[str, Kernel]:
    """The kernel of each node by the node's name, which must be unique; nodes folded away are missing.

    Raises: ExportError if onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimised.onnx"
        open_session(model.SerializeToString(), is_exact=is_exact, save_to=saved)
        optimised = onnx.load(saved)
    real = {output for node in optimised.graph.node if node.op_type == "DequantizeLinear" for output in node.output} | {
        value.name for value in optimised.graph.input
    }
    found: dict[str, Kernel] = {}
    for node in optimised.graph.node:
        is_integer = node.op_type.startswith("QLinear") or node.op_type in INTEGER_KERNELS
        if node.op_type == "MaxPool":
            is_integer = node.input[0] not in real and _reads_codes(node, optimised)
        found[node.name] = Kernel(node.op_type, is_integer)
    return found


def _reads_codes(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether a pooling's input comes, through poolings at most, from a kernel that gives codes."""
    producers = {output: other for other in model.graph.node for output in other.output}
    value = node.input[0]
    while value in producers and producers[value].op_type in ("MaxPool", "Clip", "Transpose"):
        value = producers[value].input[0]
    op_type = producers[value].op_type if value in producers else ""
    return op_type == "QuantizeLinear" or op_type.startswith("QLinear") or op_type in INTEGER_KERNELS


def _run(session: ort.InferenceSession, names: list[str], images: NDArray[np.float32]) -> list[NDArray]:
    """The named values, for all images: some at a time, or as many as a model of fixed batch size takes."""
    source = session.get_inputs()[0]
    images = np.ascontiguousarray(images, dtype=np.float32)
    fixed = source.shape[0] if source.shape and isinstance(source.shape[0], int) else None
    if not len(images) or len(images) % (fixed or 1):
        raise ExportError(f"the model takes {fixed or 'some'} images at a time, got {len(images)}; give a multiple")
    batch = fixed or RUN_BATCH
    try:
        runs = [
            session.run(names, {source.name: images[start : start + batch]}) for start in range(0, len(images), batch)
        ]
    except Exception as error:  # as above
        raise ExportError(f"onnxruntime cannot run the model on images of {images.shape}: {_line(error)}") from error
    return [np.concatenate(arrays) for arrays in zip(*runs, strict=True)]


def _line(error: BaseException) -> str:
    """The message of someone else's error in one short line."""
    return " ".join(str(error).split())[:300]
