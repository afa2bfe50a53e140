"""The front of accuracy against costs. Source: NSGA-II (Deb et al., IEEE TEC 6(2), 2002), sorting by pymoo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pymoo.indicators.hv import Hypervolume
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from threadpoolctl import threadpool_limits

from apq_deploy.errors import UserError
from apq_deploy.search.accuracy import Accuracy, Evaluator
from apq_deploy.search.budget import Budget
from apq_deploy.search.choices import Choices
from apq_deploy.search.costs import Metric, SpaceCosts
from apq_deploy.search.evolution import Brood
from apq_deploy.search.front import Front
from apq_deploy.search.menu import Menu
from apq_deploy.search.starts import spread_starts
from apq_deploy.search.watch import Evolution, Progress, Watch
from apq_deploy.space import Genes

# Chance that a child has two parents (Deb et al.), and genes of it drawn anew on average.
CROSSED, CHANGED_GENES = 0.9, 2.0
# Networks that the front holds at most, and how often on the way its hypervolume is taken.
ARCHIVE, CHECKPOINTS = 1000, 20

Losses: TypeAlias = NDArray[np.float64]


@threadpool_limits.wrap(limits=1, user_api="blas")  # a predictor's matrices are small: threads wait for each other
def pareto_search(
    costs: SpaceCosts,
    accuracy: Accuracy,
    objectives: Sequence[str] = ("latency_ms",),
    budget: Budget | None = None,
    *,
    seed: int = 0,
    freeze: Sequence[str] = (),
    bits: int | None = None,
    network: Genes | None = None,
    reference_accuracy: float | None = None,
    settings: Evolution | None = None,
    progress: Progress | None = None,
) -> Front:
    """All networks met that no other one met beats in predicted accuracy and in every objective, within the budget.

    NSGA-II on genomes: binary tournaments by rank and crowding distance, crossing block by block, mutation gene by
    gene; children over the budget are dropped and drawn anew. The first population is spread over the range of the
    objectives. `reference_accuracy` is where the hypervolume begins, by default the worst of the first population:
    give it to compare runs. Of `settings`, `population`, `generations` and `patience` are used: patience counts
    generations without a more accurate network.

    Raises: UnreachableBudget if no network meets the budget; UserError for objectives that the table does not hold.
    """
    budget, settings = budget or Budget(), settings or Evolution()
    columns = [costs.column(name) for name in objectives]
    if not columns or len(set(columns)) != len(columns):
        raise UserError(f"expected one or more different costs as objectives, got {list(objectives)}")
    names: tuple[Metric, ...] = tuple(costs.metrics[column] for column in columns)
    space = costs.space
    menu = Menu.of(costs, Choices.of(space, freeze=freeze, bits=bits, network=network, widths=costs.widths))
    rng = np.random.default_rng(seed)
    brood = Brood(menu, budget.bounds(costs), rng)
    evaluate = Evaluator(space, accuracy)
    watch = Watch(menu, evaluate, settings, progress)

    def losses(genes: Genes, scores: NDArray[np.float64]) -> Losses:
        return np.column_stack([-scores, costs.totals(genes)[:, columns]])

    genes = brood.seen.fresh(spread_starts(menu, budget, names, settings.population, rng))
    scores = evaluate(genes)
    watch.note(genes, scores)
    reference = _reference(
        menu, names, budget, float(scores.min()) if reference_accuracy is None else reference_accuracy
    )
    archive, archive_scores = _thinned(genes, scores, losses(genes, scores))
    checkpoints, volumes = [0], [hypervolume(losses(archive, archive_scores), reference)]
    every = max(1, settings.generations // CHECKPOINTS)
    while watch.reason is None:
        rank, crowding = rank_and_crowding(losses(genes, scores))
        children = brood.children("bred", settings.population, _breeder(menu, genes, rank, crowding, rng))
        children_scores = evaluate(children)
        genes, scores = np.concatenate([genes, children]), np.concatenate([scores, children_scores])
        kept = survivors(losses(genes, scores), settings.population)
        genes, scores = genes[kept], scores[kept]
        archive = np.concatenate([archive, children])
        archive_scores = np.concatenate([archive_scores, children_scores])
        archive, archive_scores = _thinned(archive, archive_scores, losses(archive, archive_scores))
        watch.note(genes, scores)
        generation = checkpoints[-1] + every
        if watch.reason is not None or watch.generation == generation:
            checkpoints.append(watch.generation)
            volumes.append(hypervolume(losses(archive, archive_scores), reference))
    outcome = watch.outcome(archive, archive_scores)
    order = np.argsort(costs.totals(archive)[:, columns[0]], kind="stable")
    archive, archive_scores = space.canonical(archive[order]), archive_scores[order]
    return Front(
        space=space,
        objectives=names,
        budget=budget,
        scope=costs.scope,
        hardware=costs.hardware,
        hardware_sha256=costs.hardware_sha256,
        settings=asdict(settings),
        seed=seed,
        freeze=tuple(freeze),
        bits=bits,
        genes=archive,
        accuracy=archive_scores,
        costs=costs.gather(archive),
        reference=tuple(reference[0].tolist()),
        hypervolume=np.array(volumes),
        checkpoints=np.array(checkpoints),
        history=outcome.history,
        stop_reason=outcome.stop_reason,
    )


def rank_and_crowding(losses: Losses) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number of the front of each point, 0 the best, and its crowding distance within that front, (n,) each."""
    rank, crowding = np.zeros(len(losses), np.int64), np.zeros(len(losses))
    for number, front in enumerate(NonDominatedSorting().do(losses)):
        rank[front] = number
        crowding[front] = crowding_distance(losses[front])
    return rank, crowding


