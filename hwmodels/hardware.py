"""The interface of a hardware model, and the hash of a hardware description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from hwmodels.cost import Cost
from hwmodels.layers import ConvLayer, Precision

Setting: TypeAlias = str | int | float | bool | tuple[int, ...]
Entry: TypeAlias = tuple[ConvLayer, Precision]


@runtime_checkable
class Hardware(Protocol):
    """Anything that says what a layer costs.

    A package adds its own class through the entry point group `apq_deploy.hardware`; see `hwmodels.registry`.
    """

    @property
    def name(self) -> str:
        """Short name for tables and messages."""
        ...

    def describe(self) -> Mapping[str, Setting]:
        """Every setting that the costs depend on, by name: the provenance of a table."""
        ...

    def layer_cost(self, layer: ConvLayer, precision: Precision, batch: int = 1) -> Cost:
        """Cost of one layer for one batch."""
        ...

    def layer_costs(self, entries: Sequence[Entry], batch: int = 1) -> list[Cost]:
        """Costs of many layers, in their order."""
        ...


def canonical_json(description: Mapping[str, Setting]) -> str:
    """The description as JSON on one line, equal for equal descriptions."""
    return json.dumps(dict(description), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def description_sha256(description: Mapping[str, Setting]) -> str:
    """Hash of a hardware description: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(description).encode()).hexdigest()
