"""How a search went, generation by generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.search.choices import Choices
from apq_deploy.space import Genes


@dataclass(frozen=True, eq=False)
class History:
    """One entry per generation, the first population first; (generations + 1,) each.

    `best`: best predicted accuracy so far. `mean`: mean over the population. `diversity`: chance that two networks
    drawn from the population differ in a gene, averaged over the genes that are free. `evaluations`: networks that the
    predictor was asked about so far. `size`: networks in the population.
    """

    best: NDArray[np.float64]
    mean: NDArray[np.float64]
    diversity: NDArray[np.float64]
    evaluations: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.best)

    def to_json(self) -> dict[str, list[float]]:
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> History:
        """The history that `to_json` wrote.

        Raises: UserError for missing entries or entries of different lengths.
        """
        try:
            floats = [np.array(data[name], np.float64) for name in ("best", "mean", "diversity")]
            whole = [np.array(data[name], np.int64) for name in ("evaluations", "size")]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"expected the history of a search, got something else ({error})") from None
        if len({array.shape for array in [*floats, *whole]}) != 1 or floats[0].ndim != 1:
            raise UserError("expected a history with as many entries of each kind, got different lengths")
        return cls(floats[0], floats[1], floats[2], whole[0], whole[1])


class Recorder:
    """Collects a history."""

    def __init__(self, choices: Choices) -> None:
        self._free = np.flatnonzero(choices.counts > 1)
        self._width = choices.allowed.shape[1]
        self._rows: list[tuple[float, float, float, int, int]] = []

    def add(self, genes: Genes, scores: NDArray[np.float64], evaluations: int) -> None:
        """Notes one generation of genomes (n, n_genes) and their scores (n,)."""
        best = float(scores.max())
        if self._rows:
            best = max(best, self._rows[-1][0])
        self._rows.append((best, float(scores.mean()), self._diversity(genes), evaluations, len(genes)))

    def history(self) -> History:
        best, mean, diversity, evaluations, size = (np.array(column) for column in zip(*self._rows, strict=True))
        return History(best, mean, diversity, evaluations.astype(np.int64), size.astype(np.int64))

    def _diversity(self, genes: Genes) -> float:
        if not len(self._free):
            return 0.0
        slots = genes[:, self._free] + np.arange(len(self._free)) * self._width
        counts = np.bincount(slots.ravel(), minlength=len(self._free) * self._width).astype(np.float64)
        return float(1.0 - (counts @ counts) / (len(self._free) * len(genes) ** 2))
