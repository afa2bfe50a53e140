"""What transfer gains: the ranking of held-out quantized networks against the number of points that were paid for.

Source: APQ (CVPR 2020), figure 7. Beside the paper's two curves stand ridge regression and the full-precision predictor
that never sees the bits; and three additions: a linear correction in place of training, a first one by calibrated
points, and the mean of both corrections and a network from scratch.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from apq_deploy.predictor.fit import FitSettings, fit_correction, fit_float, fit_quantized, mean_of, score
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.ridge import ridge
from apq_deploy.predictor.store import GROUP, Points, PointStore
from apq_deploy.space import SearchSpace
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import ARMS, QUANTIZED_POINTS, Plan


def run(plan: Plan, ledger: Ledger) -> None:
    """Every arm, split and number of points."""
    keys: list[Key] = [
        (arm, split, size)
        for split in range(plan.splits)
        for arm in ARMS
        for size in plan.sizes
        if size <= QUANTIZED_POINTS[arm] - GROUP * plan.held_out_groups
    ]
    ledger.fill(plan, "transfer", keys, measure)


@cache
def _points(plan: Plan, arm: str) -> tuple[SearchSpace, Points, Points, Points]:
    space = plan.space(arm)
    store = PointStore(plan.model(arm).points, space)
    found = store.points("float"), store.points("quantized"), store.points("calibrated")
    store.close()
    quantized, calibrated = found[1], found[2]
    assert (quantized.index == calibrated.index).all() and (quantized.genes == calibrated.genes).all()
    return space, *found


@cache
def _float_predictor(plan: Plan, arm: str) -> Predictor:
    space, points, _, _ = _points(plan, arm)
    return fit_float(space, points.genes, points.accuracy, FitSettings(seed=plan.seed))


@cache
def _calibrated_predictor(plan: Plan, arm: str, split: int) -> Predictor:
    """Of every calibrated point that is not held out: they cost less than half of a fine-tuned one."""
    space, _, _, calibrated = _points(plan, arm)
    _, pool = split_points(plan, calibrated, split)
    base = _float_predictor(plan, arm)
    return fit_correction(space, calibrated.genes[pool], calibrated.accuracy[pool], base)


def split_points(plan: Plan, points: Points, split: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the held-out points, whole groups, and of the others in random order."""
    rng = np.random.default_rng((plan.seed, 30, split))
    groups = points.index // GROUP
    held_out = np.isin(groups, rng.choice(np.unique(groups), plan.held_out_groups, replace=False))
    return np.flatnonzero(held_out), rng.permutation(np.flatnonzero(~held_out))


def measure(plan: Plan, key: Key) -> Value:
    """Scores of every method with so many points."""
    arm, split, size = str(key[0]), int(key[1]), int(key[2])
    space, _, points, _ = _points(plan, arm)
    held_out, pool = split_points(plan, points, split)
    used = pool[:size]
    x, y = space.encode(points.genes[used]), points.accuracy[used]
    tested, truth = space.encode(points.genes[held_out]), points.accuracy[held_out]
    base, settings = _float_predictor(plan, arm), FitSettings(seed=plan.seed)
    middle = _calibrated_predictor(plan, arm, split)
    slope, intercept = ridge(x, y)
    scratch = fit_quantized(space, points.genes[used], y, settings, None)
    twice = fit_correction(space, points.genes[used], y, middle)
    predicted = {
        "scratch": scratch(tested),
        "ridge": tested @ slope + intercept,
        "full precision alone": base(tested[:, space.architecture_features]),
        "transferred": fit_quantized(space, points.genes[used], y, settings, base)(tested),
        "corrected": fit_correction(space, points.genes[used], y, base)(tested),
        "calibrated alone": middle(tested),
        "corrected twice": twice(tested),
        "mean with scratch": mean_of(twice, scratch)(tested),
    }
    return {"held_out": len(held_out), "scores": {name: score(values, truth) for name, values in predicted.items()}}
