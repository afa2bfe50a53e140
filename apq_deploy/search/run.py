"""One search: from a space's costs, a predictor and a budget to the chosen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal, TypeAlias, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from apq_deploy.errors import UserError
from apq_deploy.search.accuracy import Accuracy, Evaluator
from apq_deploy.search.budget import Budget
from apq_deploy.search.choices import Choices
from apq_deploy.search.costs import Metric, Scope, SpaceCosts
from apq_deploy.search.evolution import evolve
from apq_deploy.search.islands import evolve_on_islands
from apq_deploy.search.menu import Menu
from apq_deploy.search.result import SearchResult, space_definition
from apq_deploy.search.watch import Evolution, Outcome, Progress
from apq_deploy.space import Genes

Algorithm: TypeAlias = Literal["apq", "islands"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
# `apq` is the paper's evolution; `islands` finds better networks in as many evaluations (docs/search.md).
DEFAULT_ALGORITHM: Algorithm = "islands"

_Search = Callable[[Menu, Budget, Evaluator, Evolution, np.random.Generator, Progress | None], Outcome]
_SEARCHES: Mapping[str, _Search] = {"apq": evolve, "islands": evolve_on_islands}


def search(
    costs: SpaceCosts,
    accuracy: Accuracy,
    budget: Budget,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    seed: int = 0,
    freeze: Sequence[str] = (),
    bits: int | None = None,
    network: Genes | None = None,
    settings: Evolution | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """The network of the best predicted accuracy within the budget, the costs summed in the scope of `costs`.

    `accuracy` maps features (n, n_features) to predicted accuracies (n,), or scores genomes itself (`GeneScorer`).
    `freeze`, `bits` and `network` hold choices fixed, see `Choices.of`. The same seed gives the same result.

    Raises: UnreachableBudget if no network meets the budget; UserError for what cannot be searched.
    """
    if algorithm not in _SEARCHES:
        raise UserError(f"unknown algorithm {algorithm!r}; known are {', '.join(_SEARCHES)}")
    if seed < 0:
        raise UserError(f"expected a seed of 0 or more, got {seed}")
    settings = settings or Evolution()
    space = costs.space
    menu = Menu.of(costs, Choices.of(space, freeze=freeze, bits=bits, network=network, widths=costs.widths))
    rng = np.random.default_rng(seed)
    # a predictor's matrices are small: more threads than one only wait for each other
    with threadpool_limits(1, "blas"):
        outcome = _SEARCHES[algorithm](menu, budget, Evaluator(space, accuracy), settings, rng, progress)
    genome = space.canonical(outcome.best[None])[0]
    return SearchResult(
        space=space.name,
        definition=space_definition(space),
        algorithm=algorithm,
        settings=asdict(settings),
        seed=seed,
        budget=budget,
        scope=costs.scope,
        hardware=costs.hardware,
        hardware_sha256=costs.hardware_sha256,
        freeze=tuple(freeze),
        bits=bits,
        genome=tuple(genome.tolist()),
        arch=space.decode(genome),
        predicted_accuracy=float(outcome.scores[0]),
        costs=costs_in_all_scopes(costs, genome),
        history=outcome.history,
        stop_reason=outcome.stop_reason,
    )


def costs_in_all_scopes(costs: SpaceCosts, genome: Genes) -> dict[Scope, dict[Metric, float]]:
    """What one network costs, by scope and metric."""
    return {scope: costs.in_scope(scope).of(genome) for scope in costs.scopes}
