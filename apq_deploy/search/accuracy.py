"""Predicted accuracy as the search asks for it: any callable on features, or one that reads genomes directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.space import Genes, SearchSpace

# (n, n_features) float32 -> (n,)
FeatureScorer: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.floating]]


@runtime_checkable
class GeneScorer(Protocol):
    """A predictor that needs no one-hot features, say because it gathers rows of its first layer."""

    def score_genes(self, genes: Genes, /) -> NDArray[np.floating]:
        """Predicted accuracies of genomes (n, n_genes), (n,)."""
        ...


Accuracy: TypeAlias = FeatureScorer | GeneScorer


class Evaluator:
    """Predicted accuracies of genomes, and a count of them.

    `evaluations` is the number of networks that the predictor was asked about.
    """

    def __init__(self, space: SearchSpace, accuracy: Accuracy) -> None:
        self.space = space
        self.evaluations = 0
        # a protocol is slow to check, so once
        self._score: Callable[[Genes], NDArray[np.floating]] = (
            accuracy.score_genes if isinstance(accuracy, GeneScorer) else lambda genes: accuracy(space.encode(genes))
        )

    def __call__(self, genes: Genes) -> NDArray[np.float64]:
        """Predicted accuracies, (n,).

        Raises: UserError if the predictor returns another shape, or a number that is not finite.
        """
        if not len(genes):
            return np.zeros(0)
        scores = np.asarray(self._score(genes), np.float64)
        if scores.shape == (len(genes), 1):
            scores = scores[:, 0]
        if scores.shape != (len(genes),):
            raise UserError(f"expected {len(genes)} predicted accuracies, got shape {scores.shape} from the predictor")
        if not np.isfinite(scores).all():
            raise UserError("expected finite predicted accuracies, got others; fit the predictor again")
        self.evaluations += len(genes)
        return scores
