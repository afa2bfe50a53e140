"""Which networks to measure next: those that a search by the predictor would choose, where its errors cost most.

Random points say little of the best networks, and a search finds those that the predictor rates too high. An addition
to APQ (CVPR 2020); the field calls it active learning, or sequential model-based optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apq_deploy.predictor.model import Predictor
from apq_deploy.search.costs import Metric, SpaceCosts
from apq_deploy.space import Genes

OBJECTIVES: tuple[Metric, ...] = ("latency_ms", "energy_mj", "bitops_g")


def choose(costs: SpaceCosts, predictor: Predictor, n: int, known: Genes, seed: int) -> Genes:
    """At most `n` networks, evenly from the fronts of predicted accuracy against each cost, (<= n, n_genes).

    known: genomes that are measured already, (n_known, n_genes); none of them is chosen.
    """
    from apq_deploy.search.pareto import pareto_search  # pymoo is loaded by whom it serves

    objectives = [name for name in OBJECTIVES if name in costs.metrics]
    taken = {genome.tobytes() for genome in costs.space.canonical(known)}
    chosen: list[Genes] = []
    for place, name in enumerate(objectives):
        front = [g for g in pareto_search(costs, predictor, (name,), seed=seed).genes if g.tobytes() not in taken]
        share = (n - len(chosen)) // (len(objectives) - place)
        picked = _evenly(front, share)
        taken |= {genome.tobytes() for genome in picked}
        chosen += picked
    return np.array(chosen, np.int8).reshape(len(chosen), costs.space.n_genes)


def _evenly(items: Sequence[Genes], n: int) -> list[Genes]:
    """At most n of the items, at equal distances."""
    places = np.unique(np.linspace(0, len(items) - 1, min(n, len(items))).round().astype(int))
    return [items[place] for place in places]
