"""A front of networks, none of which is better than another in accuracy and in every cost asked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import BudgetError, UserError
from apq_deploy.files import atomic, read_json, write_json
from apq_deploy.search.budget import Budget, in_words
from apq_deploy.search.costs import Metric, Scope, SpaceCosts
from apq_deploy.search.history import History
from apq_deploy.search.result import SearchResult, space_definition
from apq_deploy.search.run import costs_in_all_scopes
from apq_deploy.space import Genes, SearchSpace

SCHEMA = "apq-deploy/front/1"


@dataclass(frozen=True, eq=False)
class Front:
    """The front, the cheapest network in the first objective first.

    `genes`: (n, n_genes), canonical. `accuracy`: (n,), predicted. `costs`: (n,) of every metric of the table, in
    `scope`. `objectives`: the costs that were traded against accuracy. `hypervolume`: (n,), at the
    generations `checkpoints`, what the front dominates in units of accuracy, every cost counted as a share of its range
    within the budget; `reference` is the corner that it is measured from: the accuracy, negated, then the costs.
    """

    space: SearchSpace
    objectives: tuple[Metric, ...]
    budget: Budget
    scope: Scope
    hardware: str
    hardware_sha256: str
    settings: Mapping[str, Any]
    seed: int
    freeze: tuple[str, ...]
    bits: int | None
    genes: Genes
    accuracy: NDArray[np.float64]
    costs: Mapping[Metric, NDArray[np.float64]]
    reference: tuple[float, ...]
    hypervolume: NDArray[np.float64]
    checkpoints: NDArray[np.int64]
    history: History
    stop_reason: str

    def __len__(self) -> int:
        return len(self.genes)

    def pick(self, budget: Budget) -> int:
        """Index of the most accurate network of the front within a budget.

        Raises: BudgetError if there is none, naming the least that the front has; UserError for a cost that the front
        does not hold.
        """
        fits = np.ones(len(self), np.bool_)
        for name, limit in budget.limits.items():
            if name not in self.costs:
                raise UserError(f"the front holds no {name}; it has {', '.join(self.costs)}")
            fits &= self.costs[name] <= limit
        if not fits.any():
            least = ", ".join(in_words(name, float(self.costs[name].min())) for name in budget.limits)
            raise BudgetError(f"no network of the front meets {budget}: the least on it is {least}; raise the budget")
        return int(np.where(fits, self.accuracy, -np.inf).argmax())

    def result(self, index: int, costs: SpaceCosts) -> SearchResult:
        """One network of the front as a search result, which can be exported like any other.

        Raises: UserError if `costs` are of another space or hardware than the front.
        """
        if costs.space != self.space or costs.hardware_sha256 != self.hardware_sha256:
            raise UserError(
                f"expected costs of the space {self.space.name!r} on {self.hardware}, "
                f"got {costs.space.name!r} on {costs.hardware}"
            )
        genome = self.genes[index]
        return SearchResult(
            space=self.space.name,
            definition=space_definition(self.space),
            algorithm="nsga2",
            settings=dict(self.settings),
            seed=self.seed,
            budget=self.budget,
            scope=self.scope,
            hardware=self.hardware,
            hardware_sha256=self.hardware_sha256,
            freeze=self.freeze,
            bits=self.bits,
            genome=tuple(genome.tolist()),
            arch=self.space.decode(genome),
            predicted_accuracy=float(self.accuracy[index]),
            costs=costs_in_all_scopes(costs, genome),
            history=self.history,
            stop_reason=self.stop_reason,
        )

    def to_csv(self) -> str:
        """A line per network: number, predicted accuracy, costs with their units, genome. Comments begin with `#`."""
        text = io.StringIO()
        text.write(f"# schema: {SCHEMA}\n# space: {self.space.name}\n# hardware: {self.hardware}\n")
        text.write(f"# hardware_sha256: {self.hardware_sha256}\n# scope: {self.scope}\n# budget: {self.budget}\n")
        text.write(f"# objectives: {', '.join(self.objectives)}\n# seed: {self.seed}\n")
        text.write(f"# hypervolume: {self.hypervolume[-1]:.6g}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["number", "predicted_accuracy", *self.costs, "genome"])
        for i, genome in enumerate(self.genes.tolist()):
            values = [f"{self.costs[name][i]:.10g}" for name in self.costs]
            writer.writerow([i, f"{self.accuracy[i]:.8g}", *values, " ".join(map(str, genome))])
        return text.getvalue()

    def save_csv(self, path: str | Path) -> None:
        """Writes the front as CSV, under a temporary name first."""
        with atomic(Path(path)) as temporary:
            temporary.write_text(self.to_csv(), encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries; `from_json` reads them back."""
        return {
            "schema": SCHEMA,
            "space": self.space.name,
            "definition": space_definition(self.space),
            "objectives": list(self.objectives),
            "budget": self.budget.to_json(),
            "scope": self.scope,
            "hardware": self.hardware,
            "hardware_sha256": self.hardware_sha256,
            "settings": dict(self.settings),
            "seed": self.seed,
            "freeze": list(self.freeze),
            "bits": self.bits,
            "genes": self.genes.tolist(),
            "accuracy": self.accuracy.tolist(),
            "costs": {name: values.tolist() for name, values in self.costs.items()},
            "reference": list(self.reference),
            "hypervolume": self.hypervolume.tolist(),
            "checkpoints": self.checkpoints.tolist(),
            "history": self.history.to_json(),
            "stop_reason": self.stop_reason,
        }

    @classmethod
    def from_json(cls, data: Any) -> Front:
        """The front that `to_json` wrote.

        Raises: UserError for another schema, and for missing or wrong entries.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            came = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise UserError(f"expected a front of schema {SCHEMA!r}, got {came!r}; search again")
        try:
            return cls(
                space=SearchSpace.from_dict(data["definition"], str(data["space"])),
                objectives=tuple(data["objectives"]),
                budget=Budget.from_json(data["budget"]),
                scope=data["scope"],
                hardware=str(data["hardware"]),
                hardware_sha256=str(data["hardware_sha256"]),
                settings=dict(data["settings"]),
                seed=int(data["seed"]),
                freeze=tuple(data["freeze"]),
                bits=data["bits"],
                genes=np.array(data["genes"], np.int8),
                accuracy=np.array(data["accuracy"], np.float64),
                costs={name: np.array(values, np.float64) for name, values in data["costs"].items()},
                reference=tuple(float(value) for value in data["reference"]),
                hypervolume=np.array(data["hypervolume"], np.float64),
                checkpoints=np.array(data["checkpoints"], np.int64),
                history=History.from_json(data["history"]),
                stop_reason=str(data["stop_reason"]),
            )
        except UserError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(f"expected a front, got something else ({error}); search again") from None

    def save(self, path: str | Path) -> None:
        """Writes the front as JSON, under a temporary name first."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Front:
        """The front of a file that `save` wrote.

        Raises: UserError if the file cannot be read or is not a front.
        """
        return cls.from_json(read_json(Path(path), SCHEMA))
