"""What one layer costs on one piece of hardware."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Source = Literal["modelled", "measured", "interpolated"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True, slots=True)
class LoopNest:
    """The tiling and loop order behind a modelled cost.

    `loops` runs from the innermost to the outermost loop over tiles; `convolutions` is how many equal dense
    convolutions the layer was costed as (1 for a dense layer).
    """

    tile_batch: int
    tile_size: int
    tile_in_channels: int
    tile_out_channels: int
    loops: tuple[str, ...]
    convolutions: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one layer for one batch.

    `cycles` is None where no clock is counted and `energy_mj` where nobody measured it: neither is ever invented.
    `counters` holds the model's own counts (cycles and bits, by the names of its model), empty for measurements.
    `spread_ms` is half the interquartile range of a measurement and `repeats` the number of its samples.
    """

    latency_ms: float
    energy_mj: float | None = None
    cycles: int | None = None
    counters: Mapping[str, int] = field(default_factory=dict, hash=False)
    source: Source = "modelled"
    mapping: LoopNest | None = None
    spread_ms: float | None = None
    repeats: int | None = None

    def fault(self) -> str | None:
        """Why this is the cost of no layer, in words; None if it is one: positive latency, finite figures."""
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            return f"latency_ms must be a positive number, got {self.latency_ms!r}"
        if self.energy_mj is not None and not (math.isfinite(self.energy_mj) and self.energy_mj >= 0):
            return f"energy_mj must be a number of at least 0 or None, got {self.energy_mj!r}"
        if self.cycles is not None and not (math.isfinite(self.cycles) and self.cycles > 0):
            return f"cycles must be a positive number or None, got {self.cycles!r}"
        return None
