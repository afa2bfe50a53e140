"""The statistics of the published results, their resumption, and what is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apq_deploy.predictor.model import pairwise_accuracy
from apq_deploy.predictor.store import GROUP, Points, planned_genome
from apq_deploy.space import CHANNEL_GENE, SearchSpace
from benchmarks.paper import joint
from benchmarks.paper.ledger import Key, Ledger, Value
from benchmarks.paper.plan import ARMS, MAIN, QUANTIZED_POINTS, Plan
from benchmarks.paper.points import repeated
from benchmarks.paper.statistics import Mean, noise_std, pairwise_ceiling
from benchmarks.paper.transfer import split_points

PLAN = Plan(Path("results"), Path("data"))


def test_a_mean_and_its_interval_by_hand() -> None:
    # std 1 and n 3: 4.3027 / sqrt(3), the 97.5 % quantile of t with two degrees of freedom.
    found = Mean.of([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found.text(1) == "2.0 ± 2.5"
    assert Mean.of([4.0]).text() == "4.00"


def test_noise_is_pooled_within_networks() -> None:
    assert noise_std([np.array([1.0, 3.0]), np.array([10.0, 10.0])]) == pytest.approx(1.0)


@pytest.mark.parametrize(("label_std", "noise"), [(1.0, 0.3), (1.0, 0.6), (0.5, 0.45)])
def test_the_ceiling_is_what_a_predictor_that_knows_the_truth_reaches(label_std: float, noise: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, (label_std**2 - noise**2) ** 0.5, 3000)
    measured = truth + rng.normal(0, noise, 3000)
    assert pairwise_ceiling(label_std, noise) == pytest.approx(pairwise_accuracy(truth, measured), abs=0.01)


def test_splits_share_no_architecture_between_their_parts() -> None:
    n = QUANTIZED_POINTS[MAIN]
    space = SearchSpace.load("fashion")
    genes = np.stack([planned_genome(space, "quantized", i, 0) for i in range(n)])
    points = Points(np.arange(n), genes, np.zeros(n), np.zeros(n), np.zeros(n, bool))
    seen = set()
    for split in range(PLAN.splits):
        held_out, pool = split_points(PLAN, points, split)
        assert len(held_out) == 100 and len(set(held_out) | set(pool)) == n
        assert not set(held_out // GROUP) & set(pool // GROUP)
        seen.add(tuple(held_out))
    assert len(seen) == PLAN.splits


def test_repeated_points_are_held_out_networks_of_their_own() -> None:
    for arm in ARMS:
        numbers = repeated(PLAN, arm)
        assert len(numbers) == PLAN.repeated_points
        assert all(n % GROUP < GROUP // 2 and (n // GROUP) % 5 == 4 for n in numbers)


def count(plan: Plan, key: Key) -> Value:
    """A task that leaves a trace."""
    with (plan.folder / "trace").open("a") as file:
        file.write(f"{key[0]} ")
    return {"square": int(key[0]) ** 2}


def test_a_stopped_stage_goes_on(tmp_path: Path) -> None:
    plan = Plan(tmp_path, tmp_path, workers=1)
    ledger = Ledger(plan.ledger)
    ledger.fill(plan, "squares", [(1,), (2,)], count)
    found = Ledger(plan.ledger).fill(plan, "squares", [(1,), (2,), (3,), (3,)], count)
    assert found == {(1,): {"square": 1}, (2,): {"square": 4}, (3,): {"square": 9}}
    assert (tmp_path / "trace").read_text().split() == ["1", "2", "3"]
    assert set(ledger.cpu_seconds("squares")) == {(1,), (2,), (3,)}


def test_what_is_given_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method holds what its name says, and meets the budget."""
    space = SearchSpace.load("fashion")
    monkeypatch.setattr(joint, "predictor_of", lambda plan, arm, kind: _SumOfFeatures())
    most = joint.limit(PLAN, MAIN, "latency_ms", 0.4)
    for method in ("joint", "staged, refined", "bits of the middle", "uniform 6 bit"):
        value = joint.search_one(PLAN, (MAIN, "latency_ms", 0.4, method))
        assert value["costs"]["latency_ms"] <= most * (1 + 1e-9)
        genes = np.array([value["genome"]], np.int8)
        blocks, active = space.split(genes)[1][0], space.active(genes)[0]
        if method == "uniform 6 bit":
            assert (blocks[active][:, CHANNEL_GENE + 1 :] == space.bits.index(6)).all()
        if method == "bits of the middle":
            middle = space.split(joint.network(space, "middle")[None])[1][0]
            assert (blocks[active][:, : CHANNEL_GENE + 1] == middle[active][:, : CHANNEL_GENE + 1]).all()
    least = joint.search_one(PLAN, (MAIN, "latency_ms", 0.01, "bits of the largest"))
    assert "genome" not in least and least["least"]["latency_ms"] > least["limit"]


class _SumOfFeatures:
    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ np.linspace(0, 1, features.shape[1], dtype=np.float32)
