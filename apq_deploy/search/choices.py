"""Which choices a search may make: the whole space, or the space with some of its genes held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apq_deploy.errors import UserError
from apq_deploy.space import BIT_GENES, CHANNEL_GENE, GENES_PER_BLOCK, KERNEL_GENE, Genes, SearchSpace
from apq_deploy.workload import ALL_WIDTHS, Widths

Group: TypeAlias = Literal["depths", "kernels", "channels", "bits"]

# What can be held fixed, by the word that a user writes. `architecture` is the whole network in full precision.
FREEZABLE: dict[str, tuple[Group, ...]] = {
    "architecture": ("depths", "kernels", "channels"),
    "depths": ("depths",),
    "kernels": ("kernels",),
    "channels": ("channels",),
    "bits": ("bits",),
}


@dataclass(frozen=True, eq=False)
class Choices:
    """The allowed values of every gene of a space.

    `allowed`: (n_genes, most choices of a gene), true where a gene may take the value. A kernel size whose depthwise
    convolution exists at none of the allowed activation bits is taken away, so that any allowed kernel can be
    completed.

    Raises: UserError if a gene is left without a value.
    """

    space: SearchSpace
    allowed: NDArray[np.bool_]

    def __post_init__(self) -> None:
        space = self.space
        exists = np.arange(int(space.cardinalities.max())) < space.cardinalities[:, None]
        if self.allowed.shape != exists.shape:
            raise UserError(f"expected allowed choices of shape {exists.shape}, got {self.allowed.shape}")
        allowed = self.allowed & exists
        blocks = allowed[space.n_stages :].reshape(space.n_blocks, GENES_PER_BLOCK, -1)
        act_bits = blocks[:, -1, : len(space.bits)]
        kernels = blocks[:, KERNEL_GENE, : len(space.kernel_sizes)]
        kernels &= (act_bits[:, None] & space.allowed_depthwise).any(axis=-1)
        if not allowed.any(axis=1).all():
            gene = int(np.argmin(allowed.any(axis=1)))
            raise UserError(f"{gene_name(space, gene)} is left without an allowed choice; freeze less or other bits")
        allowed.flags.writeable = False
        object.__setattr__(self, "allowed", allowed)

    @classmethod
    def everything(cls, space: SearchSpace) -> Choices:
        """All choices of the space."""
        return cls(space, np.ones((space.n_genes, int(space.cardinalities.max())), np.bool_))

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        *,
        freeze: Sequence[str] = (),
        bits: int | None = None,
        network: Genes | None = None,
        widths: Widths = ALL_WIDTHS,
    ) -> Choices:
        """What remains to be chosen when the groups named in `freeze` are held as in `network` (n_genes,).

        `freeze` takes words of FREEZABLE: `architecture` alone searches bits on a fixed network as HAQ does; `depths`,
        `kernels` and `bits` search widths only as AMC does; `bits` searches an architecture at fixed bits as
        ProxylessNAS does. `bits` holds all four bit widths of every block at one value. Without a network the largest
        one of the space is meant, at `bits` or at the space's widest. Block positions that `network` does not use
        stay free. Bits are chosen among the hardware's `widths` only.

        Raises: UserError for an unknown word, or bits that the space or the hardware does not have.
        """
        allowed = np.ones((space.n_genes, int(space.cardinalities.max())), np.bool_)
        base = space.extreme(largest=True, bits=bits) if network is None else np.asarray(network)
        if base.shape != (space.n_genes,):
            raise UserError(f"space {space.name!r} has genomes of {space.n_genes} genes, got shape {base.shape}")
        held = _frozen_genes(space, freeze, space.active(base[None].astype(np.int8))[0])
        allowed[held] = np.arange(allowed.shape[1]) == base[held, None]
        if bits is not None:
            if bits not in space.bits:
                raise UserError(f"space {space.name!r} has bits {list(space.bits)}, got {bits}")
            allowed[_bit_genes(space)] = np.arange(allowed.shape[1]) == space.bits.index(bits)
        blocks = allowed[space.n_stages :].reshape(space.n_blocks, GENES_PER_BLOCK, -1)[..., : len(space.bits)]
        for gene, name in enumerate(BIT_GENES, CHANNEL_GENE + 1):
            accept = widths.accept_weight if name.endswith("weight") else widths.accept_act
            blocks[:, gene] &= [accept(width) for width in space.bits]
            if not blocks[:, gene].any(axis=1).all():
                takes = widths.weight_bits if name.endswith("weight") else widths.act_bits
                words = ", ".join(map(str, takes or ()))
                raise UserError(
                    f"the hardware accepts {words} bits for {name}, the search leaves only others; ask for those"
                )
        return cls(space, allowed)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of allowed values of every gene, (n_genes,)."""
        return self.allowed.sum(axis=1)

    @cached_property
    def options(self) -> NDArray[np.int8]:
        """The allowed values of every gene first, in order, (n_genes, most choices)."""
        return np.argsort(~self.allowed, axis=1, kind="stable").astype(np.int8)

    @cached_property
    def is_everything(self) -> bool:
        return bool((self.counts == self.space.cardinalities).all())

    def contains(self, genes: Genes) -> NDArray[np.bool_]:
        """Whether every active gene of each genome takes an allowed value that exists, (n,)."""
        genes = np.asarray(genes)
        space, n = self.space, len(genes)
        inside = self.allowed[np.arange(space.n_genes), genes]
        blocks = inside[:, space.n_stages :].reshape(n, space.n_blocks, GENES_PER_BLOCK).all(axis=2)
        chosen = space.split(genes)[1]
        blocks &= space.allowed_depthwise[chosen[..., KERNEL_GENE], chosen[..., -1]]
        return inside[:, : space.n_stages].all(axis=1) & np.all(blocks | ~space.active(genes), axis=1)

    def sample(self, n: int, rng: np.random.Generator) -> Genes:
        """Random genomes, every gene uniform over its allowed values, (n, n_genes)."""
        every = np.broadcast_to(np.arange(self.space.n_genes), (n, self.space.n_genes))
        return self.repair(self._draw(every, rng), rng)

    def mutate(self, genes: Genes, probability: float, rng: np.random.Generator) -> Genes:
        """Mutants: every block and every depth is drawn anew with `probability`. Source: APQ, section 3.3."""
        space = self.space
        redrawn = rng.random((len(genes), space.n_stages + space.n_blocks), np.float32) < probability
        genome, place = np.nonzero(redrawn)
        return self.redraw(genes, genome, place, rng)

    def mutate_genes(self, genes: Genes, mean: float, rng: np.random.Generator) -> Genes:
        """Mutants with `mean` genes on average drawn anew, of those that are free and in use."""
        open_genes = expand_places(self.space, self._with_depths(self.space.active(genes))) & (self.counts > 1)
        chance = mean / np.maximum(open_genes.sum(axis=1, keepdims=True), 1)
        row, gene = np.nonzero((rng.random(genes.shape, np.float32) < chance) & open_genes)
        mutants = genes.copy()
        mutants[row, gene] = self._draw(gene, rng)
        return self.repair(mutants, rng)

    def _with_depths(self, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Blocks in use (n, n_blocks) as places in use: the depths always are."""
        return np.concatenate([np.ones((len(active), self.space.n_stages), np.bool_), active], axis=1)

    def neighbours(self, genome: Genes) -> tuple[Genes, NDArray[np.int64], NDArray[np.int8]]:
        """All networks that differ from a genome (n_genes,) in one gene in use, which gene, and its value there."""
        space = self.space
        in_use = expand_places(space, self._with_depths(space.active(genome[None])))[0]
        gene, value = np.nonzero(self.allowed & in_use[:, None])
        changed = value != genome[gene]
        gene, value = gene[changed], value[changed].astype(np.int8)
        genes = np.repeat(genome[None], len(gene), axis=0)
        genes[np.arange(len(gene)), gene] = value
        exists = self.contains(genes)
        return genes[exists], gene[exists], value[exists]

    def redraw(
        self, genes: Genes, genome: NDArray[np.int64], place: NDArray[np.int64], rng: np.random.Generator
    ) -> Genes:
        """The genomes with some places drawn anew, uniform over the allowed values.

        `genome`, `place`: (k,), which genome and which of its places: first the depths of the stages, then the blocks.
        """
        space = self.space
        mutants = genes.copy()
        depths, blocks = space.split(mutants)
        is_depth = place < space.n_stages
        stage = place[is_depth]
        depths[genome[is_depth], stage] = self._draw(stage, rng)
        row, position = genome[~is_depth], place[~is_depth] - space.n_stages
        gene = space.n_stages + position[:, None] * GENES_PER_BLOCK + np.arange(GENES_PER_BLOCK)
        fresh = self._draw(gene, rng)
        if not space.allowed_depthwise.all():
            self._repair_blocks(fresh, position, rng)
        blocks[row, position] = fresh
        return mutants

    def cross(self, mothers: Genes, fathers: Genes, rng: np.random.Generator) -> Genes:
        """Children: every block and every depth comes from one of the two parents at random."""
        space = self.space
        from_mother = rng.random((len(mothers), space.n_stages + space.n_blocks), np.float32) < 0.5
        return np.where(expand_places(space, from_mother), mothers, fathers)

    def repair(self, genes: Genes, rng: np.random.Generator) -> Genes:
        """The same genomes with forbidden depthwise activation bits drawn anew among the allowed ones."""
        space = self.space
        if space.allowed_depthwise.all():
            return genes
        genes = genes.copy()
        blocks = space.split(genes)[1].reshape(-1, GENES_PER_BLOCK)
        self._repair_blocks(blocks, np.tile(np.arange(space.n_blocks), len(genes)), rng)
        space.split(genes)[1][:] = blocks.reshape(len(genes), space.n_blocks, GENES_PER_BLOCK)
        return genes

    def _repair_blocks(self, blocks: Genes, position: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Draws the forbidden activation bits of block genes (k, 6) at positions (k,) anew, in place."""
        space = self.space
        wrong = np.flatnonzero(~space.allowed_depthwise[blocks[:, KERNEL_GENE], blocks[:, -1]])
        if len(wrong):
            act_bits = self.allowed[space.n_stages :].reshape(space.n_blocks, GENES_PER_BLOCK, -1)[:, -1]
            possible = act_bits[position[wrong], : len(space.bits)]
            possible = possible & space.allowed_depthwise[blocks[wrong, KERNEL_GENE]]
            blocks[wrong, -1] = np.where(possible, rng.random(possible.shape), -1.0).argmax(axis=-1)

    def _draw(self, genes: NDArray[np.int64], rng: np.random.Generator) -> Genes:
        """A random allowed value for each of the genes named, in their shape."""
        counts = self.counts[genes]
        pick = (rng.random(genes.shape) * counts).astype(np.int8)
        return pick if self.is_everything else self.options[genes, pick]


def expand_places(space: SearchSpace, places: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A choice per depth and block (n, n_stages + n_blocks) as one per gene, (n, n_genes)."""
    return np.concatenate(
        [places[:, : space.n_stages], np.repeat(places[:, space.n_stages :], GENES_PER_BLOCK, axis=1)], axis=1
    )


def gene_name(space: SearchSpace, gene: int) -> str:
    """What a gene decides, in words."""
    if gene < space.n_stages:
        return f"the depth of stage {gene + 1}"
    position, which = divmod(gene - space.n_stages, GENES_PER_BLOCK)
    words = ("kernel size", "channels", "pointwise weight bits", "pointwise activation bits")
    words += ("depthwise weight bits", "depthwise activation bits")
    return f"the {words[which]} of {space.positions[position].name}"


def _bit_genes(space: SearchSpace) -> NDArray[np.bool_]:
    block = np.arange(GENES_PER_BLOCK) > CHANNEL_GENE
    return np.concatenate([np.zeros(space.n_stages, np.bool_), np.tile(block, space.n_blocks)])


def _frozen_genes(space: SearchSpace, freeze: Sequence[str], active: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which genes the words of `freeze` hold, (n_genes,), given the block positions that the network uses."""
    groups: set[Group] = set()
    for word in freeze:
        if word not in FREEZABLE:
            raise UserError(f"cannot freeze {word!r}; known are {', '.join(FREEZABLE)}")
        groups.update(FREEZABLE[word])
    block = np.array(["kernels" in groups, "channels" in groups] + ["bits" in groups] * 4)
    return np.concatenate([np.full(space.n_stages, "depths" in groups), (active[:, None] & block).ravel()])
