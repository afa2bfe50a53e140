"""Local search on one network: all single changes first, then sets of the promising ones.

Goes beyond the paper. The changes are priced: where good changes cost more than the budget leaves, cheaper ones are
preferred until a random set of changes keeps the budget on average.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apq_deploy.search.accuracy import Evaluator
from apq_deploy.search.menu import Menu
from apq_deploy.search.starts import Seen
from apq_deploy.search.watch import Watch
from apq_deploy.space import Genes

# Changes of one gene that a candidate combines, at most.
MOST_CHANGES = 4
# Sets of changes drawn at a time, and how many of them are evaluated.
DRAWN, BATCH = 400, 100
# Batches in a row without a better network after which the changes are evaluated anew, or the search is over.
STALE_BATCHES = 4


def climb(
    menu: Menu,
    bounds: NDArray[np.float64],
    evaluate: Evaluator,
    start: Genes,
    score: float,
    most: int,
    watch: Watch,
    rng: np.random.Generator,
) -> tuple[Genes, float]:
    """The best network found from `start` (n_genes,) within `bounds`, and its score, after about `most` evaluations.

    Networks over the budget are evaluated as single changes only, to learn what each change is worth; none is returned.
    """
    end = evaluate.evaluations + most
    while evaluate.evaluations < end and watch.reason is None:
        genes, gene, value = menu.choices.neighbours(start)
        affordable = slice(end - evaluate.evaluations)
        genes, gene, value = genes[affordable], gene[affordable], value[affordable]
        if not len(genes):
            break
        scores = evaluate(genes)
        fits = menu.costs.fits(genes, bounds)
        best, best_score = start, score
        if fits.any():
            watch.note(genes[fits], scores[fits])
            top = int(np.argmax(np.where(fits, scores, -np.inf)))
            if scores[top] > score:
                best, best_score = genes[top], float(scores[top])
        chance = _chances(menu, bounds, start, genes, scores - score)
        seen, stale = Seen(menu.costs), 0
        while stale < STALE_BATCHES and evaluate.evaluations < end and watch.reason is None:
            base = best if rng.random() < 0.5 else start
            candidates = _combined(base, gene, value, chance, rng)
            candidates = menu.choices.repair(candidates, rng)
            candidates = candidates[menu.costs.fits(candidates, bounds)]
            candidates = seen.fresh(candidates, min(BATCH, end - evaluate.evaluations))
            if not len(candidates):
                break
            scores = evaluate(candidates)
            watch.note(candidates, scores)
            stale += 1
            if scores.max() > best_score:
                best, best_score, stale = candidates[int(scores.argmax())], float(scores.max()), 0
        if best_score <= score:
            break
        start, score = best, best_score
    return start, score


def _chances(
    menu: Menu, bounds: NDArray[np.float64], start: Genes, genes: Genes, gains: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How likely each change is drawn, (n,): better ones more, at a price for what they cost of the limits."""
    here = menu.costs.totals(start[None])
    limited = np.isfinite(bounds)
    spread = max(float(gains.std()), 1e-12)
    merit = gains / (0.5 * spread)
    if not limited.any():
        return _softmax(merit)
    added = ((menu.costs.totals(genes) - here) / bounds)[:, limited].max(axis=1)
    room = float((1.0 - here[0] / bounds)[limited].min()) / MOST_CHANGES
    chance = _softmax(merit)
    price, step = 0.0, 1.0 / max(float(added.std()), 1e-12)
    while float(chance @ added) > room and price < 64 * step:
        price = max(2.0 * price, 0.125 * step)
        chance = _softmax(merit - price * added)
    return chance


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _combined(
    base: Genes,
    gene: NDArray[np.int64],
    value: NDArray[np.int8],
    chance: NDArray[np.float64],
    rng: np.random.Generator,
) -> Genes:
    """Networks that differ from `base` in two or more changes drawn by chance, (DRAWN, n_genes)."""
    genes = np.repeat(base[None], DRAWN, axis=0)
    count = rng.integers(2, MOST_CHANGES + 1, DRAWN)
    cumulative = np.cumsum(chance)
    for number in range(MOST_CHANGES):
        change = np.minimum(np.searchsorted(cumulative, rng.random(DRAWN), side="right"), len(chance) - 1)
        row = np.flatnonzero(count > number)
        genes[row, gene[change[row]]] = value[change[row]]
    return genes
