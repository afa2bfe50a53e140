"""What a search found, as a file that export, report and a later comparison read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apq_deploy.arch import Arch
from apq_deploy.errors import UserError
from apq_deploy.files import read_json, write_json
from apq_deploy.search.budget import Budget
from apq_deploy.search.costs import Metric, Scope
from apq_deploy.search.history import History
from apq_deploy.space import Genes, SearchSpace

SCHEMA = "apq-deploy/search/1"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The chosen network with everything needed to find it again.

    `definition` is the whole search space as its TOML file says it. `costs` holds every metric in every scope of the
    space; the budget was kept in `scope`. `freeze` and `bits` say what was held fixed, `settings` how the algorithm was
    set, `hardware_sha256` which hardware description the costs come from. `predicted_accuracy` is in the units of the
    predictor.
    """

    space: str
    definition: Mapping[str, Any]
    algorithm: str
    settings: Mapping[str, Any]
    seed: int
    budget: Budget
    scope: Scope
    hardware: str
    hardware_sha256: str
    freeze: tuple[str, ...]
    bits: int | None
    genome: tuple[int, ...]
    arch: Arch
    predicted_accuracy: float
    costs: Mapping[Scope, Mapping[Metric, float]]
    history: History
    stop_reason: str

    @property
    def evaluations(self) -> int:
        """Networks that the predictor was asked about."""
        return int(self.history.evaluations[-1])

    @property
    def genes(self) -> Genes:
        """The chosen genome, (n_genes,)."""
        return np.array(self.genome, np.int8)

    def search_space(self) -> SearchSpace:
        """The space that was searched, as it was then."""
        return SearchSpace.from_dict(dict(self.definition), self.space)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries; `from_json` reads them back."""
        return {
            "schema": SCHEMA,
            "space": self.space,
            "algorithm": self.algorithm,
            "settings": dict(self.settings),
            "seed": self.seed,
            "budget": self.budget.to_json(),
            "scope": self.scope,
            "hardware": self.hardware,
            "hardware_sha256": self.hardware_sha256,
            "freeze": list(self.freeze),
            "bits": self.bits,
            "predicted_accuracy": self.predicted_accuracy,
            "costs": {scope: dict(values) for scope, values in self.costs.items()},
            "evaluations": self.evaluations,
            "stop_reason": self.stop_reason,
            "genome": list(self.genome),
            "arch": self.arch.to_json(),
            "definition": dict(self.definition),
            "history": self.history.to_json(),
        }

    @classmethod
    def from_json(cls, data: Any) -> SearchResult:
        """The result that `to_json` wrote.

        Raises: UserError for another schema, and for missing or wrong entries.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            came = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise UserError(f"expected a search result of schema {SCHEMA!r}, got {came!r}; search again")
        try:
            return cls(
                space=str(data["space"]),
                definition=dict(data["definition"]),
                algorithm=str(data["algorithm"]),
                settings=dict(data["settings"]),
                seed=int(data["seed"]),
                budget=Budget.from_json(data["budget"]),
                scope=data["scope"],
                hardware=str(data["hardware"]),
                hardware_sha256=str(data["hardware_sha256"]),
                freeze=tuple(data["freeze"]),
                bits=data["bits"],
                genome=tuple(int(gene) for gene in data["genome"]),
                arch=Arch.from_json(data["arch"]),
                predicted_accuracy=float(data["predicted_accuracy"]),
                costs={scope: dict(values) for scope, values in data["costs"].items()},
                history=History.from_json(data["history"]),
                stop_reason=str(data["stop_reason"]),
            )
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(f"expected a search result, got something else ({error}); search again") from None

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON, under a temporary name first."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> SearchResult:
        """The result of a file that `save` wrote.

        Raises: UserError if the file cannot be read or is not a search result.
        """
        return cls.from_json(read_json(Path(path), SCHEMA))


def space_definition(space: SearchSpace) -> dict[str, Any]:
    """A space as its TOML file would say it; `SearchSpace.from_dict` reads it back."""
    known = {name: value for name, value in asdict(space).items() if value is not None}
    return json.loads(json.dumps({"schema": 1, **known}))
