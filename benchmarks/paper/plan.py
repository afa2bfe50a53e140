"""What is measured, how often, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from apq_deploy.model import ModelFolder
from apq_deploy.predictor.collect import CollectSettings
from apq_deploy.space import SearchSpace
from apq_deploy.supernet.train import TrainSettings

ARMS: dict[str, tuple[int, ...]] = {"468": (4, 6, 8), "348": (3, 4, 8)}
"""Bit widths to choose from; the first arm is that of the paper."""
MAIN = "468"
QUANTIZED_POINTS = {"468": 500, "348": 400}
"""Of every arm: 100 are held out, the others are what a predictor may learn from."""


@dataclass(frozen=True)
class Plan:
    """Counts of everything. `folder` keeps the measurements; images come from `data`."""

    folder: Path
    data: Path
    workers: int = 2
    device: str = "cpu"
    preset: str = "fashion"
    random_subnets: int = 100
    alone_subnets: int = 10
    alone_steps: int = 3000
    float_points: int = 800
    repeated_points: int = 15
    chosen_points: int = 40
    rounds: int = 3
    repeats: int = 3
    splits: int = 6
    sizes: tuple[int, ...] = (25, 50, 100, 200, 300, 400)
    held_out_groups: int = 5
    budget_shares: tuple[float, ...] = (0.01, 0.10, 0.40)
    seeds: int = 3
    final_steps: int = 40
    seed: int = 0

    @cached_property
    def train(self) -> TrainSettings:
        return TrainSettings(seed=self.seed)

    @cached_property
    def collect(self) -> CollectSettings:
        return CollectSettings(seed=self.seed)

    def space(self, arm: str = MAIN) -> SearchSpace:
        """The space of an arm; its supernet is that of the preset, since bits change no float weight."""
        space = SearchSpace.load(self.preset)
        return space if ARMS[arm] == space.bits else replace(space, name=f"{space.name}-{arm}", bits=ARMS[arm])

    def model(self, arm: str = MAIN) -> ModelFolder:
        return ModelFolder(self.folder / f"model-{arm}")

    @property
    def plain(self) -> ModelFolder:
        """The supernet that was trained without shrinking."""
        return ModelFolder(self.folder / "model-plain")

    @property
    def ledger(self) -> Path:
        return self.folder / "measurements.sqlite"
