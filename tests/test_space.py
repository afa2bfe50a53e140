"""Search spaces: genes, features, and what bad files get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apq_deploy import Arch, SearchSpace, UserError
from apq_deploy.workload import arch_layers, space_entries

SPACES = {name: SearchSpace.load(name) for name in SearchSpace.presets()}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_apq_imagenet_is_the_papers_space() -> None:
    space = SPACES["apq-imagenet"]
    assert (space.n_blocks, space.n_features, int(space.architecture_features.sum())) == (21, 772, 520)
    widths = [len(position.channels) for position in space.positions]
    assert sum(widths) == 457
    # Inputs of the 21 blocks: 16, 24 four times, 40, 80 and 96 four times, 192 four times.
    assert [position.in_channels for position in space.positions] == [16] + [24] * 4 + [40] * 4 + [80] * 4 + [
        96
    ] * 4 + [192] * 4
    assert space.final_size == 7
    # The released table has 6,567 entries of blocks; stem, first block (two layers), head and classifier are 5 more.
    assert len(space_entries(space)) == 6567 + 5


def test_fashion_shapes() -> None:
    space = SPACES["fashion"]
    assert [p.in_size for p in space.positions] == [14, 7, 7, 7, 7, 4, 4, 4, 4, 4, 4, 4]
    assert space.positions[0].channels == (32, 40, 48)
    assert space.positions[5].channels == tuple(range(64, 97, 8))


@pytest.mark.parametrize("name", SPACES)
def test_genomes_decode_and_come_back(name: str) -> None:
    space = SPACES[name]
    genes = space.sample(200, rng())
    for genome in genes:
        arch = space.decode(genome)
        assert np.array_equal(space.genome(arch), space.canonical(genome[None])[0])
        assert Arch.from_json(arch.to_json()) == arch


@pytest.mark.parametrize("name", SPACES)
def test_features_by_hand(name: str) -> None:
    """The vectorised encoding equals a plain loop over blocks."""
    space = SPACES[name]
    genes = space.sample(50, rng(1))
    for genome, features in zip(genes, space.encode(genes), strict=True):
        arch = space.decode(genome)
        expected: list[float] = []
        for position in space.positions:
            stage = arch.stages[position.stage].blocks
            block = stage[position.index] if position.index < len(stage) else None
            lists = [(space.kernel_sizes, "kernel_size"), (position.channels, "mid_channels")]
            for choices, field in lists:
                expected += [float(block is not None and getattr(block, field) == c) for c in choices]
            for field in ("pointwise_weight", "pointwise_act", "depthwise_weight", "depthwise_act"):
                expected += [float(block is not None and getattr(block.bits, field) == b) for b in space.bits]
        assert features.tolist() == expected


@pytest.mark.parametrize("name", SPACES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_every_active_choice_changes_the_features(name: str, seed: int) -> None:
    space = SPACES[name]
    genome = space.sample(1, rng(seed))[0]
    before = space.encode(genome[None])[0]
    active = space.active(genome[None])[0]
    for gene in range(space.n_genes):
        if space.cardinalities[gene] == 1:
            continue
        other = genome.copy()
        other[gene] = (other[gene] + 1) % space.cardinalities[gene]
        in_use = gene < space.n_stages or active[(gene - space.n_stages) // 6]
        assert (space.encode(other[None])[0] != before).any() == in_use


def test_sampling_is_uniform_and_seeded() -> None:
    space = SPACES["fashion"]
    genes = space.sample(6000, rng(3))
    assert np.array_equal(genes, space.sample(6000, rng(3)))
    for gene, choices in enumerate(space.cardinalities):
        share = np.bincount(genes[:, gene], minlength=choices) / len(genes)
        assert np.allclose(share, 1 / choices, atol=0.03)


def test_layers_follow_the_bits() -> None:
    """A convolution's activation bits are those of what it reads."""
    space = SPACES["fashion"]
    genome = space.extreme(largest=True)
    _, blocks = space.split(genome[None])
    blocks[0, 0, 2:] = [0, 1, 2, 0]  # pointwise W4A6, depthwise W8A4
    layers = {layer.name: layer for layer in arch_layers(space, space.decode(genome))}
    assert str(layers["stage1.block1.expand"].precision) == "W4A6"
    assert str(layers["stage1.block1.depthwise"].precision) == "W8A4"
    assert str(layers["stage1.block1.project"].precision) == "W4A6"
    assert str(layers["stem"].precision) == str(layers["classifier"].precision) == "W8A8"
    assert layers["stage1.block1.depthwise"].layer.groups == 48


def test_macs_of_the_largest_fashion_network_by_hand() -> None:
    space = SPACES["fashion"]
    layers = arch_layers(space, space.decode(space.extreme(largest=True)))
    stem = 9 * 8 * 14 * 14
    first = 8 * 48 * 14 * 14 + 49 * 48 * 7 * 7 + 48 * 8 * 7 * 7
    assert [layer.layer.macs for layer in layers[:4]] == [stem, 8 * 48 * 196, 49 * 48 * 49, 48 * 8 * 49]
    assert sum(layer.layer.macs for layer in layers[:4]) == stem + first


GOOD = (Path(__file__).parent.parent / "apq_deploy" / "spaces" / "fashion.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("kernel_sizes", "kernel_size"),
            "unknown field 'kernel_size'; did you mean 'kernel_sizes'",
        ),
        (lambda t: t.replace("bits = [4, 6, 8]", "bits = [8, 4]"), "bits ascending"),
        (lambda t: t.replace("bits = [4, 6, 8]", 'bits = "all"'), "expected a list of integers for 'bits'"),
        (lambda t: t.replace("schema = 1", "schema = 7"), "expected schema = 1"),
        (lambda t: t.replace("head_channels = 64", ""), "field 'head_channels' is missing"),
        (lambda t: t.replace("stride = 2", "stride = 3"), "stride 1 or 2 in stage 1"),
        (lambda t: t.replace("depths = [2, 3, 4]", "depths = []"), "depths ascending"),
        (lambda t: t.replace("[3, 5, 7]", "[3, 4]"), "kernel_sizes out of 1, 3, 5, 7"),
        (lambda t: t.replace("num_classes = 10", "num_classes = 0"), "a positive num_classes"),
        (lambda t: t + "\n[[[", "not valid TOML"),
        (lambda t: t[: t.index("[[stages]]")], "field 'stages' is missing"),
    ],
)
def test_bad_spaces_are_refused_in_one_line(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(change(GOOD), encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as caught:
        SearchSpace.load(path)
    assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean 'fashion'"):
        SearchSpace.load("fashon")
    with pytest.raises(UserError, match="No such file"):
        SearchSpace.load("nowhere.toml")
    with pytest.raises(UserError, match="genomes of 75 genes"):
        SPACES["fashion"].decode(np.zeros(3, np.int8))
    with pytest.raises(UserError, match="out of its choices"):
        SPACES["fashion"].decode(np.full(75, 9, np.int8))
    with pytest.raises(UserError, match="not in the space"):
        SPACES["apq-imagenet"].genome(SPACES["fashion"].decode(np.zeros(75, np.int8)))
