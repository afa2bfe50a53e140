"""A compiled model: load, run, save."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax

from exporters.errors import ExportError
from exporters.files import read_file, replace_file
from exporters.tvm.metadata import LayerEntry, Metadata, TensorEntry, check_seal
from exporters.tvm.targets import missing_features

Codes = NDArray[np.uint8] | NDArray[np.int8]
VirtualMachine: Any = relax.VirtualMachine  # its annotation of devices is another class's
USE_ALL_CORES_ALIKE = 1  # TVM's affinity mode
_bound = threading.local()
"""In `cores`: those that TVM has bound this thread to."""


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer within a run of the whole network. share: of the sum over the layers."""

    layer: LayerEntry
    microseconds: float
    share: float


class CompiledModel:
    """A network as machine code.

    metadata: what it was compiled from and for. A model for another CPU can be saved, but not run.
    """

    def __init__(self, library: bytes, metadata: Metadata) -> None:
        self.metadata = metadata
        self._library = library
        self._machine: Any = None
        self._turn = threading.Lock()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CompiledModel:
        """The model that `save` wrote to `path`, ready to run.

        Raises: ExportError if the file is no compiled model, is damaged, or needs another CPU.
        """
        library, where = read_file(path), os.fspath(path)
        metadata = Metadata.find(library, where)
        check_seal(library, where)
        model = cls(library, metadata)
        model._check_cpu()
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the library to `path`.

        Raises: ExportError if it cannot be written.
        """
        replace_file(path, self._library)

    @property
    def size_bytes(self) -> int:
        """Bytes of the library."""
        return len(self._library)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, classes) logits of (n, channels, height, width) images, scaled as the network takes them.

        Calls from several Python threads take turns.

        Raises: ExportError if the images do not fit, or this CPU cannot run the model.
        """
        images = self._checked(images)
        run = self.function("main")
        logits = np.empty((len(images), *self.metadata.output_shape), np.float32)
        with self._turn, _own_cores(self.metadata.threads):
            for number in range(len(images)):
                logits[number] = np.from_dlpack(run(_tensor(images[number : number + 1])))[0]
        return logits

    def tensors(self, images: NDArray[np.float32]) -> dict[str, Codes]:
        """Integer codes of every tensor by name, the input's first; each (n, *shape of the tensor).

        Raises: as calling the model.
        """
        images = self._checked(images)
        run = self.function("tensors")
        found: dict[str, list[Codes]] = {entry.name: [] for entry in self.metadata.tensors}
        for number in range(len(images)):
            with self._turn, _own_cores(self.metadata.threads):
                values = run(_tensor(images[number : number + 1]))
            for entry, value in zip(self.metadata.tensors, values, strict=True):
                found[entry.name].append(_codes(entry, value.numpy()))
        shapes = {entry.name: entry.shape for entry in self.metadata.tensors}
        dtypes = {entry.name: entry.dtype for entry in self.metadata.tensors}
        return {name: np.array(codes, dtypes[name]).reshape(len(codes), *shapes[name]) for name, codes in found.items()}

    def profile(self, images: NDArray[np.float32], repeats: int = 50) -> list[LayerTime]:
        """Median time of every layer, in order, over `repeats` runs of each image.

        What measuring adds, the same for every layer, is taken off: the times sum up to a run's that is not measured.

        Raises: as calling the model.
        """
        run = self.function("main")
        kernels = {entry.kernel for entry in self.metadata.layers}
        started, durations = [0.0], []

        def watch(_: Any, name: str, is_before: bool, *__: Any) -> int:
            if name in kernels:
                now = time.perf_counter()
                if is_before:
                    started[0] = time.perf_counter()
                else:
                    durations.append(now - started[0])
            return 0  # go on

        images = self._checked(images)
        inputs = [_tensor(images[number : number + 1]) for number in range(len(images))]
        whole = []
        with self._turn, _own_cores(self.metadata.threads):
            for image in inputs:
                run(image)
            for _ in range(repeats):
                for image in inputs:
                    begun = time.perf_counter()
                    run(image)
                    whole.append(time.perf_counter() - begun)
            self._machine.set_instrument(watch)
            try:
                for _ in range(repeats):
                    for image in inputs:
                        run(image)
            finally:
                self._machine = None  # an instrument cannot be taken off again
        medians = np.median(np.reshape(durations, (-1, len(self.metadata.layers))), axis=0)
        added = max(0.0, float(medians.sum() - np.median(whole)) / len(medians))
        return _layer_times(self.metadata.layers, np.maximum(medians - added, 0) * 1e6)

    def function(self, name: str) -> Any:
        """A function of the library: "main" gives logits of one image, "tensors" the bytes of every activation.

        With several threads, TVM may bind the thread that calls it to few cores for good.

        Raises: ExportError if this CPU cannot run it.
        """
        if self._machine is None:
            self._check_cpu()
            if self.metadata.threads > 1:
                cores = os.cpu_count() or 1
                if self.metadata.threads > cores // 2:  # TVM's own limit, for the sake of cores with two threads each
                    os.environ.setdefault("TVM_NUM_THREADS", str(cores))  # read when the threads are made
                with _own_cores(self.metadata.threads):
                    tvm.get_global_func("runtime.config_threadpool")(USE_ALL_CORES_ALIKE, self.metadata.threads)
            # The file can go as soon as it is loaded: the system keeps what a running program has mapped.
            with tempfile.TemporaryDirectory(prefix="apq-deploy-") as folder:
                path = Path(folder) / "model.so"
                path.write_bytes(self._library)
                try:
                    self._machine = VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
                except (RuntimeError, AttributeError, ValueError) as error:
                    reason = str(error).strip().splitlines()[-1]
                    raise ExportError(f"cannot load the compiled model: {reason}; compile it again") from error
        return self._machine[name]

    def _check_cpu(self) -> None:
        missing = missing_features(self.metadata.architecture, self.metadata.features)
        if missing:
            raise ExportError(
                f"the model was compiled for {self.metadata.target}, and this CPU lacks {', '.join(missing)}; "
                "compile it again on this machine or for another target"
            )

    def _checked(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The images as float32."""
        shape = self.metadata.image_shape
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise ExportError(f"images should be (n, {', '.join(map(str, shape))}), got {images.shape}")
        if images.dtype.kind != "f":
            raise ExportError(
                f"expected images as float32, scaled as the network was trained (pixels / 255 for networks of "
                f"`apq-deploy export`), got {images.dtype}"
            )
        images = np.ascontiguousarray(images, np.float32)
        return images if images.flags.writeable else images.copy()  # what is read only cannot be shared


def _tensor(image: NDArray[np.float32]) -> Any:
    """The same memory for TVM; an image's alignment does not matter to the kernels."""
    return tvm_ffi.from_dlpack(image, require_alignment=4, require_contiguous=True)


@contextmanager
def _own_cores(threads: int) -> Iterator[None]:
    """Where TVM runs several threads, the calling one is bound to TVM's core within the block, and free after it.

    TVM binds it for good, which would leave that core alone to all that this thread and its children do later. Without
    being bound at all, the thread may get in the way of TVM's others.
    """
    if threads == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = getattr(_bound, "cores", None)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores is None:
            _bound.cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, before)


def _layer_times(layers: Sequence[LayerEntry], microseconds: NDArray[np.float64]) -> list[LayerTime]:
    total = float(microseconds.sum())
    return [
        LayerTime(layer, float(took), float(took) / total) for layer, took in zip(layers, microseconds, strict=True)
    ]


def _codes(entry: TensorEntry, stored: NDArray[np.uint8]) -> Codes:
    """The network's codes of one image from the bytes of its activation."""
    layout = entry.layout
    top, left, bottom, _ = layout.border
    rows = stored.reshape(top + layout.height + bottom, -1, layout.pitch)
    image = rows[top : top + layout.height, left : left + layout.width, : layout.channels]
    codes = (image.astype(np.int16) - entry.shift).astype(entry.dtype)
    return codes.transpose(2, 0, 1).reshape(entry.shape)
