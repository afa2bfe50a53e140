"""The three steps that make a model folder: train the supernet, collect points, fit the predictors."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apq_deploy.errors import UserError
from apq_deploy.model import ModelFolder, Samples
from apq_deploy.predictor.collect import CollectSettings, collect
from apq_deploy.predictor.fit import FEWEST_POINTS, FitSettings, fit_correction, fit_float, fit_quantized, score
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.store import GROUP, HELD_OUT_EVERY, KINDS, Kind, Points, PointStore
from apq_deploy.progress import cpu_seconds
from apq_deploy.space import SearchSpace
from apq_deploy.supernet.data import DataSplits, ImageSet, load_data, spread, whole
from apq_deploy.supernet.measure import measure_supernet
from apq_deploy.supernet.ranks import ALONE, Ranks
from apq_deploy.supernet.train import TrainSettings, calibration_batches, train_supernet
from apq_deploy.workers import Processes, Workers

SAMPLE_IMAGES = 2000
RANDOM_SUBNETS = 50
FEWEST_HELD_OUT = 2
FEWEST_QUANTIZED = GROUP * HELD_OUT_EVERY


def check_device(device: str) -> None:
    """Nothing, if torch can compute on `device`.

    Raises: UserError otherwise.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot compute on the device {device!r}: {str(error).splitlines()[0]}") from None


def train_model(
    space: SearchSpace,
    data: Path,
    folder: ModelFolder,
    settings: TrainSettings,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Accuracies of the trained supernet; its weights, sample images and provenance are in `folder`.

    Of several `ranks` the first one measures and writes; the others end with the training and return nothing.
    """
    check_device(device)
    splits = load_data(space, data)
    with ranks.joined(device) as own:
        network, seconds = train_supernet(space, splits.train, folder.path, settings, own, ranks)
        elsewhere_s = ranks.total(0.0 if ranks.is_first else cpu_seconds(), own)
    if not ranks.is_first:
        return {}
    sample_images(splits, settings.seed).save(folder.samples)
    calibration = calibration_batches(splits.train, settings.seed, device)
    metrics = measure_supernet(network, whole(splits.test), calibration, RANDOM_SUBNETS, settings.seed)
    facts = {
        **_command(splits),
        "settings": asdict(settings),
        "processes": ranks.count,
        "seconds": round(seconds, 1),
        "test_accuracy_percent": metrics,
    }
    folder.record(space, "train", facts, elsewhere_s)
    return metrics


def sample_images(splits: DataSplits, seed: int) -> Samples:
    """Images of the training part to calibrate on, and of the test part to measure on."""

    def part(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        chosen = spread(images, min(SAMPLE_IMAGES, len(images)), seed)
        return chosen.pixels.numpy(), chosen.classes.numpy()

    return Samples(*part(splits.train), *part(splits.test))


def collect_model(
    space: SearchSpace,
    data: Path,
    folder: ModelFolder,
    counts: dict[Kind, int],
    settings: CollectSettings,
    workers: Workers,
    device: str = "cpu",
) -> dict[str, Any]:
    """Numbers and accuracies of the points that are now in `folder`."""
    if isinstance(workers, Processes):
        check_device(device)
    if not folder.supernet.is_file():
        raise UserError(f"there is no supernet at {folder.supernet}; make one with `apq-deploy train`")
    store = collect(space, folder.supernet, data, folder.points, counts, settings, workers, device)
    summary: dict[str, Any] = {}
    for kind in KINDS:
        summary[kind] = _describe(store.points(kind))
    store.close()
    folder.record(
        space,
        "collect",
        {**_command(load_data(space, data)), "settings": asdict(settings), **summary},
        workers.elsewhere_s,
    )
    return summary


def fit_model(space: SearchSpace, folder: ModelFolder, settings: FitSettings) -> dict[str, dict[str, float]]:
    """Scores of every predictor on held-out points; the full-precision and the transferred one are in `folder`.

    The transferred one is corrected by calibrated points, where there are enough, and then by quantized ones. Beside it
    stand the paper's transfer, no transfer, and the full-precision predictor alone.

    Raises: UserError if there are too few points of a kind.
    """
    store = PointStore(folder.points, space)
    float_points, quantized_points, calibrated_points = (store.points(kind) for kind in KINDS)
    store.close()
    cheap, cheap_out = _parts(float_points)
    dear, dear_out = _parts(quantized_points)
    middle, _ = _parts(calibrated_points)
    for kind, held_out, found in (("full-precision", cheap_out, cheap), ("quantized", dear_out, dear)):
        if len(held_out) < FEWEST_HELD_OUT:
            raise UserError(
                f"expected some {kind} points that are held out from fitting, got {len(held_out)} beside {len(found)}; "
                f"collect at least {FEWEST_POINTS} full-precision and {FEWEST_QUANTIZED} quantized points"
            )
    base = fit_float(space, cheap.genes, cheap.accuracy, settings)
    source = base
    if len(middle) >= FEWEST_POINTS:
        source = fit_correction(space, middle.genes, middle.accuracy, base)
    transferred = fit_correction(space, dear.genes, dear.accuracy, source)

    def trained(start: Predictor | None) -> Predictor:
        return fit_quantized(space, dear.genes, dear.accuracy, settings, start)

    features = space.encode(dear_out.genes)
    architecture = space.architecture_features
    predictions = {
        "quantized, transferred": transferred(features),
        "quantized, transferred as in the paper": trained(base)(features),
        "quantized, from scratch": trained(None)(features),
        "quantized, full-precision predictor alone": base(features[:, architecture]),
    }
    scores = {
        "full precision": score(base(space.encode(cheap_out.genes)[:, architecture]), cheap_out.accuracy),
        **{name: score(predicted, dear_out.accuracy) for name, predicted in predictions.items()},
    }
    replace(base, metrics=scores["full precision"]).save(folder.float_predictor)
    replace(transferred, metrics=scores["quantized, transferred"]).save(folder.predictor)
    facts = {
        "command": _command_line(),
        "settings": asdict(settings),
        "trained_on": {"float": len(cheap), "calibrated": len(middle), "quantized": len(dear)},
        "held_out_scores": scores,
    }
    folder.record(space, "fit", facts)
    return scores


def _parts(points: Points) -> tuple[Points, Points]:
    """The points to train on and those held out."""

    def part(mask: np.ndarray) -> Points:
        return Points(*(getattr(points, name)[mask] for name in Points.__dataclass_fields__))

    return part(~points.held_out), part(points.held_out)


def _describe(points: Points) -> dict[str, float]:
    if not len(points):
        return {"points": 0}
    return {
        "points": len(points),
        "mean_percent": 100 * float(points.accuracy.mean()),
        "std_percent": 100 * float(points.accuracy.std()),
        "min_percent": 100 * float(points.accuracy.min()),
        "max_percent": 100 * float(points.accuracy.max()),
        "seconds_per_point": float(points.seconds.mean()),
    }


def _command(splits: DataSplits) -> dict[str, Any]:
    return {
        "command": _command_line(),
        "data": {
            "name": splits.name,
            "train": len(splits.train),
            "held_out": len(splits.held_out),
            "test": len(splits.test),
        },
    }


def _command_line() -> str:
    """The command as it was called, without the folders of this machine."""
    words = ["apq-deploy"]
    for word in sys.argv[1:]:
        words.append("DIR" if Path(word).is_absolute() else word)
    return shlex.join(words)
