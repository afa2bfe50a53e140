"""The predictor: its points, its transfer, its files."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL, small_data

from apq_deploy import SearchSpace, UserError
from apq_deploy.learn import fit_model
from apq_deploy.model import ModelFolder
from apq_deploy.predictor.collect import CollectSettings, Laboratory
from apq_deploy.predictor.fit import FitSettings, fit_correction, fit_float, fit_quantized, mean_of, score
from apq_deploy.predictor.model import Predictor, kendall_tau, pairwise_accuracy
from apq_deploy.predictor.ridge import PENALTIES, ridge
from apq_deploy.predictor.store import GROUP, PointStore, is_held_out, planned_genome
from apq_deploy.supernet.network import Supernet

FASHION = SearchSpace.load("fashion")
QUICK = FitSettings(epochs=60, transfer_epochs=60)


def test_pairwise_accuracy_and_tau_by_hand() -> None:
    measured = np.array([1.0, 2.0, 3.0, 3.0])
    predicted = np.array([1.0, 3.0, 2.0, 2.0])
    # Pairs that differ: (1,2), (1,3), (1,4) right; (2,3), (2,4) wrong; (3,4) is a tie.
    assert pairwise_accuracy(predicted, measured) == pytest.approx(3 / 5)
    assert kendall_tau(predicted, measured) == pytest.approx((3 - 2) / 5)
    assert pairwise_accuracy(np.zeros(4), measured) == 0.5
    assert kendall_tau(measured, measured) == pytest.approx(1)
    assert kendall_tau(-measured, measured) == pytest.approx(-1)
    assert (pairwise_accuracy(measured, np.ones(4)), kendall_tau(measured, np.ones(4))) == (0.5, 0.0)


def test_planned_points_are_of_both_kinds() -> None:
    genes = np.stack([planned_genome(FASHION, "quantized", i, 0) for i in range(2 * GROUP)])
    again = planned_genome(FASHION, "quantized", 27, 0)
    assert np.array_equal(genes[27], again)
    for group in (genes[:GROUP], genes[GROUP:]):
        depth, blocks = FASHION.split(group)
        architectures = np.concatenate([depth, blocks[..., :2].reshape(GROUP, -1)], axis=1)
        assert len(np.unique(architectures, axis=0)) == GROUP // 2 + 1
        assert len(np.unique(group, axis=0)) == GROUP
    held = [i for i in range(10 * GROUP) if is_held_out("quantized", i)]
    assert held == [*range(4 * GROUP, 5 * GROUP), *range(9 * GROUP, 10 * GROUP)]


def truth(genes: np.ndarray, with_bits: bool) -> np.ndarray:
    """An invented accuracy: more middle channels and bits are better."""
    features = FASHION.encode(genes)
    weights = np.random.default_rng(5).normal(size=features.shape[1])
    architecture = FASHION.architecture_features
    value = features[:, architecture] @ weights[architecture]
    if with_bits:
        value = value + 0.5 * features[:, ~architecture] @ weights[~architecture]
    return 0.86 + 0.003 * value


def test_transfer_beats_scratch_when_points_are_few() -> None:
    rng = np.random.default_rng(0)
    cheap, dear, other = (FASHION.sample(n, rng) for n in (400, 40, 150))
    base = fit_float(FASHION, cheap, truth(cheap, False), QUICK)
    moved = fit_quantized(FASHION, dear, truth(dear, True), QUICK, base)
    scratch = fit_quantized(FASHION, dear, truth(dear, True), QUICK, None)
    found = [score(p(FASHION.encode(other)), truth(other, True))["pairwise_accuracy"] for p in (moved, scratch)]
    assert found[0] > found[1] + 0.05
    float_score = score(base(FASHION.encode(other)[:, FASHION.architecture_features]), truth(other, False))
    assert float_score["pairwise_accuracy"] > 0.85


def test_transfer_starts_at_the_full_precision_ranking() -> None:
    rng = np.random.default_rng(1)
    genes = FASHION.sample(60, rng)
    base = fit_float(FASHION, genes, truth(genes, False), QUICK)
    still = FitSettings(transfer_epochs=1, transfer_learning_rate=0.0, weight_decay=0.0)
    moved = fit_quantized(FASHION, genes, truth(genes, False), still, base)
    features = FASHION.encode(genes)
    assert np.allclose(moved(features), base(features[:, FASHION.architecture_features]), atol=1e-5)


@pytest.mark.parametrize("twice", [False, True])
def test_a_correction_adds_a_linear_function_and_nothing_else(tmp_path: Path, twice: bool) -> None:
    rng = np.random.default_rng(3)
    cheap, dear, other = (FASHION.sample(n, rng) for n in (200, 60, 100))
    base = fit_float(FASHION, cheap, truth(cheap, False), QUICK)
    source = fit_correction(FASHION, cheap, truth(cheap, True), base) if twice else base
    found = fit_correction(FASHION, dear, truth(dear, True), source)

    def at_source(features: np.ndarray) -> np.ndarray:
        return source(features if source.quantized else features[:, FASHION.architecture_features])

    features, tested = FASHION.encode(dear), FASHION.encode(other)
    slope, intercept = ridge(features, truth(dear, True) - at_source(features))
    expected = at_source(tested) + tested @ slope + intercept
    assert np.abs(found(tested) - expected).max() < 1e-5
    found.save(tmp_path / "p.safetensors")
    assert np.abs(Predictor.load(tmp_path / "p.safetensors", FASHION)(tested) - expected).max() < 2e-4


def test_a_correction_ranks_better_than_the_networks_transfer() -> None:
    rng = np.random.default_rng(0)
    cheap, dear, other = (FASHION.sample(n, rng) for n in (400, 60, 150))
    base = fit_float(FASHION, cheap, truth(cheap, False), QUICK)
    predictors = (
        fit_correction(FASHION, dear, truth(dear, True), base),
        fit_quantized(FASHION, dear, truth(dear, True), QUICK, base),
    )
    found = [score(p(FASHION.encode(other)), truth(other, True))["pairwise_accuracy"] for p in predictors]
    assert found[0] > found[1]


def test_the_mean_of_predictors_is_that_of_their_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    genes, other = FASHION.sample(60, rng), FASHION.sample(30, rng)
    base = fit_float(FASHION, genes, truth(genes, False), QUICK)
    first = fit_correction(FASHION, genes, truth(genes, True), base)
    second = fit_quantized(FASHION, genes, 0.5 * truth(genes, True), FitSettings(epochs=5), None)
    features = FASHION.encode(other)
    expected = (first(features) + second(features)) / 2
    found = mean_of(first, second)
    assert np.abs(found(features) - expected).max() < 1e-5
    third = (first(features) + 2 * expected) / 3
    assert np.abs(mean_of(found, first)(features) - third).max() < 1e-5
    found.save(tmp_path / "p.safetensors")
    assert np.abs(Predictor.load(tmp_path / "p.safetensors", FASHION)(features) - expected).max() < 5e-4


def test_predictors_whose_points_hardly_differ_can_be_kept(tmp_path: Path) -> None:
    """Points in full precision may be nearly alike where quantized ones are not."""
    rng = np.random.default_rng(6)
    genes, other = FASHION.sample(60, rng), FASHION.sample(30, rng)
    base = fit_float(FASHION, genes, 0.5 + 1e-7 * truth(genes, False), QUICK)
    labels = 0.5 + 10 * (truth(genes, True) - 0.86)
    found = mean_of(fit_correction(FASHION, genes, labels, base), fit_quantized(FASHION, genes, labels, QUICK, None))
    found.save(tmp_path / "p.safetensors")
    features = FASHION.encode(other)
    assert np.abs(Predictor.load(tmp_path / "p.safetensors", FASHION)(features) - found(features)).max() < 5e-3


def test_ridge_is_the_best_of_its_penalties_by_leaving_one_out() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, (12, 5)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + rng.normal(0, 0.3, 12)

    def solve(features: np.ndarray, labels: np.ndarray, penalty: float, tested: np.ndarray) -> np.ndarray:
        centre, mean = features.mean(axis=0), labels.mean()
        gram = (features - centre).T @ (features - centre) + penalty * np.eye(5)
        return (tested - centre) @ np.linalg.solve(gram, (features - centre).T @ (labels - mean)) + mean

    errors = []
    for penalty in PENALTIES:
        others = [np.delete(np.arange(12), i) for i in range(12)]
        left_out = [solve(x[o], y[o], penalty, x[i : i + 1])[0] for i, o in enumerate(others)]
        errors.append(float(((np.array(left_out) - y) ** 2).mean()))
    tested = rng.random((4, 5))
    slope, intercept = ridge(x, y)
    distances = [np.abs(solve(x, y, penalty, tested) - (tested @ slope + intercept)).max() for penalty in PENALTIES]
    chosen = int(np.argmin(distances))
    assert distances[chosen] < 1e-5
    # Leaving one out moves the centre too, by a little: the choice is the best or next to it.
    assert errors[chosen] <= 1.05 * min(errors)


def test_predictor_files_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    genes = FASHION.sample(50, rng)
    predictor = fit_quantized(FASHION, genes, truth(genes, True), FitSettings(epochs=5), None)
    path = tmp_path / "predictor.safetensors"
    predictor.save(path)
    loaded = Predictor.load(path, FASHION)
    features = FASHION.encode(FASHION.sample(50, rng))
    assert np.allclose(loaded(features), predictor(features), atol=1e-3)
    with pytest.raises(UserError, match="space 'fashion', expected 'small'"):
        Predictor.load(path, SMALL)
    for changed in (replace(FASHION, bits=(2, 3, 8)), replace(FASHION, kernel_sizes=(1, 3, 5))):
        with pytest.raises(UserError, match="made for other choices than the space 'fashion' has now"):
            Predictor.load(path, changed)
    Predictor.load(path, replace(FASHION, left_out_of_sums=("classifier",)))  # changes costs alone
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a complete safetensors"):
        Predictor.load(path, FASHION)
    with pytest.raises(UserError, match="there is no predictor"):
        Predictor.load(tmp_path / "none", FASHION)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(UserError, match="at least 10 points"):
        fit_float(FASHION, FASHION.sample(3, np.random.default_rng(0)), np.ones(3), QUICK)


def test_the_store_keeps_every_point_once(tmp_path: Path) -> None:
    path = tmp_path / "points.sqlite"
    settings = {"seed": 0, "finetune_steps": 20}
    store = PointStore(path, FASHION, settings)
    for number in (0, 4, 1):
        store.add("float", number, planned_genome(FASHION, "float", number, 0), 0.8 + number / 100, 1.0)
    store.add("float", 4, planned_genome(FASHION, "float", 4, 0), 0.1, 1.0)
    store.close()
    store = PointStore(path, FASHION)
    assert store.settings == settings
    assert store.done("float") == {0, 1, 4}
    points = store.points("float")
    assert points.accuracy.tolist() == [0.8, 0.8 + 1 / 100, 0.8 + 4 / 100]
    assert points.held_out.tolist() == [False, False, True]
    assert np.array_equal(points.genes[2], planned_genome(FASHION, "float", 4, 0))
    store.close()
    with pytest.raises(UserError, match="another seed"):
        PointStore(path, FASHION, {**settings, "seed": 1})
    with pytest.raises(UserError, match="space 'fashion', expected 'small'"):
        PointStore(path, SMALL)
    with pytest.raises(UserError, match="made for other choices than the space 'fashion' has now"):
        PointStore(path, replace(FASHION, bits=(3, 6, 8)))


def test_wrong_databases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no points"):
        PointStore(tmp_path / "none.sqlite", FASHION)
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"this is not a database" * 100)
    with pytest.raises(UserError, match="not a database of points"):
        PointStore(garbage, FASHION)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE other (x)")
    with pytest.raises(UserError, match="expected schema"):
        PointStore(foreign, FASHION)


def test_the_laboratory_measures_the_same_point_alike() -> None:
    torch.manual_seed(0)
    network = Supernet(SMALL).eval()
    laboratory = Laboratory(network, small_data(), CollectSettings(3, 32, 60))
    found = {}
    for kind, measured in (
        ("float", ["float"]),
        ("calibrated", ["calibrated"]),
        ("quantized", ["calibrated", "quantized"]),
    ):
        genome = planned_genome(SMALL, kind, 1, 0)
        first, second = laboratory.measure(kind, 1, genome), laboratory.measure(kind, 1, genome)
        assert [point.kind for point in first] == measured
        assert [point.accuracy for point in first] == [point.accuracy for point in second]
        assert all(0 <= point.accuracy <= 1 and point.seconds > 0 for point in first)
        found[kind] = first
    # A calibrated point is the same alone and on the way to a fine-tuned one, of the very same network.
    assert found["calibrated"][0].accuracy == found["quantized"][0].accuracy
    assert np.array_equal(found["calibrated"][0].genome, found["quantized"][1].genome)


def test_fitting_needs_held_out_points(tmp_path: Path) -> None:
    """Without them there would be no honest score."""
    folder = ModelFolder(tmp_path)
    store = PointStore(folder.points, FASHION, {"seed": 0})
    for kind in ("float", "quantized"):
        for number in range(15):
            store.add(kind, number, planned_genome(FASHION, kind, number, 0), 0.8 + number / 100, 1.0)  # type: ignore[arg-type]
    store.close()
    with pytest.raises(UserError, match="quantized points that are held out from fitting, got 0 beside 15"):
        fit_model(FASHION, folder, QUICK)
    assert not folder.predictor.exists()


@pytest.mark.parametrize("n_chosen", [None, 5])
def test_what_is_kept_is_fitted_to_points_of_every_kind(tmp_path: Path, n_chosen: int | None) -> None:
    """The mean of the correction by calibrated, then by quantized and chosen points, and of a network from scratch."""
    folder = ModelFolder(tmp_path)
    rng = np.random.default_rng(0)
    store = PointStore(folder.points, FASHION, {"seed": 0})
    genes = {"chosen": FASHION.sample(8, rng)}
    for kind, n in (("float", 20), ("quantized", 100), ("calibrated", 100)):
        genes[kind] = np.stack([planned_genome(FASHION, kind, number, 0) for number in range(n)])  # type: ignore[arg-type]
    labels = {kind: truth(found, kind != "float") + 0.01 * (kind == "calibrated") for kind, found in genes.items()}
    for kind, found in genes.items():
        for number, (genome, label) in enumerate(zip(found, labels[kind], strict=True)):
            store.add(kind, number, genome, label, 1.0)  # type: ignore[arg-type]
    store.close()
    fit_model(FASHION, folder, QUICK, n_chosen)

    def part(kind: str) -> tuple[np.ndarray, np.ndarray]:
        kept = [not is_held_out(kind, number) for number in range(len(genes[kind]))]  # type: ignore[arg-type]
        return genes[kind][kept], labels[kind][kept]

    source = fit_correction(FASHION, *part("calibrated"), fit_float(FASHION, *part("float"), QUICK))
    chosen = genes["chosen"][:n_chosen], labels["chosen"][:n_chosen]
    dear = [np.concatenate(both) for both in zip(part("quantized"), chosen, strict=True)]
    scratch = fit_quantized(FASHION, *dear, QUICK, None)
    expected = mean_of(fit_correction(FASHION, *dear, source), scratch)
    features = FASHION.encode(FASHION.sample(50, rng))
    assert np.abs(Predictor.load(folder.predictor, FASHION)(features) - expected(features)).max() < 5e-4
