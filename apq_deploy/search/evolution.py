"""The paper's evolution, on whole arrays. Source: APQ (CVPR 2020), sections 3.3 and 4.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.search.accuracy import Evaluator
from apq_deploy.search.history import History, Recorder
from apq_deploy.search.menu import Menu
from apq_deploy.search.starts import Seen
from apq_deploy.space import Genes

# (generation, best predicted accuracy so far)
Progress = Callable[[int, float], None]

# Children are drawn again and again until enough of them fit the budget, but not for ever.
MAX_DRAWS = 3
# Draws at a time, as a multiple of the children that are wanted.
DRAW_LIMIT = {"mutants": 10, "crossed": 3}
# Generations in a row without any new network within the budget after which the search is over.
BARREN_GENERATIONS = 10


@dataclass(frozen=True, slots=True)
class Evolution:
    """Settings of the evolution; the defaults are the paper's.

    `patience`: generations without a better network after which to stop, None for never.

    Raises: UserError for settings that make no sense.
    """

    population: int = 100
    parents: int = 25
    mutants: int = 50
    crossed: int = 50
    mutation_probability: float = 0.1
    generations: int = 500
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("population", "parents", "mutants", "crossed", "generations"):
            if getattr(self, name) < (1 if name in ("population", "parents") else 0):
                raise UserError(f"expected a positive number for {name}, got {getattr(self, name)}")
        if not 0.0 < self.mutation_probability <= 1.0:
            raise UserError(f"expected a mutation probability in (0, 1], got {self.mutation_probability}")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"expected a patience of at least 1 generation, got {self.patience}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search algorithm found: `genes` (n, n_genes) best first, their `scores` (n,), and how it went."""

    genes: Genes
    scores: NDArray[np.float64]
    history: History
    stop_reason: str

    @property
    def best(self) -> Genes:
        return self.genes[0]


def evolve(
    menu: Menu,
    bounds: NDArray[np.float64],
    evaluate: Evaluator,
    starts: Genes,
    settings: Evolution,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Outcome:
    """The networks of the last generation, best first.

    The best `parents` of a generation stay; `mutants` and `crossed` children of theirs join them. A child over one of
    `bounds` (n_metrics,) is dropped and drawn anew, and so is one that was seen before. Where a bounded number of draws
    does not give enough crossed children, mutants make up for them; where it does not give enough mutants, the
    generation is smaller. `starts` must keep the bounds.
    """
    if not menu.costs.fits(starts, bounds).all():
        raise UserError("expected a first population within the budget, got networks over it")
    brood = Brood(menu, bounds, rng)
    genes = brood.seen.fresh(starts)
    scores = evaluate(genes)
    recorder = Recorder(menu.choices)
    recorder.add(genes, scores, evaluate.evaluations)
    best, best_generation, barren = float(scores.max()), 0, 0
    reason = f"all {settings.generations} generations done"
    for generation in range(1, settings.generations + 1):
        order = np.argsort(-scores, kind="stable")[: settings.parents]
        parents, parent_scores = genes[order], scores[order]
        crossed = brood.crossed(parents, settings.crossed)
        missing = settings.mutants + settings.crossed - len(crossed)
        mutants = brood.mutants(parents, missing, settings.mutation_probability)
        children = np.concatenate([mutants, crossed])
        genes = np.concatenate([parents, children])
        scores = np.concatenate([parent_scores, evaluate(children)])
        recorder.add(genes, scores, evaluate.evaluations)
        if float(scores.max()) > best:
            best, best_generation = float(scores.max()), generation
        if progress is not None:
            progress(generation, best)
        barren = 0 if len(children) else barren + 1
        if barren == BARREN_GENERATIONS:
            reason = f"no new network within the budget in {barren} generations"
            break
        if settings.patience is not None and generation - best_generation >= settings.patience:
            reason = f"no better network in {settings.patience} generations"
            break
    order = np.argsort(-scores, kind="stable")
    return Outcome(genes[order], scores[order], recorder.history(), reason)


class Brood:
    """Children within the budget that were not seen before."""

    def __init__(self, menu: Menu, bounds: NDArray[np.float64], rng: np.random.Generator) -> None:
        self.seen = Seen(menu.costs)
        self._menu, self._bounds, self._rng = menu, bounds, rng
        # What share of the draws of each kind was of use so far: how many to draw at once.
        self._yield = {"mutants": 0.5, "crossed": 0.5}

    def mutants(self, parents: Genes, n: int, probability: float) -> Genes:
        """At most n mutants of random parents, (n, n_genes)."""

        def draw(count: int) -> Genes:
            chosen = parents[self._rng.integers(0, len(parents), count)]
            return self._menu.choices.mutate(chosen, probability, self._rng)

        return self._children("mutants", n, draw)

    def crossed(self, parents: Genes, n: int) -> Genes:
        """At most n children of random pairs of parents, (n, n_genes)."""

        def draw(count: int) -> Genes:
            pairs = self._rng.integers(0, len(parents), (2, count))
            return self._menu.choices.cross(parents[pairs[0]], parents[pairs[1]], self._rng)

        return self._children("crossed", n, draw)

    def _children(self, kind: str, n: int, draw: Callable[[int], Genes]) -> Genes:
        pieces, missing = [np.zeros((0, self._menu.costs.space.n_genes), np.int8)], n
        for _ in range(MAX_DRAWS):
            if missing <= 0:
                break
            count = min(int(1.2 * missing / self._yield[kind]) + 2, DRAW_LIMIT[kind] * missing)
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
