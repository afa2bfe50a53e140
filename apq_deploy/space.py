"""Search spaces: read from TOML, sampled, encoded and decoded as whole gene arrays.

A genome is one row of integers: the depth choice of every stage, then six genes for every block position (kernel size,
middle channels, and the bit widths of pointwise weight, pointwise activation, depthwise weight, depthwise activation).
Every gene is an index into its list of choices. Positions beyond a stage's depth keep their genes, inactive.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_deploy.arch import Arch, Block, BlockBits, Stage
from apq_deploy.encoding import encode_genes
from apq_deploy.errors import UserError
from apq_deploy.files import read_toml

GENES_PER_BLOCK = 6
KERNEL_GENE, CHANNEL_GENE = 0, 1
BIT_GENES = ("pointwise_weight", "pointwise_act", "depthwise_weight", "depthwise_act")
SCHEMA = 1
LARGEST_SIZE, DEEPEST_STAGE = 2**14, 64
MOST_CHOICES = 127
"""Of one gene, which is an int8."""
# Parts of a network that a space may leave out of its sums of latency and energy, as APQ's released table does.
OPTIONAL_PARTS = ("first_block", "classifier")

Genes = NDArray[np.int8]


@dataclass(frozen=True)
class StageChoices:
    """One resolution of the space: its width, its stride and how many blocks it may have."""

    out_channels: int
    stride: int
    depths: tuple[int, ...]


@dataclass(frozen=True)
class DepthwiseRule:
    """A depthwise convolution that the space forbids."""

    kernel_size: int
    act_bits: int


@dataclass(frozen=True)
class Position:
    """Where a block may stand: what reaches it, whatever is chosen elsewhere."""

    stage: int
    index: int
    in_channels: int
    out_channels: int
    in_size: int
    stride: int
    channels: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"stage{self.stage + 1}.block{self.index + 1}"

    @property
    def has_residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def out_size(self) -> int:
        return (self.in_size - 1) // self.stride + 1


@dataclass(frozen=True)
class SearchSpace:
    """A MobileNetV2-style search space. Source: APQ (CVPR 2020), section 3.1.

    Raises: UserError if the choices contradict each other.
    """

    name: str
    input_channels: int
    input_size: int
    num_classes: int
    stem_channels: int
    head_channels: int
    kernel_sizes: tuple[int, ...]
    expand_min: int
    expand_max: int
    channel_step: int
    bits: tuple[int, ...]
    fixed_bits: int
    stages: tuple[StageChoices, ...]
    first_block_channels: int | None = None
    forbidden_depthwise: tuple[DepthwiseRule, ...] = ()
    left_out_of_sums: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def require(condition: bool, expected: str, came: object) -> None:
            if not condition:
                raise UserError(f"search space {self.name!r}: expected {expected}, got {came}")

        for name in (
            "input_channels", "input_size", "num_classes", "stem_channels", "head_channels", "expand_min",
            "expand_max", "channel_step",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, f"a positive {name}", getattr(self, name))
            require(getattr(self, name) <= LARGEST_SIZE, f"{name} of at most {LARGEST_SIZE}", getattr(self, name))
        require(self.expand_min <= self.expand_max, "expand_min <= expand_max", (self.expand_min, self.expand_max))
        for name in ("kernel_sizes", "bits"):
            values = getattr(self, name)
            require(bool(values) and list(values) == sorted(set(values)), f"{name} ascending and distinct", values)
        require(
            all(1 <= size <= 7 and size % 2 for size in self.kernel_sizes),
            "kernel_sizes out of 1, 3, 5, 7",
            self.kernel_sizes,
        )
        require(all(2 <= width <= 8 for width in self.bits), "bits from 2 to 8", self.bits)
        require(2 <= self.fixed_bits <= 8, "fixed_bits from 2 to 8", self.fixed_bits)
        require(bool(self.stages), "at least one [[stages]] table", "none")
        for number, stage in enumerate(self.stages, 1):
            require(
                1 <= stage.out_channels <= LARGEST_SIZE,
                f"out_channels from 1 to {LARGEST_SIZE} in stage {number}",
                stage.out_channels,
            )
            require(stage.stride in (1, 2), f"stride 1 or 2 in stage {number}", stage.stride)
            require(
                bool(stage.depths)
                and list(stage.depths) == sorted(set(stage.depths))
                and 1 <= stage.depths[0] <= stage.depths[-1] <= DEEPEST_STAGE,
                f"depths ascending from at least 1 to at most {DEEPEST_STAGE} in stage {number}",
                stage.depths,
            )
        first = self.stem_channels if self.first_block_channels is None else self.first_block_channels
        require(1 <= first <= LARGEST_SIZE, f"first_block_channels from 1 to {LARGEST_SIZE}", first)
        for width in (first, *(stage.out_channels for stage in self.stages)):
            choices = (self.expand_max - self.expand_min) * width // self.channel_step + 1
            require(
                choices <= MOST_CHOICES,
                f"at most {MOST_CHOICES} widths in the middle of a block of {width} channels (a larger channel_step "
                "gives fewer)",
                choices,
            )
        for rule in self.forbidden_depthwise:
            left = [width for width in self.bits if (rule.kernel_size, width) not in self._forbidden]
            require(bool(left), f"an allowed act_bits for kernel_size {rule.kernel_size}", "none")
        for part in self.left_out_of_sums:
            require(part in OPTIONAL_PARTS, f"left_out_of_sums out of {', '.join(OPTIONAL_PARTS)}", part)
        for position in self.positions:
            require(bool(position.channels), f"a multiple of channel_step in the middle of {position.name}", "none")

    # Description -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, source: str | Path) -> SearchSpace:
        """The space of a preset's name or of a TOML file.

        Raises: UserError for an unknown name, a file that is not TOML, and unknown, missing or wrong fields.
        """
        folder = resources.files("apq_deploy") / "spaces"
        path = Path(source)
        if path.suffix != ".toml":
            names = cls.presets()
            if str(source) not in names:
                near = difflib.get_close_matches(str(source), names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"unknown search space {str(source)!r}{hint} (presets: {', '.join(names)}; or the path of a .toml)"
                )
            path = Path(str(folder / f"{source}.toml"))
        return cls.from_dict(read_toml(path), str(source))

    @classmethod
    def presets(cls) -> list[str]:
        """Names of the spaces that come with the package."""
        folder = resources.files("apq_deploy") / "spaces"
        return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "search space") -> SearchSpace:
        """The space of a parsed TOML file.

        Raises: UserError naming the field that is unknown, missing or wrong.
        """
        data = dict(data)
        if data.pop("schema", None) != SCHEMA:
            raise UserError(f"{source}: expected schema = {SCHEMA} at the top of a search space")
        values = _checked(cls, data, source)
        values["stages"] = tuple(
            StageChoices(**_checked(StageChoices, s, f"{source} [[stages]]")) for s in values["stages"]
        )
        if "forbidden_depthwise" in values:
            rules = values["forbidden_depthwise"]
            values["forbidden_depthwise"] = tuple(
                DepthwiseRule(**_checked(DepthwiseRule, rule, f"{source} forbidden_depthwise")) for rule in rules
            )
        return cls(**values)

    @property
    def identity(self) -> dict[str, str]:
        """What files of a model of this space say of it: its name, and a hash of all that a model depends on."""
        choices = {name: value for name, value in asdict(self).items() if name not in ("name", "left_out_of_sums")}
        digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()
        return {"space": self.name, "space_sha256": digest}

    def require(self, found: Mapping[str, Any], path: Path) -> None:
        """Nothing, if `found` in the file `path` is the identity of this space.

        Raises: UserError otherwise.
        """
        if found.get("space") != self.name:
            raise UserError(f"{path} is of the space {found.get('space')!r}, expected {self.name!r}")
        if found.get("space_sha256") != self.identity["space_sha256"]:
            raise UserError(
                f"{path} was made for other choices than the space {self.name!r} has now; give a changed space a name "
                "of its own, or make the model anew"
            )

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """Every place where a block may stand, in order."""
        size = (self.input_size - 1) // 2 + 1
        width = self.first_block_channels or self.stem_channels
        positions = []
        for number, stage in enumerate(self.stages):
            for index in range(stage.depths[-1]):
                stride = stage.stride if index == 0 else 1
                low, high = self.expand_min * width, self.expand_max * width
                first = -(-low // self.channel_step) * self.channel_step
                channels = tuple(range(first, high + 1, self.channel_step))
                positions.append(Position(number, index, width, stage.out_channels, size, stride, channels))
                size = (size - 1) // stride + 1
                width = stage.out_channels
        return tuple(positions)

    @property
    def final_size(self) -> int:
        """Height and width of the last block's output, in pixels."""
        return self.positions[-1].out_size

    @cached_property
    def _forbidden(self) -> frozenset[tuple[int, int]]:
        return frozenset((rule.kernel_size, rule.act_bits) for rule in self.forbidden_depthwise)

    @cached_property
    def allowed_depthwise(self) -> NDArray[np.bool_]:
        """Which depthwise convolutions exist, (kernel sizes, act bits)."""
        return np.array([[(k, b) not in self._forbidden for b in self.bits] for k in self.kernel_sizes])

    # Genes -----------------------------------------------------------------------------------------------------------

    @property
    def n_stages(self) -> int:
        return len(self.stages)

    @property
    def n_blocks(self) -> int:
        """Number of block positions at full depth."""
        return len(self.positions)

    @property
    def n_genes(self) -> int:
        return self.n_stages + GENES_PER_BLOCK * self.n_blocks

    @property
    def n_features(self) -> int:
        return len(self.architecture_features)

    @cached_property
    def cardinalities(self) -> NDArray[np.int64]:
        """Number of choices of every gene, (n_genes,)."""
        blocks = [[len(self.kernel_sizes), len(p.channels)] + [len(self.bits)] * 4 for p in self.positions]
        return np.array([len(stage.depths) for stage in self.stages] + [n for block in blocks for n in block])

    @cached_property
    def stage_of_block(self) -> NDArray[np.int64]:
        return np.array([p.stage for p in self.positions])

    @cached_property
    def architecture_features(self) -> NDArray[np.bool_]:
        """Which columns of the features say something about the architecture, not the bits, (n_features,)."""
        columns = []
        for position in self.positions:
            columns += [True] * (len(self.kernel_sizes) + len(position.channels)) + [False] * (4 * len(self.bits))
        return np.array(columns)

    def split(self, genes: Genes) -> tuple[Genes, Genes]:
        """Views on the depth genes (n, n_stages) and on the block genes (n, n_blocks, 6)."""
        return genes[:, : self.n_stages], genes[:, self.n_stages :].reshape(len(genes), self.n_blocks, GENES_PER_BLOCK)

    def depths(self, genes: Genes) -> NDArray[np.int64]:
        """Number of blocks of every stage, (n, n_stages)."""
        chosen, _ = self.split(genes)
        return np.stack([np.array(s.depths)[chosen[:, i]] for i, s in enumerate(self.stages)], axis=1)

    def active(self, genes: Genes) -> NDArray[np.bool_]:
        """Which block positions hold a block, (n, n_blocks)."""
        index = np.array([p.index for p in self.positions])
        return index < self.depths(genes)[:, self.stage_of_block]

    def sample(self, n: int, rng: np.random.Generator) -> Genes:
        """Random genomes, every gene uniform over its choices, (n, n_genes)."""
        genes = rng.integers(0, self.cardinalities, size=(n, self.n_genes), dtype=np.int8)
        return self.repair(genes, rng)

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """The same genomes with forbidden depthwise activation bits drawn anew among the allowed ones."""
        if self.allowed_depthwise.all():
            return genes
        genes = genes.copy()
        _, blocks = self.split(genes)
        score = rng.random((*blocks.shape[:2], len(self.bits)))
        score[~self.allowed_depthwise[blocks[..., KERNEL_GENE]]] = -1.0
        kept = self.allowed_depthwise[blocks[..., KERNEL_GENE], blocks[..., -1]]
        blocks[..., -1] = np.where(kept, blocks[..., -1], score.argmax(axis=-1))
        return genes

    def canonical(self, genes: Genes) -> Genes:
        """The same subnets with every inactive gene set to 0, so that equal subnets are equal rows."""
        depth, blocks = self.split(genes)
        kept = blocks * self.active(genes)[..., None]
        return np.concatenate([depth, kept.reshape(len(genes), self.n_blocks * GENES_PER_BLOCK)], axis=1).astype(
            np.int8
        )

    def encode(self, genes: Genes) -> NDArray[np.float32]:
        """One-hot features, (n, n_features); the blocks concatenated, a skipped block all zeros."""
        return encode_genes(self, genes)

    def extreme(self, *, largest: bool, bits: int | None = None) -> Genes:
        """The genome of the largest or of the smallest network, at one bit width (the space's widest), (n_genes,)."""
        width = self.bits[-1] if bits is None else bits
        if width not in self.bits:
            raise UserError(f"space {self.name!r} has bits {list(self.bits)}, got {width}")
        genes = (self.cardinalities - 1 if largest else 0 * self.cardinalities).astype(np.int8)[None]
        _, blocks = self.split(genes)
        blocks[..., CHANNEL_GENE + 1 :] = self.bits.index(width)
        return genes[0]

    # Genes <-> Arch --------------------------------------------------------------------------------------------------

    def decode(self, genome: Genes, *, quantized: bool = True) -> Arch:
        """The subnet of one genome (n_genes,); without bits if not `quantized`.

        Raises: UserError for a row of the wrong length or with a choice that the space does not have.
        """
        genome = np.asarray(genome)
        if genome.shape != (self.n_genes,):
            raise UserError(f"space {self.name!r} has genomes of {self.n_genes} genes, got shape {genome.shape}")
        if ((genome < 0) | (genome >= self.cardinalities)).any():
            raise UserError(
                f"gene {int(np.argmax((genome < 0) | (genome >= self.cardinalities)))} is out of its choices"
            )
        genes = genome[None].astype(np.int8)
        active = self.active(genes)[0]
        _, blocks = self.split(genes)
        stages: list[list[Block]] = [[] for _ in self.stages]
        for position, row, used in zip(self.positions, blocks[0].tolist(), active, strict=True):
            if used:
                bits = BlockBits(*(self.bits[i] for i in row[2:])) if quantized else None
                stages[position.stage].append(
                    Block(
                        position.in_channels,
                        position.channels[row[CHANNEL_GENE]],
                        position.out_channels,
                        self.kernel_sizes[row[KERNEL_GENE]],
                        position.stride,
                        bits,
                    )
                )
        return Arch(self.name, tuple(Stage(tuple(blocks)) for blocks in stages))

    def genome(self, arch: Arch) -> Genes:
        """The canonical genome of a subnet, (n_genes,); a subnet without bits gets the widest.

        Raises: UserError if the subnet is not in the space.
        """
        genes = np.zeros((1, self.n_genes), np.int8)
        depth, blocks = self.split(genes)
        widest = self.bits[-1]
        by_place = {(p.stage, p.index): i for i, p in enumerate(self.positions)}
        try:
            for number, (choices, stage) in enumerate(zip(self.stages, arch.stages, strict=True)):
                depth[0, number] = choices.depths.index(len(stage.blocks))
                for index, block in enumerate(stage.blocks):
                    i = by_place[number, index]
                    place = self.positions[i]
                    if (block.in_channels, block.out_channels, block.stride) != (
                        place.in_channels,
                        place.out_channels,
                        place.stride,
                    ):
                        raise ValueError(f"{place.name} has other channels or another stride")
                    widths = block.bits or BlockBits(widest, widest, widest, widest)
                    blocks[0, i] = [
                        self.kernel_sizes.index(block.kernel_size),
                        place.channels.index(block.mid_channels),
                        *(self.bits.index(getattr(widths, name)) for name in BIT_GENES),
                    ]
        except ValueError as error:
            raise UserError(f"the subnet is not in the space {self.name!r}: {error}") from None
        return genes[0]


def _checked(kind: type, data: Any, source: str) -> dict[str, Any]:
    """The fields of `data` as `kind` wants them: lists as tuples, every name known, every type right."""
    if not isinstance(data, dict):
        raise UserError(f"{source}: expected a table with named fields, got {data!r}")
    known = {f.name: f for f in fields(kind)}
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise UserError(f"{source}: unknown field {name!r}; {hint}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name not in data:
            if field.default is field.default_factory:  # both MISSING: the field has no default
                raise UserError(f"{source}: field {name!r} is missing")
            continue
        value, wanted = data[name], str(field.type)
        if wanted.startswith("tuple[int"):
            right, words = _is_list_of(value, int), "a list of integers"
        elif wanted.startswith("tuple[str"):
            right, words = _is_list_of(value, str), "a list of names"
        elif wanted.startswith("tuple"):
            right, words = _is_list_of(value, dict), "a list of tables"
        elif wanted.startswith("int"):
            right, words = isinstance(value, int) and not isinstance(value, bool), "an integer"
        else:
            right, words = isinstance(value, str), "a name in quotes"
        if not right:
            raise UserError(f"{source}: expected {words} for {name!r}, got {value!r}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return values


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
