"""Whether all who compute a network's codes agree, and where they first do not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.qnet import QuantizedNetwork
from exporters.reference import Codes, run_reference
from exporters.runtime import tensors_onnx

ONNXRUNTIME = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor in which a source differs from the reference.

    layer: what writes the tensor; None for the image. differing, total: codes. largest: by how many codes at most.
    position: of the first differing code: image, channel, y, x, or image, feature. expected: the reference's code
    there, got: the source's.
    """

    source: str
    tensor: str
    layer: str | None
    differing: int
    total: int
    largest: int
    position: tuple[int, ...]
    expected: int
    got: int

    def __str__(self) -> str:
        axes = ("image", "channel", "y", "x") if len(self.position) == 4 else ("image", "feature")
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, self.position, strict=True))
        return (
            f"{self.source}: tensor {self.tensor} differs in {self.differing} of {self.total} codes, by up to "
            f"{self.largest}; first at {where}: {self.got} instead of {self.expected}"
        )


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Outcome of a comparison. compared: number of tensors by source. differences: in the network's order."""

    network: str
    images: int
    compared: dict[str, int]
    differences: tuple[Difference, ...] = field(default=())

    @property
    def is_equal(self) -> bool:
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The first tensor, in the network's order, in which any source differs."""
        return self.differences[0] if self.differences else None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "is_equal": self.is_equal}

    def __str__(self) -> str:
        sources = ", ".join(f"{source} ({count} tensors)" for source, count in self.compared.items())
        if self.first is None:
            return f"{self.network}: no code differs over {self.images} images between the reference and {sources}"
        return f"{self.network}, {self.images} images: {self.first}"


def parity(
    net: QuantizedNetwork,
    path: str | os.PathLike[str] | None,
    images: NDArray[np.float32],
    extra: Mapping[str, Mapping[str, Codes]] | None = None,
    *,
    threads: int = 1,
) -> ParityReport:
    """Compare the NumPy reference with onnxruntime's optimised graph of the file at `path` and with `extra`.

    path: None to compare with `extra` alone. images: (n, channels, height, width) float32. extra: codes by source
    and tensor name; a source may have only some of the tensors.
    Raises: ExportError if a source names other tensors or has other shapes than the network.
    """
    reference = run_reference(net, images)
    sources: dict[str, Mapping[str, Codes]] = {}
    if path is not None:
        sources[ONNXRUNTIME] = tensors_onnx(path, images, threads)
        if missing := reference.keys() - sources[ONNXRUNTIME].keys():
            raise ExportError(f"{os.fspath(path)} has no tensor {min(missing)!r}; it holds another network")
    sources |= extra or {}
    for source, tensors in sources.items():
        if not tensors:
            raise ExportError(f"{source} gives no tensors to compare")
        for name, codes in tensors.items():
            if name not in reference:
                raise ExportError(f"{source} gives tensor {name!r}, which network {net.name} does not have")
            if codes.shape != reference[name].shape:
                raise ExportError(f"{source}: tensor {name} is {codes.shape}, should be {reference[name].shape}")
    writers = {layer.output.name: layer.name for layer in net.layers}
    differences = [
        difference
        for name in net.tensors
        for source, tensors in sources.items()
        if name in tensors
        and (difference := compare(source, name, writers.get(name), reference[name], tensors[name])) is not None
    ]
    compared = {source: len(tensors) for source, tensors in sources.items()}
    return ParityReport(net.name, len(images), compared, tuple(differences))


def compare(source: str, tensor: str, layer: str | None, expected: Codes, got: Codes) -> Difference | None:
    """How `got` differs from `expected`, or None where it does not."""
    distance = np.abs(got.astype(np.int64) - expected.astype(np.int64))
    differing = int(np.count_nonzero(distance))
    if not differing:
        return None
    position = tuple(int(index) for index in np.unravel_index(np.argmax(distance > 0), distance.shape))
    return Difference(
        source=source,
        tensor=tensor,
        layer=layer,
        differing=differing,
        total=distance.size,
        largest=int(distance.max()),
        position=position,
        expected=int(expected[position]),
        got=int(got[position]),
    )
