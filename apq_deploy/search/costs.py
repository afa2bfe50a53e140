"""Costs of whole populations as gathers from per-block tables, exact to the sum over the layers of each subnet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.space import GENES_PER_BLOCK, Genes, Position, SearchSpace
from apq_deploy.workload import ALL_WIDTHS, Entry, NamedLayer, Widths, block_layers, fixed_layers, space_entries
from hwmodels import ConvLayer, CostTable, Hardware, Precision, build_table

Metric: TypeAlias = Literal["latency_ms", "energy_mj", "bitops_g", "size_kb", "macs_m"]
METRICS: tuple[Metric, ...] = get_args(Metric)
# What a sum of latency and energy covers: `full` every layer, `apq` all but the space's `left_out_of_sums`, as the sums
# behind APQ's released table. BitOps, size and MACs cover every layer in both.
Scope: TypeAlias = Literal["full", "apq"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# Relative difference of two float64 sums of the same layers in different orders.
ROUNDING = 1e-12
_SCOPED: tuple[Metric, ...] = ("latency_ms", "energy_mj")


def stored_weight_bytes(layer: ConvLayer, weight_bits: int) -> int:
    """Bytes that a layer's weights take in the exported ONNX file.

    Up to 4 bits are stored as INT4, two per byte; 5 to 8 bits as INT8, one byte each: 6 bits save nothing in the file.
    Biases, scales and names are not counted.
    """
    return -(-layer.weights // 2) if weight_bits <= 4 else layer.weights


def layer_vectors(entries: Sequence[Entry], table: CostTable) -> NDArray[np.float64]:
    """Costs of layers in the order of METRICS, (n, 5); energy is NaN where the table does not know all of it.

    Raises: MissingEntry for a layer that the table does not hold.
    """
    known = table.lookup(entries)
    energy = np.full(len(entries), np.nan) if known.energy_mj is None else known.energy_mj
    counted = np.array(
        [
            (
                layer.bitops(precision) / 1e9,
                stored_weight_bytes(layer, precision.weight_bits) / 1e3,
                layer.macs / 1e6,
            )
            for layer, precision in entries
        ]
    )
    return np.column_stack([known.latency_ms, energy, counted])


@dataclass(frozen=True, eq=False)
class SpaceCosts:
    """What every block of a space costs, wherever it stands.

    `rows`: (1 + choices, n_metrics), the cost of a whole block (its three convolutions) for one kernel size, channel
    count and four bit widths; row 0 is a skipped block. Positions of equal shape share their rows. A block with a
    forbidden depthwise convolution, or with bits that are not among the hardware's `widths`, costs infinity.
    `offsets`: (n_blocks,), the first row of every position. `constants`: what stem, first block, head and classifier
    cost, (n_metrics,) for each scope. `hardware` and `hardware_sha256` name the hardware behind the figures.
    `measured`: whether layers were timed; `interpolated`: those whose latency was fitted to the timed ones.
    `no_energy`: why energy is not among `metrics`.
    """

    space: SearchSpace
    rows: NDArray[np.float64]
    offsets: NDArray[np.int64]
    constants: Mapping[Scope, NDArray[np.float64]]
    metrics: tuple[Metric, ...] = METRICS
    scope: Scope = "full"
    hardware: str = ""
    hardware_sha256: str = ""
    widths: Widths = ALL_WIDTHS
    interpolated: frozenset[Entry] = frozenset()
    measured: bool = False
    no_energy: str = ""

    @classmethod
    def from_table(cls, space: SearchSpace, table: CostTable, scope: Scope = "full") -> SpaceCosts:
        """Costs of a space by a table; they are for as many images as the table's batch.

        Energy is left out of the metrics if the table does not know it for every layer.

        Raises: UserError if the space does not have the scope; MissingEntry for a layer that the table does not hold.
        """
        fixed = [item for part in fixed_layers(space) for item in part]
        shapes = {_shape(position): position for position in space.positions}
        blocks = {shape: _block_entries(space, position) for shape, position in shapes.items()}
        widths = Widths.of(table.description)
        entries = space_entries(space, widths)
        vectors = layer_vectors(entries, table)
        # What the hardware does not accept stands behind the last row of the vectors, where costs are infinite.
        index = defaultdict(lambda: len(entries), {entry: i for i, entry in enumerate(entries)})
        known: NDArray[np.bool_] = np.all(np.isfinite(vectors), axis=0)
        vectors = vectors[:, known]
        starts, pieces, start = {}, [np.zeros((1, vectors.shape[1]))], 1
        for shape, (pointwise, depthwise) in blocks.items():
            piece = _block_rows(space, shapes[shape], pointwise, depthwise, vectors, index)
            starts[shape] = start
            start += len(piece)
            pieces.append(piece)
        metrics: tuple[Metric, ...] = tuple(name for name, there in zip(METRICS, known, strict=True) if there)
        costs = cls(
            space,
            np.concatenate(pieces),
            np.array([starts[_shape(position)] for position in space.positions]),
            _constants(space, fixed, vectors, index, metrics),
            metrics,
            hardware=table.hardware_name,
            hardware_sha256=table.sha256,
            widths=widths,
            interpolated=frozenset(e for e in entries if table[e].source == "interpolated"),
            measured=any(table[e].source == "measured" for e in entries),
            no_energy="" if "energy_mj" in metrics else _no_energy(table, entries),
        )
        return costs.in_scope(scope)

    @classmethod
    def from_hardware(cls, space: SearchSpace, hardware: Hardware, scope: Scope = "full") -> SpaceCosts:
        """Costs of a space by a hardware model that is asked for every layer of the space."""
        return cls.from_table(space, build_table(hardware, space_entries(space, Widths.of(hardware.describe()))), scope)

    def in_scope(self, scope: Scope) -> SpaceCosts:
        """The same costs with the sums of another scope.

        Raises: UserError if the space leaves nothing out of its sums, so has the scope `full` only.
        """
        if scope not in self.constants:
            raise UserError(
                f"space {self.space.name!r} has the scope {', '.join(self.constants)}, got {scope!r}; "
                "a space gets the scope 'apq' by `left_out_of_sums`"
            )
        return self if scope == self.scope else replace(self, scope=scope)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        return tuple(self.constants)

    @property
    def constant(self) -> NDArray[np.float64]:
        """What every subnet costs besides its blocks in this scope, (n_metrics,)."""
        return self.constants[self.scope]

    def column(self, name: str) -> int:
        """Where a metric stands among `metrics`.

        Raises: UserError for a metric that does not exist, or energy that nobody measured.
        """
        if name in self.metrics:
            return self.metrics.index(name)  # type: ignore[arg-type]
        if name in METRICS:
            raise UserError(f"{self.no_energy or f'these costs hold no {name}'}, or budget another cost")
        raise UserError(f"unknown cost {name!r}; known are {', '.join(self.metrics)}")

    def one(self, name: str, genome: Genes) -> float:
        """One cost of one genome."""
        return float(self.totals(np.asarray(genome)[None])[0, self.column(name)])

    @cached_property
    def strides(self) -> NDArray[np.int64]:
        """How far one step of each gene of a block moves in `rows`, (n_blocks, 6)."""
        sizes = self.space.cardinalities[self.space.n_stages :].reshape(-1, GENES_PER_BLOCK)
        tails = np.cumprod(sizes[:, ::-1], axis=1)[:, ::-1]
        return np.concatenate([tails[:, 1:], np.ones((len(sizes), 1), np.int64)], axis=1)

    def block_rows(self, blocks: Genes) -> NDArray[np.int64]:
        """Row of every block of block genes (n, n_blocks, 6), whether it is active or not, (n, n_blocks)."""
        flat = blocks.reshape(len(blocks), self.space.n_blocks * GENES_PER_BLOCK).astype(np.float64)
        return self.offsets + (flat @ self._stride_matrix).astype(np.int64)  # exact: whole numbers far below 2^53

    @cached_property
    def _stride_matrix(self) -> NDArray[np.float64]:
        matrix = np.zeros((self.space.n_blocks, GENES_PER_BLOCK, self.space.n_blocks))
        matrix[np.arange(self.space.n_blocks), :, np.arange(self.space.n_blocks)] = self.strides
        return matrix.reshape(-1, self.space.n_blocks)

    def block_genes(self, position: int, rows: NDArray[np.int64]) -> Genes:
        """The six genes behind rows of one position, (n, 6)."""
        sizes = self.space.cardinalities[self.space.n_stages :].reshape(-1, GENES_PER_BLOCK)[position]
        return (((rows - self.offsets[position])[:, None] // self.strides[position]) % sizes).astype(np.int8)

    def totals(self, genes: Genes) -> NDArray[np.float64]:
        """Costs of genomes in the order of `metrics`, (n, n_metrics)."""
        used = self.used_rows(genes)
        return np.stack([column[used].sum(axis=1) for column in self._columns], axis=1) + self.constant

    def fits(self, genes: Genes, bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which genomes keep `bounds` (n_metrics,), infinity where there is no limit, (n,): none of infinite cost.

        A sum may exceed its bound by the rounding of float64, so that a network of 0.3 ms meets a bound of 0.3 ms.
        """
        return self.rows_fit(self.used_rows(genes), bounds)

    def rows_fit(self, used: NDArray[np.int64], bounds: NDArray[np.float64]) -> NDArray[np.bool_]:
        """`fits` for the used rows of genomes, (n,)."""
        # crossing may bring a block into use that nobody chose, at a width that the hardware does not have
        kept = np.isfinite(self._columns[0][used].sum(axis=1)) if self._has_gaps else np.ones(len(used), np.bool_)
        for metric in np.flatnonzero(np.isfinite(bounds)):
            sums = self._columns[metric][used].sum(axis=1) + self.constant[metric]
            kept &= sums <= bounds[metric] * (1.0 + ROUNDING)
        return kept

    def used_rows(self, genes: Genes) -> NDArray[np.int64]:
        """Row of every block, 0 where there is none, (n, n_blocks): equal for equal networks only."""
        depths, blocks = self.space.split(genes)
        depth_of_block = depths[:, self.space.stage_of_block]
        active = self._holds_block[np.arange(self.space.n_blocks), depth_of_block]
        return np.where(active, self.block_rows(blocks), 0)

    @cached_property
    def _holds_block(self) -> NDArray[np.bool_]:
        """Whether a position is used at each depth choice of its stage, (n_blocks, most depth choices)."""
        space = self.space
        holds = np.zeros((space.n_blocks, max(len(stage.depths) for stage in space.stages)), np.bool_)
        for i, position in enumerate(space.positions):
            depths = space.stages[position.stage].depths
            holds[i, : len(depths)] = position.index < np.array(depths)
        return holds

    @cached_property
    def _has_gaps(self) -> bool:
        return bool(np.isinf(self.rows).any())

    @cached_property
    def _columns(self) -> tuple[NDArray[np.float64], ...]:
        return tuple(np.ascontiguousarray(column) for column in self.rows.T)

    def gather(self, genes: Genes) -> dict[Metric, NDArray[np.float64]]:
        """Costs of genomes by name, (n,) each."""
        totals = self.totals(genes)
        return {name: totals[:, i] for i, name in enumerate(self.metrics)}

    def of(self, genome: Genes) -> dict[Metric, float]:
        """Costs of one genome (n_genes,) by name, to twelve digits: what float64 sums of layers agree on."""
        totals = self.totals(np.asarray(genome)[None])[0]
        return {name: float(f"{total:.12g}") for name, total in zip(self.metrics, totals, strict=True)}


