"""Commands that make a model: train, collect, fit, refine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apq_deploy.commands.options import (
    DataOption,
    DeviceOption,
    HardwareOption,
    JsonOption,
    ModelOption,
    RayOption,
    SeedOption,
    SpaceOption,
    WorkersOption,
    show,
)

if TYPE_CHECKING:
    from apq_deploy.workers import Workers


def train(
    data: DataOption,
    space: SpaceOption = "fashion",
    model: ModelOption = None,
    largest_steps: Annotated[int, typer.Option(min=1, help="Steps on the largest network.")] = 3000,
    kernel_steps: Annotated[int, typer.Option(min=0, help="Steps with elastic kernel sizes.")] = 800,
    depth_steps: Annotated[int, typer.Option(min=0, help="Steps with elastic depths as well.")] = 1000,
    width_steps: Annotated[int, typer.Option(min=0, help="Steps with elastic widths as well.")] = 2400,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step, of all processes together.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak rate on the largest network.")] = 4e-3,
    shrinking: Annotated[
        bool,
        typer.Option(
            "--shrinking/--plain",
            help="Progressive shrinking, or subnets of the whole space from the first step on, for as many steps.",
        ),
    ] = True,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Train a supernet; goes on where it was stopped. On more processes with torchrun."""
    from contextlib import nullcontext

    from apq_deploy.files import locked
    from apq_deploy.learn import train_model
    from apq_deploy.model import ModelFolder
    from apq_deploy.space import SearchSpace
    from apq_deploy.supernet.ranks import Ranks
    from apq_deploy.supernet.train import TrainSettings
    from apq_deploy.text import table

    chosen = SearchSpace.load(space)
    folder = ModelFolder(_own_folder(chosen.name, model))
    settings = TrainSettings(
        largest_steps,
        kernel_steps,
        depth_steps,
        width_steps,
        batch_size,
        learning_rate=learning_rate,
        shrinking_learning_rate=learning_rate / 2,
        shrinking=shrinking,
        seed=seed,
    )
    ranks = Ranks.of_torchrun()
    with locked(folder.path, wait=False) if ranks.is_first else nullcontext():
        metrics = train_model(chosen, data, folder, settings, device, ranks)
    if not ranks.is_first:
        return
    rows = [(name.replace("_", " "), f"{value:.2f}") for name, value in metrics.items()]
    show(metrics, f"test accuracy, %\n{table(rows)}\n\nsupernet: {folder.supernet}", as_json)


def collect(
    data: DataOption,
    space: SpaceOption = "fashion",
    model: ModelOption = None,
    float_points: Annotated[int, typer.Option(min=0, help="Full-precision points, by evaluation only.")] = 1200,
    quantized_points: Annotated[int, typer.Option(min=0, help="Quantized points, after a short fine-tuning.")] = 400,
    calibrated_points: Annotated[
        int, typer.Option(min=0, help="Quantized points without fine-tuning; every fine-tuned one brings its own.")
    ] = 0,
    finetune_steps: Annotated[int, typer.Option(min=0, help="Fine-tuning steps before a quantized label.")] = 20,
    held_out_images: Annotated[
        int, typer.Option(min=1, help="Held-out training images that a label is measured on.")
    ] = 10_000,
    workers: WorkersOption = 1,
    ray: RayOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure the predictor's points; goes on where it was stopped."""
    from apq_deploy.files import locked
    from apq_deploy.learn import collect_model
    from apq_deploy.model import ModelFolder
    from apq_deploy.predictor.collect import CollectSettings
    from apq_deploy.space import SearchSpace
    from apq_deploy.text import table

    chosen = SearchSpace.load(space)
    folder = ModelFolder(_own_folder(chosen.name, model))
    settings = CollectSettings(finetune_steps, held_out_images=held_out_images, seed=seed)
    counts = {"float": float_points, "quantized": quantized_points, "calibrated": calibrated_points}
    who = _workers(workers, ray, device)
    with locked(folder.path, wait=False):
        summary = collect_model(chosen, data, folder, counts, settings, who, device)  # type: ignore[arg-type]
    rows = [
        (kind, facts["points"], *(f"{facts[k]:.2f}" for k in ("mean_percent", "std_percent", "seconds_per_point")))
        for kind, facts in summary.items()
        if facts["points"]
    ]
    show(summary, table(rows, ("points", "number", "mean %", "std", "s per point")), as_json)


def fit(
    space: SpaceOption = "fashion",
    model: ModelOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit the full-precision predictor and transfer it to quantized networks."""
    from apq_deploy.files import locked
    from apq_deploy.learn import fit_model
    from apq_deploy.model import ModelFolder
    from apq_deploy.predictor.fit import FitSettings
    from apq_deploy.space import SearchSpace
    from apq_deploy.text import table

    chosen = SearchSpace.load(space)
    folder = ModelFolder(_own_folder(chosen.name, model))
    with locked(folder.path, wait=False):
        scores = fit_model(chosen, folder, FitSettings(seed=seed))
    rows = [
        (
            name,
            int(s["points"]),
            f"{s['pairwise_accuracy']:.3f}",
            f"{s['kendall_tau']:.3f}",
            f"{s['mean_absolute_error_points']:.2f}",
        )
        for name, s in scores.items()
    ]
    show(scores, table(rows, ("predictor", "held-out points", "pairwise", "tau", "error, points")), as_json)


def refine(
    data: DataOption,
    space: SpaceOption = "fashion",
    model: ModelOption = None,
    hardware: HardwareOption = "bitfusion",
    points: Annotated[int, typer.Option(min=1, help="Points of a round.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in all, those of earlier calls among them.")] = 3,
    workers: WorkersOption = 1,
    ray: RayOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure what a search would choose, and fit anew, in rounds; goes on where it was stopped."""
    from apq_deploy.files import locked
    from apq_deploy.learn import refine_model
    from apq_deploy.model import ModelFolder
    from apq_deploy.predictor.fit import FitSettings
    from apq_deploy.search import SpaceCosts
    from apq_deploy.space import SearchSpace
    from apq_deploy.text import table
    from hwmodels import load_hardware

    chosen = SearchSpace.load(space)
    folder = ModelFolder(_own_folder(chosen.name, model))
    costs = SpaceCosts.from_hardware(chosen, load_hardware(hardware))
    who = _workers(workers, ray, device)
    with locked(folder.path, wait=False):
        told = refine_model(costs, data, folder, FitSettings(seed=seed), points, rounds, who, device)
    rows = [
        (str(number), str(each["points"]), *(f"{value:.2f}" for name, value in each.items() if name != "points"))
        for number, each in enumerate(told, start=1)
    ]
    show(told, table(rows, ("round", "points", "predicted %", "measured %", "mean error, points")), as_json)


def _workers(workers: int, ray: str | None, device: str) -> Workers:
    """Who measures the points: processes of this machine, or those of a Ray cluster."""
    from apq_deploy.cluster import RayWorkers
    from apq_deploy.workers import Processes

    return Processes(workers) if ray is None else RayWorkers(ray, workers, gpu=device != "cpu")


def _own_folder(space: str, model: Path | None) -> Path:
    """Where training writes: never the embedded model."""
    from apq_deploy.model import DEFAULT_FOLDER

    return model if model is not None else Path(DEFAULT_FOLDER) / space