def crowding_distance(losses: Losses) -> NDArray[np.float64]:
    """How much room a point has between its neighbours in every objective, infinite at the ends, (n,).

    Source: Deb et al., section III-B.
    """
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        extent = ordered[-1] - ordered[0]
        distance[order[[0, -1]]] = np.inf
        if extent > 0.0:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
    return distance


def survivors(losses: Losses, n: int) -> NDArray[np.int64]:
    """Indices of the n best points by front, then by crowding distance."""
    rank, crowding = rank_and_crowding(losses)
    return np.lexsort((-crowding, rank))[:n]


def hypervolume(losses: Losses, reference: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
    """Volume between points and the reference that the points dominate; see `Front.reference` for its units.

    `reference`: the worst losses, (n_objectives,), and what one unit of each loss is, (n_objectives,).
    """
    worst, unit = reference
    inside = losses[(losses < worst).all(axis=1)]
    volume = Hypervolume(ref_point=np.zeros(len(worst)))((inside - worst) / unit) if len(inside) else None
    return float(volume or 0.0)


def _reference(
    menu: Menu, names: Sequence[str], budget: Budget, accuracy: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The given accuracy and the most that each cost can be within the budget; costs count as shares of their range."""
    costs = menu.costs
    least = np.array([costs.one(name, menu.minimum(name)) for name in names])
    most = np.array([costs.one(name, menu.maximum(name)) for name in names])
    bounds = budget.bounds(costs)[[costs.column(name) for name in names]]
    most = np.minimum(most, bounds)
    return np.append(-accuracy, most), np.append(1.0, np.maximum(most - least, 1e-12))


def _thinned(genes: Genes, scores: NDArray[np.float64], losses: Losses) -> tuple[Genes, NDArray[np.float64]]:
    """The points that no other dominates; beyond ARCHIVE the most crowded are dropped."""
    front = np.sort(NonDominatedSorting().do(losses, only_non_dominated_front=True))
    if len(front) > ARCHIVE:
        front = front[np.sort(np.argsort(-crowding_distance(losses[front]), kind="stable")[:ARCHIVE])]
    return genes[front], scores[front]


def _breeder(
    menu: Menu,
    genes: Genes,
    rank: NDArray[np.int64],
    crowding: NDArray[np.float64],
    rng: np.random.Generator,
) -> Callable[[int], Genes]:
    """Draws children of parents that won a binary tournament."""
    place = np.empty(len(genes), np.int64)
    place[np.lexsort((-crowding, rank))] = np.arange(len(genes))

    def winners(count: int) -> Genes:
        pairs = rng.integers(0, len(genes), (2, count))
        return genes[np.where(place[pairs[0]] <= place[pairs[1]], pairs[0], pairs[1])]

    def draw(count: int) -> Genes:
        mothers, fathers = winners(count), winners(count)
        crossed = menu.choices.cross(mothers, fathers, rng)
        children = np.where((rng.random(count) < CROSSED)[:, None], crossed, mothers)
        return menu.choices.mutate_genes(children, CHANGED_GENES, rng)

    return draw