def _no_energy(table: CostTable, entries: Sequence[Entry]) -> str:
    """Why a table cannot tell the energy of every network, and what to do about it."""
    missing = sum(table[entry].energy_mj is None for entry in entries)
    if missing < len(entries):
        return (
            f"energy is missing for {missing} of {len(entries)} layers in the table of {table.hardware_name}; measure "
            "it for every layer"
        )
    where = "its measurements" if table.description.get("model") == "measured" else "its TOML"
    return f"hardware {table.hardware_name} has no energies; give them in {where}"


def _shape(position: Position) -> tuple[Any, ...]:
    return (position.in_channels, position.out_channels, position.in_size, position.stride, position.channels)


def _block_entries(space: SearchSpace, position: Position) -> tuple[list[tuple[Entry, Entry]], list[Entry | None]]:
    """The pointwise pairs over (channels, weight bits, act bits) and the depthwise over (kernels, channels, bits)."""
    precisions = [Precision(weight, act) for weight in space.bits for act in space.bits]
    pointwise: list[tuple[Entry, Entry]] = []
    for mid in position.channels:
        expand, _, project = block_layers(position, mid, space.kernel_sizes[0])
        pointwise += [((expand, precision), (project, precision)) for precision in precisions]
    depthwise: list[Entry | None] = []
    for k, kernel_size in enumerate(space.kernel_sizes):
        for mid in position.channels:
            layer = block_layers(position, mid, kernel_size)[1]
            for precision in precisions:
                exists = space.allowed_depthwise[k, space.bits.index(precision.act_bits)]
                depthwise.append((layer, precision) if exists else None)
    return pointwise, depthwise


