"""The supernet: elastic layers, extraction, progressive shrinking, interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL, small_data

from apq_deploy import SearchSpace, UserError
from apq_deploy.supernet import train as training
from apq_deploy.supernet.data import load_data, to_unit
from apq_deploy.supernet.elastic import ElasticDepthwise
from apq_deploy.supernet.network import Supernet, load_supernet
from apq_deploy.supernet.subnet import reestimate_batch_norm
from apq_deploy.supernet.train import TrainSettings, batch_indices, sample_archs, train_supernet

SETTINGS = TrainSettings(6, 4, 4, 4, batch_size=32, checkpoint_every=3)


def random_supernet(space: SearchSpace, seed: int = 0) -> Supernet:
    """A supernet with random weights, statistics and kernel transforms."""
    torch.manual_seed(seed)
    network = Supernet(space)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if "running_var" in name or name.endswith("bn.weight"):
                tensor.uniform_(0.5, 1.5)
            elif "running_mean" in name or name.endswith("bn.bias") or "transforms" in name:
                tensor.normal_(0, 0.3)
            elif name.endswith("conv.weight"):
                tensor.normal_(0, 0.5)
    return network.eval()


@pytest.mark.parametrize("space", [SMALL, SearchSpace.load("fashion")], ids=lambda s: s.name)
def test_extracted_subnets_compute_what_the_supernet_computes(space: SearchSpace) -> None:
    network = random_supernet(space)
    images = torch.rand(3, space.input_channels, space.input_size, space.input_size)
    genomes = [*space.sample(12, np.random.default_rng(0)), space.extreme(largest=True), space.extreme(largest=False)]
    with torch.no_grad():
        for genome in genomes:
            arch = space.decode(genome)
            difference = (network.extract(arch)(images) - network(images, arch)).abs().max()
            assert difference <= 1e-4


def test_every_active_choice_changes_the_output() -> None:
    network = random_supernet(SMALL)
    images = torch.rand(2, 1, 12, 12)
    genome = SMALL.extreme(largest=True)
    with torch.no_grad():
        reference = network(images, SMALL.decode(genome))
        for gene in range(SMALL.n_genes):
            is_bit = gene >= SMALL.n_stages and (gene - SMALL.n_stages) % 6 >= 2
            if SMALL.cardinalities[gene] > 1 and not is_bit:
                other = genome.copy()
                other[gene] -= 1
                assert (network(images, SMALL.decode(other)) - reference).abs().max() > 1e-4


def test_kernel_transform_by_hand() -> None:
    layer = ElasticDepthwise(2, (3, 5, 7), 1)
    with torch.no_grad():
        for transform in layer.transforms.values():
            transform.normal_()
    largest = layer.conv.weight
    assert torch.equal(layer.kernel(7, 2), largest)
    five = (largest[:1, :, 1:6, 1:6].reshape(1, 25) @ layer.transforms["5"]).view(1, 1, 5, 5)
    assert torch.allclose(layer.kernel(5, 1), five)
    three = (five[:, :, 1:4, 1:4].reshape(1, 9) @ layer.transforms["3"]).view(1, 1, 3, 3)
    assert torch.allclose(layer.kernel(3, 1), three)


def test_sorting_keeps_the_function_and_orders_importance() -> None:
    network = random_supernet(SMALL)
    images = torch.rand(2, 1, 12, 12)
    largest = SMALL.decode(SMALL.extreme(largest=True))
    with torch.no_grad():
        before = network(images, largest)
        network.sort_channels()
        assert torch.allclose(network(images, largest), before, atol=1e-4)
    for block in network.elastic_blocks():
        importance = block.project.conv.weight.abs().sum((0, 2, 3))
        assert (importance.diff() <= 0).all()


def test_batch_norm_reestimation_by_hand() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(2)
    batches = [torch.randn(8, 2, 4, 4) + 3, torch.randn(8, 2, 4, 4)]
    reestimate_batch_norm(norm, batches)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6)
    assert norm.momentum == 0.1


def test_phases_widen_step_by_step() -> None:
    rng = np.random.default_rng(0)
    largest = SMALL.decode(SMALL.extreme(largest=True), quantized=False)
    assert set(sample_archs(SMALL, "largest", 20, rng)) == {largest}
    for phase, elastic in (
        ("kernel", {"kernel"}),
        ("depth", {"kernel", "depth"}),
        ("width", {"kernel", "depth", "width"}),
    ):
        archs = sample_archs(SMALL, phase, 60, rng)  # type: ignore[arg-type]
        found = set()
        if len({b.kernel_size for a in archs for b in a.blocks}) > 1:
            found.add("kernel")
        if len({len(a.blocks) for a in archs}) > 1:
            found.add("depth")
        if any(b.mid_channels != largest.stages[0].blocks[0].mid_channels for a in archs for b in a.stages[0].blocks):
            found.add("width")
        assert found == elastic


def test_an_epoch_sees_every_image_once() -> None:
    steps = [batch_indices(96, 32, step, (0,)) for step in range(6)]
    assert sorted(np.concatenate(steps[:3])) == list(range(96))
    assert sorted(np.concatenate(steps[3:])) == list(range(96))
    assert not np.array_equal(steps[0], steps[3])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [2, 7, 12, 17])
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data()
    whole, _ = train_supernet(SMALL, data.train, tmp_path / "whole", SETTINGS)
    calls = 0
    real = training.augment

    def stopping(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Stopped
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training, "augment", stopping)
        with pytest.raises(Stopped):
            train_supernet(SMALL, data.train, tmp_path / "stopped", SETTINGS)
    resumed, _ = train_supernet(SMALL, data.train, tmp_path / "stopped", SETTINGS)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_training_learns_and_its_file_comes_back(tmp_path: Path) -> None:
    data = small_data()
    settings = TrainSettings(60, 10, 10, 20, batch_size=32, learning_rate=1e-2, shrinking_learning_rate=5e-3)
    network, _ = train_supernet(SMALL, data.train, tmp_path, settings)
    loaded = load_supernet(SMALL, tmp_path / "supernet.safetensors")
    arch = SMALL.decode(SMALL.extreme(largest=True))
    test = data.test
    with torch.no_grad():
        logits = loaded(to_unit(test.images(np.arange(60))), arch)
        assert torch.allclose(logits, network(to_unit(test.images(np.arange(60))), arch), atol=0.05)
    assert (logits.argmax(1) == test.labels(np.arange(60))).float().mean() > 0.8


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    train_supernet(SMALL, small_data().train, tmp_path, SETTINGS)
    with pytest.raises(UserError, match="another seed"):
        train_supernet(SMALL, small_data().train, tmp_path, TrainSettings(6, 4, 4, 4, batch_size=32, seed=1))
    for images in (small_data(241).train, small_data().held_out):
        with pytest.raises(UserError, match="another training images"):
            train_supernet(SMALL, images, tmp_path, SETTINGS)
    with pytest.raises(UserError, match="made for other choices than the space 'small' has now"):
        train_supernet(replace(SMALL, bits=(2, 4)), small_data().train, tmp_path, SETTINGS)


def test_time_counts_over_all_starts(tmp_path: Path) -> None:
    first = train_supernet(SMALL, small_data().train, tmp_path, SETTINGS)[1]
    again = train_supernet(SMALL, small_data().train, tmp_path, SETTINGS)[1]
    assert first.earlier_cpu_seconds == 0 < again.earlier_cpu_seconds
    assert again.seconds == pytest.approx(first.seconds, abs=0.1)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_damaged_supernets_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "supernet.safetensors"
    if content is None:
        train_supernet(SMALL, small_data().train, tmp_path, TrainSettings(1, 0, 0, 0, batch_size=32))
        content = path.read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a complete safetensors"):
        load_supernet(SMALL, path)


def test_a_supernet_of_another_space_is_refused(tmp_path: Path) -> None:
    train_supernet(SMALL, small_data().train, tmp_path, TrainSettings(1, 0, 0, 0, batch_size=32))
    with pytest.raises(UserError, match="space 'small', expected 'fashion'"):
        load_supernet(SearchSpace.load("fashion"), tmp_path / "supernet.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none", "does not exist"),
        (lambda path: path, "no data set in"),
        (lambda path: (path / "FashionMNIST" / "raw").mkdir(parents=True) or path, "cannot read FashionMNIST"),
    ],
)
def test_folders_without_data(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_data(SearchSpace.load("fashion"), make(tmp_path))  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_image_folders(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads image folders")
    for part, n in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(n):
                image.fromarray(np.full((40, 30, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    space = SearchSpace.load("apq-imagenet")
    data = load_data(space, tmp_path)
    assert (data.name, len(data.train) + len(data.held_out), len(data.test)) == ("ImageFolder", 8, 4)
    assert data.test.images(np.array([0, 3])).shape == (2, 3, 224, 224)
    with pytest.raises(UserError, match="takes images of shape"):
        load_data(SearchSpace.load("fashion"), tmp_path)
