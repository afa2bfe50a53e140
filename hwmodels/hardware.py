"""The interface of a hardware model, and the hash of a hardware description."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from hwmodels.cost import Cost
from hwmodels.errors import HardwareError
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


def class_name(hardware: object) -> str:
    """The class of a hardware as an entry point names it."""
    return f"{type(hardware).__module__}:{type(hardware).__qualname__}"


def checked_costs(hardware: Hardware, entries: Sequence[Entry], batch: int = 1) -> list[Cost]:
    """What `layer_costs` gives, where that can be a cost: the class may be of another package.

    Raises: HardwareError as the hardware does; one that names class, layer and error for any other exception, and for
    costs that are no costs, negative or not finite.
    """
    try:
        costs = list(hardware.layer_costs(entries, batch))
    except HardwareError:
        raise
    except Exception as error:
        layer, precision = _first_failing(hardware, entries, batch)
        raise HardwareError(
            f"{class_name(hardware)} fails for {layer} at {precision} with {type(error).__name__}: {error}; mend the "
            f"class"
        ) from error
    if len(costs) != len(entries):
        raise HardwareError(
            f"{class_name(hardware)}: layer_costs must give {len(entries)} costs, got {len(costs)}; mend the class"
        )
    for (layer, precision), cost in zip(entries, costs, strict=True):
        fault = cost.fault() if isinstance(cost, Cost) else f"expected a Cost, got {cost!r}"
        if fault is not None:
            raise HardwareError(f"{class_name(hardware)}: {fault} for {layer} at {precision}; mend the class")
    return costs


def _first_failing(hardware: Hardware, entries: Sequence[Entry], batch: int) -> Entry:
    for entry in entries:
        try:
            hardware.layer_cost(*entry, batch)
        except Exception:
            return entry
    return entries[0]


def canonical_json(description: Mapping[str, Setting]) -> str:
    """The description as JSON on one line, equal for equal descriptions."""
    return json.dumps(dict(description), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def description_sha256(description: Mapping[str, Setting]) -> str:
    """Hash of a hardware description: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(description).encode()).hexdigest()
