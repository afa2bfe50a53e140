"""Why a network costs what it costs: every block, every alternative to what was chosen, and bits that do not pay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from apq_deploy.search.budget import in_words, metric_words
from apq_deploy.search.costs import Metric, SpaceCosts
from apq_deploy.space import CHANNEL_GENE, GENES_PER_BLOCK, KERNEL_GENE, Genes
from apq_deploy.workload import arch_layers

# A width pays if it saves at least this share of what the next wider one costs.
THRESHOLD = 0.02
CHOICE_NAMES = (
    "kernel_size",
    "mid_channels",
    "pointwise_weight",
    "pointwise_act",
    "depthwise_weight",
    "depthwise_act",
)
BIT_CHOICES = CHOICE_NAMES[CHANNEL_GENE + 1 :]

CostMap: TypeAlias = Mapping[Metric, float]


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another value of one choice, all others held: what it would add to each cost (negative: save)."""

    value: int
    added: CostMap


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a block: what was chosen, and the alternatives that exist.

    `wasted_on` names the costs in which a bit width does not pay: the next wider one would cost hardly more, so the
    accuracy that it gives up buys nothing there.
    """

    name: str
    value: int
    alternatives: tuple[Alternative, ...]
    wasted_on: tuple[Metric, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockAccount:
    """One block of the network: its costs, their shares of the network's, and its choices."""

    name: str
    costs: CostMap
    shares: CostMap
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class StageAccount:
    """The depth of one stage; a longer stage is counted with its quickest blocks."""

    name: str
    depth: int
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class WidthAccount:
    """The network with all its blocks at one bit width, where the hardware has it, and what that saves.

    `saved` is the share of each cost that is saved against the next wider width (empty for the widest). Costs of zero,
    as of energies that nobody gave, are in neither.
    """

    bits: int
    costs: CostMap
    saved: CostMap


