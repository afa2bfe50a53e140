"""Collection of the predictor's points: full precision by evaluation alone, quantized after a short fine-tuning.

A calibrated point is a quantized one before its fine-tuning: a label at less than half the price that ranks networks
nearly alike. Source: APQ (CVPR 2020), sections 3.2 and 4.1; the calibrated points are an addition. What is measured
depends on the seed and the point's number alone, so a collection goes on where it was stopped, in any order and by any
number of workers.
"""

from __future__ import annotations

import copy
import hashlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from apq_deploy.arch import Arch
from apq_deploy.errors import UserError
from apq_deploy.predictor.store import PLANNED, Kind, PointStore, planned_genome
from apq_deploy.progress import progress
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.finetune import FinetuneSettings, finetune
from apq_deploy.quantize.network import QuantizedSubnet, accuracy
from apq_deploy.space import Genes, SearchSpace
from apq_deploy.supernet.data import DataSplits, Subset, fingerprint, load_data, whole
from apq_deploy.supernet.network import Supernet, load_supernet
from apq_deploy.supernet.subnet import Subnet, reestimate_batch_norm
from apq_deploy.supernet.train import calibration_batches
from apq_deploy.workers import Processes, Workers

# glibc gives large blocks back to the system at once; workers that keep theirs take a third less time per point.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
}
CLIP_IMAGES = 256
"""Images whose activations set the clips of a point."""


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """What every point depends on. `finetune_steps` of `batch_size` images precede a quantized label."""

    finetune_steps: int = 20
    batch_size: int = 128
    held_out_images: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.finetune_steps < 0 or self.batch_size < 2 or self.held_out_images < 1:
            raise UserError(
                "expected finetune_steps >= 0, batch_size >= 2 and held_out_images >= 1, got "
                f"{self.finetune_steps}, {self.batch_size} and {self.held_out_images}"
            )


@dataclass(frozen=True, eq=False)
class Measured:
    """One point. genome: (n_genes,); accuracy in [0, 1]; seconds: what this point alone would have taken."""

    kind: Kind
    number: int
    genome: Genes
    accuracy: float
    seconds: float


class Laboratory:
    """Measures points: the supernet, the calibration batches and the held-out images, loaded once."""

    def __init__(self, network: Supernet, data: DataSplits, settings: CollectSettings, device: str = "cpu") -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings = settings
        self.train = data.train
        self.held_out = whole(data.held_out, min(settings.held_out_images, len(data.held_out)))
        self.calibration = calibration_batches(data.train, settings.seed, device)

    def subnet(self, arch: Arch) -> Subnet:
        """A subnet with its own batch-norm statistics."""
        subnet = self.network.extract(arch).eval().to(memory_format=torch.channels_last)
        reestimate_batch_norm(subnet, self.calibration)
        return subnet

    def accuracy(self, network: nn.Module) -> float:
        """Accuracy on the held-out images."""
        return accuracy(network, self.held_out.pixels, self.held_out.classes)

    def measure(self, kind: Kind, number: int, genome: Genes) -> list[Measured]:
        """One point, its genome (n_genes,); with a quantized one comes the calibrated one on the way to it."""
        started = time.perf_counter()
        subnet = self.subnet(self.network.space.decode(genome))

        def measured(kind: Kind, network: nn.Module, before: float = 0.0) -> Measured:
            found = self.accuracy(network)
            return Measured(kind, number, genome, found, time.perf_counter() - started - before)

        if kind == "float":
            return [measured("float", subnet)]
        network = QuantizedSubnet(copy.deepcopy(subnet))
        calibrate(network, [self.calibration[0][:CLIP_IMAGES]])
        reestimate_batch_norm(network, self.calibration)
        evaluated = time.perf_counter()
        points = [] if kind == "chosen" else [measured("calibrated", network)]
        evaluated = time.perf_counter() - evaluated
        if kind != "calibrated":
            settings = FinetuneSettings(self.settings.finetune_steps, self.settings.batch_size, seed=number)
            self.finetune(network, subnet, settings)
            points.append(measured(kind, network, evaluated))
        return points

    def finetune(self, network: QuantizedSubnet, teacher: Subnet, settings: FinetuneSettings) -> None:
        """Fine-tune a calibrated network in place, then re-estimate its batch-norm statistics."""
        finetune(network, self.train, settings, teacher)
        reestimate_batch_norm(network, self.calibration)


