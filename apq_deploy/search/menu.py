"""The allowed blocks of every position: exact extremes, and sampling tilted towards cheap networks.

Costs are separable: a network's cost is a sum over its blocks. So the best network of any weighted sum of costs is
found position by position, and a Gibbs distribution over networks factorises over positions given the depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.search.choices import Choices
from apq_deploy.search.costs import SpaceCosts
from apq_deploy.space import GENES_PER_BLOCK, KERNEL_GENE, Genes


@dataclass(frozen=True)
class Tilt:
    """A distribution over networks, uniform choice by choice but for the factor exp(-weights . costs).

    `blocks`: cumulative probabilities of the allowed blocks, one array per group of equal positions. `depths`:
    probabilities of each stage's depth choices. `mean`: (n_metrics,), the expected costs.
    """

    blocks: tuple[NDArray[np.float64], ...]
    depths: tuple[NDArray[np.float64], ...]
    mean: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Menu:
    """Rows of a cost table that a search may choose from.

    `groups`: rows of `costs.rows`, ascending, one array per group of positions with equal choices; `group_of`:
    (n_blocks,), each position's group; `depth_choices`: the allowed depth genes of every stage.
    """

    costs: SpaceCosts
    choices: Choices
    groups: tuple[NDArray[np.int64], ...]
    group_of: tuple[int, ...]
    depth_choices: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, costs: SpaceCosts, choices: Choices | None = None) -> Menu:
        """The menu of the choices, or of the whole space.

        Raises: UserError if the choices belong to another space, or leave a position without a block that exists.
        """
        space = costs.space
        choices = choices or Choices.everything(space)
        if choices.space != space:
            raise UserError(f"expected choices of the space {space.name!r}, got those of {choices.space.name!r}")
        groups: dict[bytes, tuple[int, NDArray[np.int64]]] = {}
        group_of = []
        per_block = choices.allowed[space.n_stages :].reshape(space.n_blocks, GENES_PER_BLOCK, -1)
        for position, allowed in enumerate(per_block):
            key = int(costs.offsets[position]).to_bytes(8, "big") + allowed.tobytes()
            if key not in groups:
                axes = [np.flatnonzero(values) for values in allowed]
                grid = sum(
                    np.multiply.outer(axis, 1).reshape([-1 if i == j else 1 for j in range(GENES_PER_BLOCK)])
                    * costs.strides[position, i]
                    for i, axis in enumerate(axes)
                )
                rows = costs.offsets[position] + np.ravel(grid)
                rows = rows[np.isfinite(costs.rows[rows]).all(axis=1)]
                if not len(rows):
                    raise UserError(f"no allowed block at {space.positions[position].name}; freeze less or other bits")
                groups[key] = (len(groups), rows)
            group_of.append(groups[key][0])
        depths = tuple(np.flatnonzero(choices.allowed[stage]) for stage in range(space.n_stages))
        return cls(costs, choices, tuple(rows for _, rows in groups.values()), tuple(group_of), depths)

    @cached_property
    def group_costs(self) -> tuple[NDArray[np.float64], ...]:
        """Costs of the blocks of every group, (choices, n_metrics) each."""
        return tuple(self.costs.rows[rows] for rows in self.groups)

    @cached_property
    def group_chances(self) -> tuple[NDArray[np.float64], ...]:
        """How likely `Choices.sample` is to draw each block of every group: kernels evenly, then the rest evenly."""
        chances = []
        for group, rows in enumerate(self.groups):
            position = self.group_of.index(group)
            kernel = (rows - self.costs.offsets[position]) // self.costs.strides[position, KERNEL_GENE]
            count = np.bincount(kernel)
            chances.append(1.0 / (count[kernel] * np.count_nonzero(count)))
        return tuple(chances)

    @cached_property
    def stage_positions(self) -> tuple[NDArray[np.int64], ...]:
        stages = self.costs.space.stage_of_block
        return tuple(np.flatnonzero(stages == stage) for stage in range(self.costs.space.n_stages))

    @cached_property
    def depth_values(self) -> tuple[NDArray[np.int64], ...]:
        """Numbers of blocks behind `depth_choices`."""
        stages = self.costs.space.stages
        return tuple(np.array(s.depths)[allowed] for s, allowed in zip(stages, self.depth_choices, strict=True))

    # Extremes --------------------------------------------------------------------------------------------------------

    def least(self, weights: NDArray[np.float64]) -> tuple[Genes, float]:
        """The genome (n_genes,) of least weighted cost and that cost, exactly.

        `weights`: (n_metrics,); negative ones look for the most. Per position the best block, per stage the best depth
        over the sums of its first blocks; unused positions get their best block too.
        """
        space = self.costs.space
        best, value = [], []
        for costs in self.group_costs:
            weighted = costs @ weights
            best.append(int(weighted.argmin()))
            value.append(float(weighted[best[-1]]))
        genes = np.zeros((1, space.n_genes), np.int8)
        depths, blocks = space.split(genes)
        for position, group in enumerate(self.group_of):
            blocks[0, position] = self.costs.block_genes(position, self.groups[group][best[group], None])[0]
        total = float(self.costs.constant @ weights)
        for stage, positions in enumerate(self.stage_positions):
            sums = np.cumsum([value[self.group_of[p]] for p in positions])[self.depth_values[stage] - 1]
            depths[0, stage] = self.depth_choices[stage][int(sums.argmin())]
            total += float(sums.min())
        return genes[0], total

    def minimum(self, name: str) -> Genes:
        """The canonical genome of the least that any network costs in one metric, (n_genes,)."""
        return self._extreme(name, 1.0)

    def maximum(self, name: str) -> Genes:
        """The canonical genome of the most that any network costs in one metric, (n_genes,)."""
        return self._extreme(name, -1.0)

    def _extreme(self, name: str, sign: float) -> Genes:
        weights = np.zeros(len(self.costs.metrics))
        weights[self.costs.column(name)] = sign
        return self.costs.space.canonical(self.least(weights)[0][None])[0]

    # Tilted sampling -------------------------------------------------------------------------------------------------

    def tilt(self, weights: NDArray[np.float64]) -> Tilt:
        """The distribution whose networks are likely as exp(-weights . costs) times their chance under `sample`.

        Of all distributions with the same mean costs it is the one nearest to random sampling (in Kullback-Leibler
        divergence), so the most diverse one. Zero weights give random sampling itself.
        """
        cumulative, log_mean, means = [], [], []
        for costs, before in zip(self.group_costs, self.group_chances, strict=True):
            exponent = -(costs @ weights)
            top = exponent.max()
            factor = before * np.exp(exponent - top)
            sums = np.cumsum(factor)
            cumulative.append(sums / sums[-1])
            log_mean.append(top + np.log(sums[-1]))
            means.append(factor @ costs / sums[-1])
        depths, total = [], self.costs.constant.copy()
        for stage, positions in enumerate(self.stage_positions):
            groups = [self.group_of[p] for p in positions]
            logits = np.cumsum([log_mean[g] for g in groups])[self.depth_values[stage] - 1]
            chance = np.exp(logits - logits.max())
            chance /= chance.sum()
            partial = np.cumsum([means[g] for g in groups], axis=0)[self.depth_values[stage] - 1]
            total += chance @ partial
            depths.append(chance)
        return Tilt(tuple(cumulative), tuple(depths), total)

    def draw(self, tilt: Tilt, n: int, rng: np.random.Generator) -> Genes:
        """Networks of a tilted distribution, (n, n_genes); unused positions are drawn like the used ones."""
        space = self.costs.space
        genes = np.empty((n, space.n_genes), np.int8)
        depths, blocks = space.split(genes)
        for stage, chance in enumerate(tilt.depths):
            depths[:, stage] = rng.choice(self.depth_choices[stage], size=n, p=chance)
        for position, group in enumerate(self.group_of):
            pick = np.searchsorted(tilt.blocks[group], rng.random(n), side="right")
            rows = self.groups[group][np.minimum(pick, len(self.groups[group]) - 1)]
            blocks[:, position] = self.costs.block_genes(position, rows)
        return genes