@dataclass(frozen=True, slots=True)
class Explanation:
    """The accounts of one network, in the scope of the costs. `layers`: how many; `interpolated`: of these, fitted."""

    scope: str
    hardware: str
    costs: CostMap
    fixed: CostMap
    threshold: float
    blocks: tuple[BlockAccount, ...]
    stages: tuple[StageAccount, ...]
    widths: tuple[WidthAccount, ...]
    layers: int = 0
    interpolated: int = 0
    measured: bool = False

    def does_not_pay(self) -> list[tuple[int, Metric, float]]:
        """Bit widths that save less than the threshold over the whole network: (bits, cost, share saved)."""
        return [
            (width.bits, name, share)
            for width in self.widths
            for name, share in width.saved.items()
            if share < self.threshold and name in ("latency_ms", "energy_mj", "size_kb")
        ]

    def sentences(self) -> list[str]:
        """What `does_not_pay` found, in words."""
        wider = {width.bits: following.bits for width, following in zip(self.widths, self.widths[1:], strict=False)}
        lines = []
        for bits, name, share in self.does_not_pay():
            change = f"saves {100 * share:.1f} %" if share > 0 else "saves nothing"
            if share < -1e-9:
                change = f"costs {-100 * share:.1f} % more"
            where = "in the file" if name == "size_kb" else f"on {self.hardware}"
            lines.append(
                f"{bits} bits do not pay in {metric_words(name)} {where}: "
                f"everywhere in this network, {bits} {change} against {wider[bits]}"
            )
        wasted = [
            (block.name, choice)
            for block in self.blocks
            for choice in block.choices
            if "latency_ms" in choice.wasted_on
        ]
        if wasted:
            names = ", ".join(f"{block} {choice.name} at {choice.value}" for block, choice in wasted[:4])
            more = f" and {len(wasted) - 4} more" if len(wasted) > 4 else ""
            lines.append(f"the next wider bits would cost hardly any latency at {names}{more}")
        if self.interpolated:
            lines.append(
                f"{self.interpolated} of {self.layers} layers ({100 * self.interpolated / self.layers:.0f} %) have an "
                f"interpolated latency: nobody measured it on {self.hardware}"
            )
        if self.measured:
            lines.append(
                f"the latency on {self.hardware} is a sum of layers that were timed alone; a network also adds, pools "
                "and calls its layers, which takes longer"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries, with the sentences."""
        return {**asdict(self), "sentences": self.sentences()}


def explain(costs: SpaceCosts, genome: Genes, threshold: float = THRESHOLD) -> Explanation:
    """The accounts of a genome (n_genes,); a width does not pay if it saves less than the share `threshold`."""
    space = costs.space
    genes = space.canonical(np.asarray(genome)[None])
    totals = costs.totals(genes)[0]
    blocks, active = space.split(genes)[1][0], space.active(genes)[0]
    layers = [(each.layer, each.precision) for each in arch_layers(space, space.decode(genes[0]))]
    accounts = [
        _block_account(costs, position, blocks[position], totals, threshold)
        for position in np.flatnonzero(active).tolist()
    ]
    return Explanation(
        costs.scope,
        costs.hardware,
        costs.of(genes[0]),
        _named(costs, costs.constant),
        threshold,
        tuple(accounts),
        tuple(_stage_account(costs, genes, stage) for stage in range(space.n_stages)),
        _width_accounts(costs, genes),
        len(layers),
        sum(entry in costs.interpolated for entry in layers),
        costs.measured,
    )


def _share(part: np.ndarray, whole: np.ndarray, of_nothing: float) -> np.ndarray:
    """part / whole, both (n_metrics,); `of_nothing` where the whole costs nothing."""
    return np.divide(part, whole, out=np.full(len(whole), of_nothing), where=whole != 0)


def _named(costs: SpaceCosts, vector: np.ndarray) -> dict[Metric, float]:
    return dict(zip(costs.metrics, vector.tolist(), strict=True))


def _values(costs: SpaceCosts, position: int, gene: int) -> tuple[int, ...]:
    space = costs.space
    if gene == KERNEL_GENE:
        return space.kernel_sizes
    return space.positions[position].channels if gene == CHANNEL_GENE else space.bits


def _block_account(
    costs: SpaceCosts, position: int, block: Genes, totals: np.ndarray, threshold: float
) -> BlockAccount:
    row = int(costs.offsets[position] + block @ costs.strides[position])
    here = costs.rows[row]
    choices = []
    for gene in range(GENES_PER_BLOCK):
        values = _values(costs, position, gene)
        rows = row + (np.arange(len(values)) - block[gene]) * costs.strides[position, gene]
        added = costs.rows[rows] - here
        exists = np.isfinite(added).all(axis=1)
        others = [i for i in np.flatnonzero(exists) if i != block[gene]]
        wasted: tuple[Metric, ...] = ()
        following = block[gene] + 1
        if gene > CHANNEL_GENE and following < len(values) and exists[following]:
            # against the block as it would be with the wider width
            share = _share(added[following], here + added[following], np.inf)
            named = zip(costs.metrics, share.tolist(), strict=True)
            wasted = tuple(name for name, value in named if value < threshold and name not in ("bitops_g", "macs_m"))
        choices.append(
            Choice(
                CHOICE_NAMES[gene],
                values[block[gene]],
                tuple(Alternative(values[i], _named(costs, added[i])) for i in others),
                wasted,
            )
        )
    name = costs.space.positions[position].name
    return BlockAccount(name, _named(costs, here), _named(costs, _share(here, totals, 0.0)), tuple(choices))


def _stage_account(costs: SpaceCosts, genes: Genes, stage: int) -> StageAccount:
    space = costs.space
    depths = space.stages[stage].depths
    chosen = int(genes[0, stage])
    filled = genes.copy()
    blocks, active = space.split(filled)[1][0], space.active(filled)[0]
    for position in np.flatnonzero((space.stage_of_block == stage) & ~active):
        size = int(space.cardinalities[space.n_stages :].reshape(-1, GENES_PER_BLOCK)[position].prod())
        rows = costs.offsets[position] + np.arange(size)
        quickest = rows[int(costs.rows[rows, costs.column("latency_ms")].argmin()), None]
        blocks[position] = costs.block_genes(int(position), quickest)[0]
    trial = np.repeat(filled, len(depths), axis=0)
    trial[:, stage] = np.arange(len(depths))
    added = costs.totals(trial) - costs.totals(filled)
    others = [i for i in range(len(depths)) if i != chosen]
    return StageAccount(
        f"stage{stage + 1}",
        depths[chosen],
        tuple(Alternative(depths[i], _named(costs, added[i])) for i in others),
    )


def _width_accounts(costs: SpaceCosts, genes: Genes) -> tuple[WidthAccount, ...]:
    """The network at each width that the hardware accepts for weights and activations alike.

    A forbidden depthwise convolution keeps the next wider activations.
    """
    space, accepted = costs.space, costs.widths
    widths = [i for i, bits in enumerate(space.bits) if accepted.accept_weight(bits) and accepted.accept_act(bits)]
    totals = []
    for width in widths:
        trial = genes.copy()
        blocks = space.split(trial)[1][0]
        blocks[:, CHANNEL_GENE + 1 :] = width
        for block in blocks:
            allowed = np.flatnonzero(space.allowed_depthwise[block[KERNEL_GENE]])
            block[-1] = allowed[min(int(np.searchsorted(allowed, width)), len(allowed) - 1)]
        totals.append(costs.totals(trial)[0])
    accounts = []
    for place, width in enumerate(widths):
        wider = totals[place + 1] if place + 1 < len(totals) else None
        shares: CostMap = {} if wider is None else _named(costs, 1.0 - _share(totals[place], wider, -np.inf))
        saved: dict[Metric, float] = {
            name: share for name, share in shares.items() if name != "macs_m" and np.isfinite(share)
        }
        spent: dict[Metric, float] = {name: cost for name, cost in _named(costs, totals[place]).items() if cost > 0}
        accounts.append(WidthAccount(space.bits[width], spent, saved))
    return tuple(accounts)


def explain_lines(explanation: Explanation) -> list[str]:
    """The accounts as text: a line per block with its choices and its share, then bits that do not pay."""
    lines = []
    for block in explanation.blocks:
        shares = ", ".join(
            f"{in_words(name, block.costs[name])} ({100 * block.shares[name]:.1f} %)"
            for name in ("latency_ms", "energy_mj", "size_kb")
            if name in block.costs
        )
        chosen = " ".join(f"{choice.name}={choice.value}" for choice in block.choices)
        lines.append(f"{block.name}: {chosen}: {shares}")
        for choice in block.choices:
            offers = "; ".join(
                f"{other.value}: {other.added['latency_ms']:+.3g} ms"
                + (f" {other.added['energy_mj']:+.3g} mJ" if "energy_mj" in other.added else "")
                + f" {other.added['size_kb']:+.3g} kB"
                for other in _nearest(choice)
            )
            if offers:
                lines.append(f"  {choice.name} {choice.value} -> {offers}")
    return lines + explanation.sentences()


def _nearest(choice: Choice) -> list[Alternative]:
    """The next smaller and the next larger alternative of channels, all alternatives of other choices."""
    if choice.name != "mid_channels":
        return list(choice.alternatives)
    smaller = [other for other in choice.alternatives if other.value < choice.value][-1:]
    larger = [other for other in choice.alternatives if other.value > choice.value][:1]
    return smaller + larger