def weights_sha256(network: Supernet) -> str:
    """Hash of the weights alone: the order of a file's header may differ from one writing to the next."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


@cache
def _laboratory(space: SearchSpace, supernet: Path, data: Path, settings: CollectSettings, device: str) -> Laboratory:
    """This worker's own laboratory, set up for its first point."""
    torch.set_num_threads(1)
    return Laboratory(load_supernet(space, supernet), load_data(space, data), settings, device)


_Setup = tuple[SearchSpace, Path, Path, CollectSettings, str]


_Identity = tuple[str, str, str]
"""Hash of the supernet, training images and held-out images."""


def _measure(identity: _Identity, setup: _Setup, kind: Kind, number: int, genome: Genes) -> list[Measured]:
    """A point, where the files that this worker finds by the same paths are the driver's."""
    found = _identity(setup)
    if found != identity:
        raise UserError(
            f"expected the supernet and the images of the driver on every machine, got others on {platform.node()}: "
            f"{found} where it has {identity}; use a file system that all machines see, or copy both folders"
        )
    return _laboratory(*setup).measure(kind, number, genome)


@cache
def _identity(setup: _Setup) -> _Identity:
    laboratory = _laboratory(*setup)
    return weights_sha256(laboratory.network), fingerprint(laboratory.train), fingerprint(laboratory.held_out)


def collect(
    space: SearchSpace,
    supernet: Path,
    data: Path,
    store_path: Path,
    counts: dict[Kind, int],
    settings: CollectSettings,
    workers: int | Workers = 1,
    device: str = "cpu",
    chosen: Mapping[int, Genes] | None = None,
) -> PointStore:
    """The store with at least `counts` points of each kind; points that are there already are not measured again.

    workers: who measures; a number means so many processes of this machine. The driver alone writes. chosen: genomes of
    chosen points by their numbers, which no plan knows.

    Raises: UserError for a supernet or data that cannot be used, or a store of another collection.
    """
    if isinstance(workers, int):
        workers = Processes(workers)
    digest = weights_sha256(load_supernet(space, supernet))  # a wrong file is an error before anything is written
    splits = load_data(space, data)
    held_out = Subset(splits.held_out, np.arange(min(settings.held_out_images, len(splits.held_out))))
    identity: _Identity = (digest, fingerprint(splits.train), fingerprint(held_out))
    about = dict(zip(("supernet", "training images", "held-out images"), identity, strict=True))
    store = PointStore(store_path, space, {**asdict(settings), **about})
    genomes = chosen or {}
    wanted: dict[Kind, set[int]] = {kind: set(range(counts.get(kind, 0))) - store.done(kind) for kind in PLANNED}
    wanted["calibrated"] -= wanted["quantized"]
    planned: list[tuple[Kind, int]] = [(kind, n) for kind in PLANNED for n in sorted(wanted[kind])]
    missing = [(*point, planned_genome(space, *point, settings.seed)) for point in planned]
    missing.extend(("chosen", n, genomes[n]) for n in sorted(genomes.keys() - store.done("chosen")))
    if not missing:
        return store
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)  # for the workers: this process has begun without
    setup: _Setup = (space, supernet.resolve(), data.resolve(), settings, device)
    tasks = [(identity, setup, *point) for point in missing]
    try:
        with progress("collect", len(missing)) as advance, workers:
            for done, (_, points) in enumerate(workers.results(_measure, tasks), start=1):
                for point in points:
                    store.add(point.kind, point.number, point.genome, point.accuracy, point.seconds)
                advance(done, f"{points[-1].kind} {100 * points[-1].accuracy:.2f}%")
    except BaseException:
        store.close()
        raise
    return store
