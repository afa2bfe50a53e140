"""The paper's evolution, on whole arrays. Source: APQ (CVPR 2020), sections 3.3 and 4.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apq_deploy.search.accuracy import Evaluator
from apq_deploy.search.budget import Budget
from apq_deploy.search.menu import Menu
from apq_deploy.search.starts import Seen, feasible_starts
from apq_deploy.search.watch import Evolution, Outcome, Progress, Watch
from apq_deploy.space import Genes

# How children come about: by mutation, by crossing, or by both.
Kind: TypeAlias = Literal["mutants", "crossed", "bred"]

# Children are drawn anew until enough of them fit the budget, but not for ever: how often at most, and how many at a
# time, as a multiple of the children that are wanted. Parents that are much alike have few children left to cross.
DRAWS: dict[Kind, tuple[int, int]] = {"mutants": (3, 10), "crossed": (1, 3), "bred": (3, 10)}


def evolve(
    menu: Menu,
    budget: Budget,
    evaluate: Evaluator,
    settings: Evolution,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Outcome:
    """The networks of the last generation, best first.

    The best `parents` of a generation stay; `mutants` and `crossed` children of theirs join them. A child over the
    budget is dropped and drawn anew, and so is one that was seen before. Where a bounded number of draws does not give
    enough crossed children, mutants make up for them; where it does not give enough mutants, the generation is smaller.

    Raises: UnreachableBudget if no network meets the budget.
    """
    brood = Brood(menu, budget.bounds(menu.costs), rng)
    genes = brood.seen.fresh(feasible_starts(menu, budget, settings.population, rng))
    scores = evaluate(genes)
    watch = Watch(menu, evaluate, settings, progress)
    watch.note(genes, scores)
    while watch.reason is None:
        order = np.argsort(-scores, kind="stable")[: settings.parents]
        parents, parent_scores = genes[order], scores[order]
        crossed = brood.crossed(parents, settings.crossed)
        missing = settings.mutants + settings.crossed - len(crossed)
        mutants = brood.mutants(parents, missing, settings.mutation_probability)
        children = np.concatenate([mutants, crossed])
        genes = np.concatenate([parents, children])
        scores = np.concatenate([parent_scores, evaluate(children)])
        watch.note(genes, scores)
    return watch.outcome(genes, scores)


class Brood:
    """Children within the budget that were not seen before."""

    def __init__(self, menu: Menu, bounds: NDArray[np.float64], rng: np.random.Generator) -> None:
        self.seen = Seen(menu.costs)
        self._menu, self._bounds, self._rng = menu, bounds, rng
        # What share of the draws of each kind was of use so far: how many to draw at once.
        self._yield: dict[Kind, float] = {"mutants": 0.5, "crossed": 0.5, "bred": 0.5}

    def mutants(self, parents: Genes, n: int, probability: float) -> Genes:
        """At most n mutants of random parents, (n, n_genes)."""

        def draw(count: int) -> Genes:
            chosen = parents[self._rng.integers(0, len(parents), count)]
            return self._menu.choices.mutate(chosen, probability, self._rng)

        return self.children("mutants", n, draw)

    def crossed(self, parents: Genes, n: int) -> Genes:
        """At most n children of random pairs of parents, (n, n_genes)."""

        def draw(count: int) -> Genes:
            pairs = self._rng.integers(0, len(parents), (2, count))
            return self._menu.choices.cross(parents[pairs[0]], parents[pairs[1]], self._rng)

        return self.children("crossed", n, draw)

    def children(self, kind: Kind, n: int, draw: Callable[[int], Genes]) -> Genes:
        """At most n of the genomes that `draw(count)` gives: those within the budget that were not seen before."""
        pieces, missing = [np.zeros((0, self._menu.costs.space.n_genes), np.int8)], n
        rounds, most = DRAWS[kind]
        for _ in range(rounds):
            if missing <= 0:
                break
            count = min(int(1.2 * missing / self._yield[kind]) + 2, most * missing)
            drawn = draw(count)
            used = self._menu.costs.used_rows(drawn)
            fit = np.flatnonzero(self._menu.costs.rows_fit(used, self._bounds))
            fresh = fit[self.seen.fresh_rows(used[fit], missing)]
            pieces.append(drawn[fresh])
            # a piece cut short at `missing` counts as if all of it had been asked for
            useful = len(fresh) if len(fresh) < missing else missing * 1.2
            self._yield[kind] = min(max(0.5 * self._yield[kind] + 0.5 * useful / count, 0.05), 1.0)
            missing -= len(fresh)
        return np.concatenate(pieces)
