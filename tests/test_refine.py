"""Rounds of points that a search chooses: what is chosen, and that a stopped round goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from endurance import Place, rows

from apq_deploy import SearchSpace, UserError
from apq_deploy.learn import collect_model, refine_model, train_model
from apq_deploy.model import ModelFolder
from apq_deploy.predictor.choose import choose
from apq_deploy.predictor.collect import CollectSettings
from apq_deploy.predictor.fit import FitSettings
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.store import PointStore
from apq_deploy.search import SpaceCosts
from apq_deploy.search.pareto import pareto_search
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.train import TrainSettings, save_supernet
from apq_deploy.workers import Workers
from hwmodels import load_hardware

POINTS, ROUNDS = 6, 2
QUICK = FitSettings(epochs=5, transfer_epochs=5)


class Here(Workers):
    """This process itself, which stops before the task with the number `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.done, self.stop_at = 0, stop_at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def capacity(self) -> int:
        return 1

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        if self.done == self.stop_at:
            raise KeyboardInterrupt
        self.done += 1
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def result(self, future: Future[Any]) -> Any:
        return future.result()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model with as few points as may be fitted."""
    torch.manual_seed(0)
    place = Place.make(tmp_path_factory.mktemp("place"))
    space, folder = tiny(place), ModelFolder(place.path / "model")
    folder.path.mkdir(exist_ok=True)
    save_supernet(Supernet(space), folder.supernet)
    collect_model(
        space, place.path / "data", folder, {"float": 15, "quantized": 100}, CollectSettings(1, 16, 40), Here()
    )
    return place


def tiny(place: Place) -> SearchSpace:
    return SearchSpace.load(place.path / "tiny.toml")


def refined(place: Place, name: str, *workers: Workers) -> list[dict[str, float]]:
    """What the last of several calls told, in a copy of the model; the others are stopped."""
    folder = ModelFolder(place.path / name)
    shutil.copytree(place.path / "model", folder.path)
    costs = SpaceCosts.from_hardware(tiny(place), load_hardware("bitfusion"))
    arguments = (costs, place.path / "data", folder, QUICK, POINTS, ROUNDS)
    *stopped, last = workers
    for each in stopped:
        with pytest.raises(KeyboardInterrupt):
            refine_model(*arguments, each)
    return refine_model(*arguments, last)


def test_a_stopped_round_goes_on_to_the_same_points_and_predictor(place: Place) -> None:
    told = refined(place, "calm", Here())
    again = refined(place, "stopped", Here(2), Here(7), Here())
    assert told == again
    assert [each["points"] for each in told] == [POINTS] * ROUNDS
    calm, stopped = ([row[:4] for row in rows(place.path / name) if row[0] == "chosen"] for name in ("calm", "stopped"))
    assert calm == stopped
    assert len({row[2] for row in calm}) == len(calm) == POINTS * ROUNDS
    features = tiny(place).encode(tiny(place).sample(50, np.random.default_rng(0)))
    first, second = (
        Predictor.load(ModelFolder(place.path / name).predictor, tiny(place)) for name in ("calm", "stopped")
    )
    assert np.array_equal(first(features), second(features))
    # a finished refinement is told again, and measures nothing
    folder = ModelFolder(place.path / "calm")
    costs = SpaceCosts.from_hardware(tiny(place), load_hardware("bitfusion"))
    assert refine_model(costs, place.path / "data", folder, QUICK, POINTS, ROUNDS, Here(0)) == told


def test_what_is_chosen_is_on_the_fronts_and_not_known(place: Place) -> None:
    space = tiny(place)
    costs = SpaceCosts.from_hardware(space, load_hardware("bitfusion"))
    slope = np.random.default_rng(0).normal(size=(1, 1, space.n_features)).astype(np.float32)
    predictor = Predictor(space, (slope,), (np.zeros((1, 1), np.float32),), 0.5, 0.1, True)
    first = choose(costs, predictor, 9, np.zeros((0, space.n_genes), np.int8), seed=0)
    assert len(np.unique(first, axis=0)) == 9
    second = choose(costs, predictor, 9, first, seed=0)
    assert not {g.tobytes() for g in first} & {g.tobytes() for g in second}
    others = space.sample(2000, np.random.default_rng(1))
    columns = [costs.column(name) for name in ("latency_ms", "energy_mj", "bitops_g")]
    better = predictor(space.encode(others))[:, None] > predictor(space.encode(first))
    cheaper = [costs.totals(others)[:, [c]] < costs.totals(first)[:, c] for c in columns]
    assert not (better & np.all(cheaper, axis=0)).any()


def test_a_training_that_has_ended_is_not_measured_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = ModelFolder(place.path / "trained"), place.path / "data"
    settings = TrainSettings(2, 0, 0, 1, batch_size=16)
    metrics = train_model(tiny(place), data, folder, settings)
    before = folder.provenance.read_bytes()
    monkeypatch.setattr("apq_deploy.learn.measure_supernet", lambda *_: pytest.fail("measured again"))
    assert train_model(tiny(place), data, folder, settings) == metrics
    assert folder.provenance.read_bytes() == before


def test_picks_of_a_front_lie_evenly_from_end_to_end(place: Place) -> None:
    space = tiny(place)
    costs = SpaceCosts.from_hardware(space, load_hardware("bitfusion"))
    slope = np.random.default_rng(0).normal(size=(1, 1, space.n_features)).astype(np.float32)
    predictor = Predictor(space, (slope,), (np.zeros((1, 1), np.float32),), 0.5, 0.1, True)
    front = pareto_search(costs, predictor, ("latency_ms",), seed=0).genes
    picked = choose(costs, predictor, 9, np.zeros((0, space.n_genes), np.int8), seed=0)[:3]
    places = [int((front == genome).all(axis=1).argmax()) for genome in picked]
    assert places == [0, round((len(front) - 1) / 2), len(front) - 1]


def test_a_stopped_round_goes_on_with_another_number_of_points(place: Place) -> None:
    """What it has measured counts, and is not measured again."""
    folder = ModelFolder(place.path / "more")
    shutil.copytree(place.path / "model", folder.path)
    costs = SpaceCosts.from_hardware(tiny(place), load_hardware("bitfusion"))
    with pytest.raises(KeyboardInterrupt):
        refine_model(costs, place.path / "data", folder, QUICK, 6, 1, Here(3))
    (told,) = refine_model(costs, place.path / "data", folder, QUICK, 12, 1, Here())
    chosen = [row[2] for row in rows(folder.path) if row[0] == "chosen"]
    assert told["points"] == len(chosen) == len(set(chosen)) == 12


def test_refining_ends_where_nothing_is_left_to_choose(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ModelFolder(place.path / "all")
    shutil.copytree(place.path / "model", folder.path)
    costs = SpaceCosts.from_hardware(tiny(place), load_hardware("bitfusion"))

    class Nothing(Here):
        def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
            pytest.fail("nothing was left to measure")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apq_deploy.learn.choose", lambda *_, **__: np.zeros((0, tiny(place).n_genes), np.int8))
        assert refine_model(costs, place.path / "data", folder, QUICK, 6, 3, Nothing()) == []
    assert "round 1: every network on the fronts is measured already" in capsys.readouterr().err
    assert folder.recorded("refine") == {}


def test_refining_needs_points_and_settings(place: Place, tmp_path: Path) -> None:
    space = tiny(place)
    costs = SpaceCosts.from_hardware(space, load_hardware("bitfusion"))
    with pytest.raises(UserError, match="there are no points at"):
        refine_model(costs, place.path / "data", ModelFolder(tmp_path), QUICK, 1, 1, Here())
    with pytest.raises(UserError, match="at least one point and one round, got 0 and 1"):
        refine_model(costs, place.path / "data", ModelFolder(tmp_path), QUICK, 0, 1, Here())
    PointStore(tmp_path / "points.sqlite", space, {"seed": 0}).close()
    with pytest.raises(UserError, match="does not say with which 'finetune_steps'"):
        refine_model(costs, place.path / "data", ModelFolder(tmp_path), QUICK, 1, 1, Here())