def _block_rows(
    space: SearchSpace,
    position: Position,
    pointwise: list[tuple[Entry, Entry]],
    depthwise: list[Entry | None],
    vectors: NDArray[np.float64],
    index: Mapping[Entry, int],
) -> NDArray[np.float64]:
    """Costs of all blocks of one shape, (kernels * channels * bits^4, n_metrics)."""
    n_kernels, n_channels, n_bits = len(space.kernel_sizes), len(position.channels), len(space.bits)
    padded = np.concatenate([vectors, np.full((1, vectors.shape[1]), np.inf)])
    pairs = np.array([[index[expand], index[project]] for expand, project in pointwise])
    point = padded[pairs].sum(axis=1).reshape(1, n_channels, n_bits, n_bits, 1, 1, -1)
    chosen = np.array([len(vectors) if entry is None else index[entry] for entry in depthwise])
    deep = padded[chosen].reshape(n_kernels, n_channels, 1, 1, n_bits, n_bits, -1)
    return (point + deep).reshape(-1, vectors.shape[1])


def _constants(
    space: SearchSpace,
    fixed: list[NamedLayer],
    vectors: NDArray[np.float64],
    index: Mapping[Entry, int],
    metrics: tuple[Metric, ...],
) -> dict[Scope, NDArray[np.float64]]:
    """What stem, first block, head and classifier cost in every scope of the space."""
    costs = vectors[[index[item.layer, item.precision] for item in fixed]]
    constants: dict[Scope, NDArray[np.float64]] = {"full": costs.sum(axis=0)}
    if space.left_out_of_sums:
        left_out = np.array([item.part in space.left_out_of_sums for item in fixed])
        scoped = np.array([name in _SCOPED for name in metrics])
        constants["apq"] = np.where(left_out[:, None] & scoped, 0.0, costs).sum(axis=0)
    return constants
