"""Evolution on islands with local search: goes beyond the paper, and finds better networks in as many evaluations.

One to four evolutions run apart, each followed by local search on its best network; then their best networks breed
together, and local search ends it. Children are crossed and then changed gene by gene, where the paper draws whole
blocks anew, so that they stay near the budget. `docs/search.md` holds the measurements against the paper's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from apq_deploy.search.accuracy import Evaluator
from apq_deploy.search.budget import Budget
from apq_deploy.search.evolution import Brood
from apq_deploy.search.local import climb
from apq_deploy.search.menu import Menu
from apq_deploy.search.starts import feasible_starts
from apq_deploy.search.watch import Evolution, Outcome, Progress, Watch
from apq_deploy.space import Genes

# Islands: one per so many evaluations, four at most. Fewer evaluations on each do not pay.
PER_ISLAND, MOST_ISLANDS = 10_000, 4
# Times that all islands and their union are gone through, where a small space leaves evaluations over.
ROUNDS = 3
# Shares of all evaluations: on the islands, and of those (and of the rest) in evolution rather than local search.
ON_ISLANDS, EVOLVING, EVOLVING_TOGETHER = 0.75, 0.8, 0.7
# Genes of a child drawn anew on average, and the chance that it has two parents.
CHANGED_GENES, CROSSED = 2.0, 0.75
# A share of the wanted children; two generations with fewer have nearly gone through what is near them.
SCARCE = 0.1
# From this many evaluations on, twice the paper's parents keep a population diverse for longer.
LONG = 30_000


def evolve_on_islands(
    menu: Menu,
    budget: Budget,
    evaluate: Evaluator,
    settings: Evolution,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Outcome:
    """The best networks of every island and of their union, best first.

    `settings` are read as in the paper's evolution, which asks about as many networks in all; `mutants` and `crossed`
    are the children of a generation together.

    Raises: UnreachableBudget if no network meets the budget.
    """
    bounds = budget.bounds(menu.costs)
    islands = min(max(settings.evaluations // PER_ISLAND, 1), MOST_ISLANDS)
    if settings.evaluations >= LONG:
        settings = replace(settings, parents=2 * settings.parents)
    watch = Watch(menu, evaluate, settings, progress, by_generations=False)
    kept, kept_scores = np.zeros((0, menu.costs.space.n_genes), np.int8), np.zeros(0)
    for number in range(ROUNDS * (islands + 1)):
        island = number % (islands + 1)
        together = island == islands
        before, best_before = evaluate.evaluations, watch.best
        left = settings.evaluations - before
        # what an island leaves over goes to those that follow
        share = left if together else int(left * ON_ISLANDS / (islands - ON_ISLANDS * island))
        brood = Brood(menu, bounds, rng)
        genes, scores = kept, kept_scores
        if not together:
            genes = brood.seen.fresh(feasible_starts(menu, budget, settings.population, rng))[: max(left, 1)]
            scores = evaluate(genes)
            watch.note(genes, scores)
        end = before + int(share * (EVOLVING_TOGETHER if together else EVOLVING))
        genes, scores = _breed(brood, menu, evaluate, settings, genes, scores, end, watch, rng)
        rest = before + share - evaluate.evaluations
        best, score = climb(menu, bounds, evaluate, genes[0], float(scores[0]), rest, watch, rng)
        kept = np.concatenate([kept, best[None], genes[:1]])
        kept_scores = np.concatenate([kept_scores, [score], scores[:1]])
        if together and number > islands and watch.best <= best_before:
            watch.end("no better network on further islands")
        if watch.reason is not None:
            break
    watch.end(f"all islands done {ROUNDS} times")
    return watch.outcome(kept, kept_scores)


def _breed(
    brood: Brood,
    menu: Menu,
    evaluate: Evaluator,
    settings: Evolution,
    genes: Genes,
    scores: NDArray[np.float64],
    end: int,
    watch: Watch,
    rng: np.random.Generator,
) -> tuple[Genes, NDArray[np.float64]]:
    """The parents after evolving until `end` evaluations, best first."""
    choices = menu.choices

    def draw(count: int) -> Genes:
        mothers, fathers = genes[rng.integers(0, len(genes), (2, count))]
        crossed = np.where((rng.random(count) < CROSSED)[:, None], choices.cross(mothers, fathers, rng), mothers)
        return choices.mutate_genes(crossed, CHANGED_GENES, rng)

    barren = 0
    while True:
        order = np.argsort(-scores, kind="stable")[: settings.parents]
        genes, scores = genes[order], scores[order]
        if evaluate.evaluations >= end or watch.reason is not None or barren == 2:
            return genes, scores
        wanted = min(settings.mutants + settings.crossed, end - evaluate.evaluations)
        children = brood.children("bred", wanted, draw)
        barren = 0 if len(children) > SCARCE * wanted else barren + 1
        if len(children):
            genes = np.concatenate([genes, children])
            scores = np.concatenate([scores, evaluate(children)])
            watch.note(genes, scores)
