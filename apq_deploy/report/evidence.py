"""What the page shows beyond the records: costs layer by layer, a front, the predictor on points held out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from apq_deploy.errors import UserError
from apq_deploy.model import ModelFolder
from apq_deploy.predictor.model import Predictor, pairwise_accuracy
from apq_deploy.predictor.store import PointStore
from apq_deploy.report.records import Missing, RunRecords
from apq_deploy.search import Evolution, Explanation, Front, Metric, SearchResult, SpaceCosts, explain
from apq_deploy.workload import NamedLayer, Widths, arch_layers, space_entries
from hwmodels import CostTable, HardwareError, build_table, load_hardware

# A front for a picture: as many networks as the paper's search rates, a few seconds of work.
PAGE_FRONT = Evolution(population=100, generations=500)
# The same predictor gives the same accuracy but for the rounding of float32 sums.
SAME_ACCURACY = 1e-4


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer of the chosen network on the hardware; energy is None where nobody measured it."""

    named: NamedLayer
    latency_ms: float
    energy_mj: float | None


@dataclass(frozen=True, eq=False)
class HardwareCosts:
    """The chosen network on the hardware of the search: layer by layer, and what its choices cost."""

    table: CostTable
    space_costs: SpaceCosts
    layers: tuple[LayerCost, ...]
    explanation: Explanation


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Points that the predictor was not trained on, (n,) each: accuracies predicted and measured, in [0, 1]."""

    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    rmse: float
    pairs_ranked_right: float


def hardware_costs(result: SearchResult, hardware: str | None, cost_table: Path | None) -> HardwareCosts | Missing:
    """Costs of the chosen network, or why they cannot be had.

    hardware, cost_table: where the costs come from; by default the preset of the search's hardware.

    Raises: UserError or HardwareError for a hardware or a table that was named but cannot be used.
    """
    space = result.search_space()
    again = "apq-deploy report --hardware FILE.toml (or --table FILE.csv)"
    if cost_table is not None:
        table = CostTable.load(cost_table)
    else:
        try:
            model = load_hardware(result.hardware if hardware is None else hardware)
        except HardwareError:
            if hardware is not None:
                raise
            return Missing(f"The search used {result.hardware}, which is no preset.", again)
        table = build_table(model, space_entries(space, Widths.of(model.describe())))
    if table.sha256 != result.hardware_sha256:
        return Missing(
            f"The search used {result.hardware} with the hash {result.hardware_sha256[:12]}…, "
            f"this {table.hardware_name} has {table.sha256[:12]}…",
            again,
        )
    layers = []
    for named in arch_layers(space, result.arch):
        cost = table[named.layer, named.precision]
        layers.append(LayerCost(named, cost.latency_ms, cost.energy_mj))
    costs = SpaceCosts.from_table(space, table, result.scope)
    return HardwareCosts(table, costs, tuple(layers), explain(costs, result.genes))


def trained_predictor(records: RunRecords) -> Predictor | Missing:
    """The predictor that the search asked, or why it is not at hand."""
    if isinstance(records.model, Missing):
        return records.model
    space = records.search.search_space()
    try:
        predictor = Predictor.load(records.model.predictor, space)
    except UserError as error:
        return Missing(f"{error}.", f"apq-deploy fit --space {records.search.space}")
    rated = float(predictor(space.encode(records.search.genes[None]))[0])
    if abs(rated - records.search.predicted_accuracy) > SAME_ACCURACY:
        return Missing(
            f"The predictor at hand rates the network {100 * rated:.2f} %, the one of the search said "
            f"{100 * records.search.predicted_accuracy:.2f} %: it is another one. Name the search's own with --model."
        )
    return predictor


def front_of(
    records: RunRecords, predictor: Predictor | Missing, costs: HardwareCosts | Missing
) -> tuple[Front | Missing, bool]:
    """The front of the run folder, or one made for the page; and whether it was made for it."""
    if not isinstance(records.front, Missing):
        result, front = records.search, records.front
        if (front.space.name, front.hardware_sha256) != (result.space, result.hardware_sha256):
            return Missing("The front in the run folder is of another space or hardware than the search."), False
        return front, False
    for source in (predictor, costs):
        if isinstance(source, Missing):
            return Missing(f"{records.front.reason} {source.reason}", source.command), False
    assert not isinstance(predictor, Missing) and not isinstance(costs, Missing)
    from apq_deploy.search.pareto import pareto_search  # loads pymoo, which a front in the folder does not need

    with threadpool_limits(1, "blas"):
        front = pareto_search(
            costs.space_costs,
            predictor,
            (objective(records.search),),
            seed=records.search.seed,
            freeze=records.search.freeze,
            bits=records.search.bits,
            network=records.search.genes if records.search.freeze else None,
            settings=PAGE_FRONT,
        )
    return front, True


def objective(result: SearchResult) -> Metric:
    """The cost that accuracy is shown against: the first that the budget limits, else latency."""
    limited = list(result.budget.limits)
    return limited[0] if limited else "latency_ms"


def held_out(model: ModelFolder | Missing, predictor: Predictor | Missing, result: SearchResult) -> HeldOut | Missing:
    """The predictor on the quantized points held out of its training."""
    for source in (model, predictor):
        if isinstance(source, Missing):
            return source
    assert not isinstance(model, Missing) and not isinstance(predictor, Missing)
    if not model.points.is_file():
        return Missing(
            "The measured points do not lie beside the trained model.",
            f"apq-deploy collect --space {result.space} --data DIR",
        )
    space = result.search_space()
    with TemporaryDirectory() as folder:
        # A reader's page may not touch the database, which SQLite does when it opens one.
        copy = Path(folder) / model.points.name
        shutil.copy(model.points, copy)
        try:
            store = PointStore(copy, space)
        except UserError as error:
            return Missing(f"{error}.".replace(str(copy), model.points.name))
        points = store.points("quantized")
        store.close()
    out = points.held_out
    if out.sum() < 2:
        return Missing(
            f"Only {int(out.sum())} quantized points are held out.",
            f"apq-deploy collect --space {result.space} --data DIR",
        )
    predicted = predictor(space.encode(points.genes[out])).astype(np.float64)
    measured = points.accuracy[out]
    rmse = float(np.sqrt(((predicted - measured) ** 2).mean()))
    return HeldOut(predicted, measured, rmse, pairwise_accuracy(predicted, measured))
