"""How the trained model was made: the steps that its provenance file tells of, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

STEPS = ("train", "collect", "fit")
OPTIONAL_STEPS = ("refine",)

Clock = Literal["processor", "wall"]


@dataclass(frozen=True, slots=True)
class Score:
    """A predictor on held-out points. mean_error_points: mean absolute error in points of accuracy."""

    points: int
    pairwise_accuracy: float
    kendall_tau: float
    mean_error_points: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step. seconds: None where the file does not say; clock: whether they are processor or wall time."""

    command: str | None
    date: str | None
    notes: str | None
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float | None
    clock: Clock
    scores: Mapping[str, Score]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Step:
        seconds, clock = _seconds(data)
        scores = {
            str(name): Score(
                int(score["points"]),
                float(score["pairwise_accuracy"]),
                float(score["kendall_tau"]),
                float(score["mean_absolute_error_points"]),
            )
            for name, score in data.get("held_out_scores", {}).items()
        }
        texts = {name: None if data.get(name) is None else str(data[name]) for name in ("command", "date", "notes")}
        versions = {str(name): str(version) for name, version in data.get("versions", {}).items()}
        return cls(
            **texts,
            settings=dict(data.get("settings", {})),
            versions=versions,
            seconds=seconds,
            clock=clock,
            scores=scores,
        )


def steps_from_json(data: Mapping[str, Any]) -> dict[str, Step]:
    """The steps of a provenance file, by name.

    Raises: KeyError, TypeError, ValueError or AttributeError for entries that are missing or of another kind.
    """
    return {str(name): Step.from_json(step) for name, step in data["steps"].items()}


def _seconds(data: Mapping[str, Any]) -> tuple[float | None, Clock]:
    """Processor time, else wall time, else the wall time of the collected points together."""
    if "cpu_seconds" in data:
        return float(data["cpu_seconds"]), "processor"
    if "seconds" in data:
        return float(data["seconds"]), "wall"
    kinds = [data[kind] for kind in ("float", "quantized") if kind in data]
    points = [int(kind["points"]) for kind in kinds]
    if not any(points):
        return None, "wall"
    times = (n * float(kind["seconds_per_point"]) for n, kind in zip(points, kinds, strict=True) if n)
    return sum(times), "wall"
