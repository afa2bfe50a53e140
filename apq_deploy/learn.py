"""The steps that make a model folder: train the supernet, collect points, fit the predictors, refine them."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apq_deploy.errors import UserError
from apq_deploy.model import ModelFolder, Samples
from apq_deploy.predictor.choose import choose
from apq_deploy.predictor.collect import CollectSettings, collect
from apq_deploy.predictor.fit import (
    FEWEST_POINTS,
    FitSettings,
    fit_correction,
    fit_float,
    fit_quantized,
    mean_of,
    score,
)
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.store import GROUP, HELD_OUT_EVERY, KINDS, Kind, Points, PointStore
from apq_deploy.progress import cpu_seconds
from apq_deploy.search.costs import SpaceCosts
from apq_deploy.space import Genes, SearchSpace
from apq_deploy.supernet.data import DataSplits, ImageSet, load_data, spread, whole
from apq_deploy.supernet.measure import measure_supernet
from apq_deploy.supernet.ranks import ALONE, Ranks
from apq_deploy.supernet.train import TrainSettings, calibration_batches, train_supernet
from apq_deploy.workers import Processes, Workers

SAMPLE_IMAGES = 2000
RANDOM_SUBNETS = 50
FEWEST_HELD_OUT = 2
DEVICES = ("cpu", "cuda")
FEWEST_QUANTIZED = GROUP * HELD_OUT_EVERY


def check_device(device: str) -> None:
    """Nothing, if torch can compute on `device`.

    Raises: UserError otherwise.
    """
    if device.partition(":")[0] not in DEVICES:
        raise UserError(f"expected a device out of {', '.join(DEVICES)}, got {device!r}")
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
        network, spent = train_supernet(space, splits.train, folder.path, settings, own, ranks)
        elsewhere_s = ranks.total(0.0 if ranks.is_first else cpu_seconds(), own)
    if not ranks.is_first:
        return {}
    recorded = folder.recorded("train")
    if not spent.steps and folder.samples.is_file() and recorded.get("settings") == asdict(settings):
        return recorded["test_accuracy_percent"]  # an earlier call had ended it
    sample_images(splits, settings.seed).save(folder.samples)
    calibration = calibration_batches(splits.train, settings.seed, device)
    metrics = measure_supernet(network, whole(splits.test), calibration, RANDOM_SUBNETS, settings.seed)
    facts = {
        **_command(splits),
        "settings": asdict(settings),
        "processes": ranks.count,
        "seconds": round(spent.seconds, 1),
        "test_accuracy_percent": metrics,
    }
    folder.record(space, "train", facts, spent.earlier_cpu_seconds + cpu_seconds() + elsewhere_s)
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
    found = {kind: store.points(kind) for kind in KINDS}
    store.close()
    summary = {kind: _describe(points) for kind, points in found.items()}
    on_the_way = np.isin(found["calibrated"].index, found["quantized"].index)  # to a quantized point
    seconds = [found["float"].seconds, found["quantized"].seconds, found["calibrated"].seconds[~on_the_way]]
    facts = {**_command(load_data(space, data)), "settings": asdict(settings), **summary}
    folder.record(space, "collect", facts, float(np.concatenate(seconds).sum()))
    return summary


def fit_model(
    space: SearchSpace, folder: ModelFolder, settings: FitSettings, n_chosen: int | None = None
) -> dict[str, dict[str, float]]:
    """Scores of every predictor on held-out points; the full-precision and the transferred one are in `folder`.

    The transferred one is corrected by calibrated points, where there are enough, then by quantized and chosen ones;
    its mean with one from scratch is kept. Beside it stand the paper's transfer, no transfer, and the full-precision
    predictor alone. Of chosen points the first `n_chosen` count, or all.

    Raises: UserError if there are too few points of a kind.
    """
    used_before = cpu_seconds()
    store = PointStore(folder.points, space)
    float_points, quantized_points, calibrated_points, chosen_points = (store.points(kind) for kind in KINDS)
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
    chosen_genes, chosen_accuracy = chosen_points.genes[:n_chosen], chosen_points.accuracy[:n_chosen]
    genes = np.concatenate([dear.genes, chosen_genes])
    accuracy = np.concatenate([dear.accuracy, chosen_accuracy])
    base = fit_float(space, cheap.genes, cheap.accuracy, settings)
    source = base
    if len(middle) >= FEWEST_POINTS:
        source = fit_correction(space, middle.genes, middle.accuracy, base)
    scratch = fit_quantized(space, genes, accuracy, settings, None)
    transferred = mean_of(fit_correction(space, genes, accuracy, source), scratch)
    as_in_the_paper = fit_quantized(space, genes, accuracy, settings, base)
    features = space.encode(dear_out.genes)
    architecture = space.architecture_features
    predictions = {
        "quantized, transferred": transferred(features),
        "quantized, transferred as in the paper": as_in_the_paper(features),
        "quantized, from scratch": scratch(features),
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
        "trained_on": {
            "float": len(cheap),
            "calibrated": len(middle),
            "quantized": len(dear),
            "chosen": len(chosen_genes),
        },
        "held_out_scores": scores,
    }
    folder.record(space, "fit", facts, cpu_seconds() - used_before)
    return scores


def refine_model(
    costs: SpaceCosts,
    data: Path,
    folder: ModelFolder,
    settings: FitSettings,
    points: int,
    rounds: int,
    workers: Workers,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """What each round found, of at least `rounds`; its points and the predictor fitted to them too are in `folder`.

    A round measures `points` networks that a search would choose by now on the hardware of `costs`, and fits anew. It
    tells what was predicted of them before and what was measured. Rounds that `folder` has had already count, and one
    that was stopped goes on.

    Raises: UserError if there are no points to begin with, or the data are others than those of `collect`.
    """
    if points < 1 or rounds < 1:
        raise UserError(f"expected at least one point and one round, got {points} and {rounds}")
    if isinstance(workers, Processes):
        check_device(device)
    space, splits = costs.space, load_data(costs.space, data)
    collected, chosen = _collected(folder, space)
    told: list[dict[str, float]] = folder.recorded("refine").get("by_round", [])
    for number in range(len(told), rounds):
        used_before = cpu_seconds() + workers.elsewhere_s
        first = int(sum(each["points"] for each in told))
        fit_model(space, folder, settings, first)
        predictor = Predictor.load(folder.predictor, space)
        genes = choose(costs, predictor, points, chosen.genes[:first], seed=number)
        seconds = float(chosen.seconds[first:].sum())  # of a round that was stopped
        numbered = _missing(genes, chosen, first, points)
        if not numbered and len(chosen) == first:
            print(f"round {number + 1}: every network on the fronts is measured already", file=sys.stderr)
            break
        collect(space, folder.supernet, data, folder.points, {}, collected, workers, device, numbered).close()
        _, chosen = _collected(folder, space)
        predicted, measured = predictor(space.encode(chosen.genes[first:])), chosen.accuracy[first:]
        facts = {
            "points": len(measured),
            "predicted_percent": 100 * float(predicted.mean()),
            "measured_percent": 100 * float(measured.mean()),
            "mean_absolute_error_points": 100 * float(np.abs(predicted - measured).mean()),
        }
        told = [*told, facts]
        record = {**_command(splits), "settings": asdict(collected), "hardware": costs.hardware, "by_round": told}
        seconds += folder.recorded("refine").get("cpu_seconds", 0.0)
        folder.record(space, "refine", record, seconds + cpu_seconds() + workers.elsewhere_s - used_before)
    fit_model(space, folder, settings)
    return told


def _collected(folder: ModelFolder, space: SearchSpace) -> tuple[CollectSettings, Points]:
    """How the points of a folder were collected, and the chosen ones among them."""
    store = PointStore(folder.points, space)
    found = store.points("chosen")
    store.close()
    try:
        return CollectSettings(**{field.name: store.settings[field.name] for field in fields(CollectSettings)}), found
    except KeyError as error:
        raise UserError(f"{folder.points} does not say with which {error} it was collected; collect anew") from None


def _missing(genes: Genes, chosen: Points, first: int, points: int) -> dict[int, Genes]:
    """What a round of `points` has still to measure of `genes`: free numbers go to those not measured yet."""
    taken = set(chosen.index.tolist())
    measured = {genome.tobytes() for genome in chosen.genes[first:]}
    free = (number for number in count(first) if number not in taken)
    left = [genome for genome in genes if genome.tobytes() not in measured]
    return dict(zip(free, left[: max(0, points - len(measured))], strict=False))


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
        option, is_joined, value = word.rpartition("=")
        words.append(f"{option}{is_joined}DIR" if Path(value).is_absolute() else word)
    return shlex.join(words)
