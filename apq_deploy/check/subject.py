"""The model under check: everything that gates ask of it, each computed once, and only if a gate asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from apq_deploy.check.budget_file import DEFAULT_DOMAINS, DeployBudget
from apq_deploy.check.findings import Figure
from apq_deploy.check.images import CheckImages, ImageFormat, own_images, random_images
from apq_deploy.errors import UserError
from exporters.errors import UnsupportedGraph
from exporters.files import read_file
from exporters.onnx_graph import Graph, image_shape, parse_model
from exporters.onnx_metadata import read_claims
from exporters.qnet import QuantizedNetwork
from exporters.reference import Codes

if TYPE_CHECKING:
    from exporters.audit import AuditReport
    from exporters.parity import ParityReport
    from exporters.tvm.timing import TimingReport

T = TypeVar("T")
BATCH = 256


class FigureSource(Protocol):
    """Whoever measures a figure of a model."""

    def __call__(self, subject: Subject) -> Figure: ...


class Subject:
    """A model file and what has been found out about it so far.

    An error is remembered like a result: each gate that needs what could not be had gets the same reason.
    cleanup: removes, when it closes, what is built on the way.

    Raises: ExportError if the file is no ONNX model.
    """

    def __init__(self, path: Path, budget: DeployBudget, cleanup: ExitStack) -> None:
        self.path = path
        self.budget = budget
        self.model = parse_model(read_file(path), os.fspath(path))
        self.figures: dict[str, Figure] = {}
        self.given: CheckImages | None = None
        self._cleanup = cleanup
        self._found: dict[str, tuple[Any, Exception | None]] = {}

    def _once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._found:
            try:
                self._found[name] = (make(), None)
            except Exception as error:
                self._found[name] = (None, error)
        result, error = self._found[name]
        if error is not None:
            raise error
        return result

    def network(self) -> QuantizedNetwork:
        """The quantized network in the file. Raises: UnsupportedGraph where it is none."""
        from exporters.onnx_reader import read_onnx

        return self._once("network", partial(read_onnx, self.path))

    def audit(self) -> AuditReport:
        from exporters.audit import audit

        return self._once("audit", partial(audit, self.path))

    def image_format(self) -> ImageFormat:
        """What the model takes and gives. Raises: UnsupportedGraph where it does not take one image of fixed size."""
        return self._once("image_format", self._image_format)

    def _image_format(self) -> ImageFormat:
        inputs, outputs = Graph(self.model).inputs, self.model.graph.output
        if len(inputs) != 1:
            raise UnsupportedGraph(f"the model should read one image, it reads {len(inputs)} inputs")
        dimensions = outputs[0].type.tensor_type.shape.dim if outputs else []
        classes = dimensions[-1].dim_value if len(dimensions) == 2 else 0
        claims = read_claims(self.model)
        space = claims.metadata.get("space") if claims is not None else None
        return ImageFormat(image_shape(inputs[0]), classes or None, space)

    def images(self) -> CheckImages:
        """Images of any kind: the given ones, else the model's own, else random ones."""
        wanted = self.image_format()
        return self.given or self._once("own_images", partial(own_images, wanted)) or random_images(wanted)

    def profile(self) -> dict[str, Any]:
        """Costs on the hardware model, as `profile_model` gives them."""
        return self._once("profile", self._profile)

    def _profile(self) -> dict[str, Any]:
        from apq_deploy.profiling import profile_model

        settings = self.budget.hardware
        if settings.bits is not None:
            try:
                self.network()
            except UnsupportedGraph:
                pass
            else:
                raise UserError("[hardware] bits is for files in float, and this one carries its own; remove it")
        try:
            return profile_model(self.path, settings.model, settings.bits, settings.table)
        except UserError as error:
            raise UserError(str(error).replace("as in `--bits 8`", "as in [hardware] bits = 8")) from None

    def library(self) -> Path:
        """The compiled library: the named one, else one that is compiled now."""
        return self.budget.compiled.library or self._once("library", self._compile)

    def _compile(self) -> Path:
        from exporters.tvm import compile_tvm

        settings = self.budget.compiled
        path = Path(self._cleanup.enter_context(TemporaryDirectory(prefix="apq-deploy-check-"))) / "model.so"
        compile_tvm(self.network(), settings.target, settings.threads).save(path)
        return path

    def parity(self) -> ParityReport:
        """How codes differ between the NumPy reference and the runtimes that the budget names."""
        return self._once("parity", self._parity)

    def _parity(self) -> ParityReport:
        from exporters.parity import parity

        settings = self.budget.parity
        assert settings is not None
        net, source = self.network(), self.images()
        images = source.fetch(0, min(settings.images, source.count))
        extra: dict[str, Mapping[str, Codes]] = {}
        if "tvm" in settings.runtimes:
            from exporters.tvm import CompiledModel

            extra["TVM"] = CompiledModel.load(self.library()).tensors(images)
        if "torch" in settings.runtimes:
            import torch

            from apq_deploy.quantize.integer import run_integers

            extra["torch"] = run_integers(net, torch.from_numpy(images))
        path = self.path if "onnxruntime" in settings.runtimes else None
        return parity(net, path, images, extra)

    def timing(self) -> TimingReport:
        """Latency of the library, and of onnxruntime beside it where the budget compares the two."""
        return self._once("timing", self._timing)

    def _timing(self) -> TimingReport:
        from exporters.tvm import CompiledModel
        from exporters.tvm.metadata import network_sha256
        from exporters.tvm.timing import time_compiled

        gate, regression, settings = self.budget.measured_latency, self.budget.regression, self.budget.compiled
        metadata = CompiledModel.load(self.library()).metadata
        threads = metadata.threads
        if threads != settings.threads:
            raise UserError(f"the library was compiled for {threads} threads; say so by [compiled] threads = {threads}")
        if metadata.sha256 not in (network_sha256(self.network()), sha256(read_file(self.path)).hexdigest()):
            raise UserError(f"{settings.library} was compiled from another model than {self.path}; compile it again")
        is_compared = (gate is not None and gate.max_ratio is not None) or (
            regression is not None and regression.measured_ratio_percent is not None
        )
        return time_compiled(
            self.library(),
            self.path if is_compared else None,
            threads=threads,
            repeats=settings.repeats,
            rounds=settings.rounds,
        )

    def correct(self) -> tuple[int, int, str]:
        """How many images are put into their class, of how many, and of which source."""
        return self._once("correct", self._correct)

    def _correct(self) -> tuple[int, int, str]:
        from exporters.runtime import open_session, run_session

        source = self.images()
        if source.labels is None:
            raise UserError("there are no images with classes for this model; give them with `--data DIR`")
        gate = self.budget.accuracy
        count = source.count if gate is None or gate.images is None else gate.images
        if count > source.count:
            raise UserError(f"[accuracy] images = {count}, but there are only {source.count} ({source.source})")
        session = open_session(os.fspath(self.path))
        batch = session.get_inputs()[0].shape[0]
        fixed = batch if isinstance(batch, int) and batch > 0 else 1
        step = fixed * max(1, BATCH // fixed)
        right = 0
        for first in range(0, count, step):
            images = source.fetch(first, min(first + step, count))
            # a model of fixed batch size gets its last batch filled up
            filled = np.concatenate([images, np.repeat(images[:1], -len(images) % fixed, axis=0)])
            logits = run_session(session, filled)[: len(images)]
            if logits.ndim != 2:
                raise UserError(f"accuracy needs logits (n, classes), the model gives {logits.shape}")
            right += int((logits.argmax(1) == source.labels[first : first + len(images)]).sum())
        return right, count, source.source

    def file_bytes(self) -> int:
        """Bytes of the file, and of the side files that its weights lie in.

        Raises: UserError if a side file is missing.
        """
        tensors = [tensor for tensor in self.model.graph.initializer if uses_external_data(tensor)]
        try:
            sides = {self.path.parent / ExternalDataInfo(tensor).location for tensor in tensors}
            return self.path.stat().st_size + sum(side.stat().st_size for side in sides)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None

    def operators(self) -> dict[str, list[str]]:
        """Names of the nodes of every operator, also inside of loops, branches and functions."""
        return self._once("operators", self._operators)

    def _operators(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        pending = [*self.model.graph.node, *(node for each in self.model.functions for node in each.node)]
        while pending:
            node = pending.pop(0)
            name = node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
            found.setdefault(name, []).append(node.name or (node.output[0] if node.output else "?"))
            for attribute in node.attribute:
                for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    pending.extend(graph.node)
        return found

    def opset(self) -> int | None:
        """Version of the operator set ai.onnx, or None where the file does not say."""
        versions = [entry.version for entry in self.model.opset_import if entry.domain in DEFAULT_DOMAINS]
        return max(versions, default=None)
