"""How an evolution is set, what it has come to so far, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.search.accuracy import Evaluator
from apq_deploy.search.history import History, Recorder
from apq_deploy.search.menu import Menu
from apq_deploy.space import Genes

# (generation, best predicted accuracy so far)
Progress = Callable[[int, float], None]

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

    @property
    def evaluations(self) -> int:
        """Networks that the predictor is asked about if every generation is full."""
        return self.population + self.generations * (self.mutants + self.crossed)

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


class Watch:
    """Takes down every generation and says when to stop: `reason` is None until then; `generation` counts from 0.

    A search whose generations are not the paper's passes `by_generations=False`: then only evaluations are counted.
    """

    def __init__(
        self,
        menu: Menu,
        evaluate: Evaluator,
        settings: Evolution,
        progress: Progress | None = None,
        *,
        by_generations: bool = True,
    ) -> None:
        self.reason: str | None = None
        self._evaluate, self._settings, self._progress = evaluate, settings, progress
        self._by_generations = by_generations
        self._recorder = Recorder(menu.choices)
        self.generation = -1
        self._best, self._best_generation = -np.inf, 0
        self._barren, self._evaluations = 0, 0

    def note(self, genes: Genes, scores: NDArray[np.float64]) -> None:
        """Takes down a generation, all of it within the budget: genomes (n, n_genes) and scores (n,)."""
        self.generation += 1
        self._recorder.add(genes, scores, self._evaluate.evaluations)
        if float(scores.max()) > self._best:
            self._best, self._best_generation = float(scores.max()), self.generation
        if self._progress is not None:
            self._progress(self.generation, self._best)
        self._barren = 0 if self._evaluate.evaluations > self._evaluations else self._barren + 1
        self._evaluations = self._evaluate.evaluations
        patience = self._settings.patience
        if self._by_generations and self.generation >= self._settings.generations:
            self.reason = f"all {self._settings.generations} generations done"
        elif self._evaluations >= self._settings.evaluations:
            self.reason = f"all {self._settings.evaluations} evaluations done"
        elif self._barren == BARREN_GENERATIONS:
            self.reason = f"no new network within the budget in {self._barren} generations"
        elif patience is not None and self.generation - self._best_generation >= patience:
            self.reason = f"no better network in {patience} generations"

    @property
    def best(self) -> float:
        """The best predicted accuracy so far."""
        return self._best

    def end(self, reason: str) -> None:
        """Notes why the search is over, unless there is a reason already."""
        self.reason = self.reason or reason

    def outcome(self, genes: Genes, scores: NDArray[np.float64]) -> Outcome:
        """The end of a search with these networks left."""
        order = np.argsort(-scores, kind="stable")
        return Outcome(genes[order], scores[order], self._recorder.history(), self.reason or "stopped")
