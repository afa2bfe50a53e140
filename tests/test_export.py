"""What is exported is what was chosen: torch, NumPy and onnxruntime agree on every code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from endurance import Place
from networks import random_network
from test_supernet import random_supernet

from apq_deploy import SearchSpace, UserError, exporting
from apq_deploy.deployment import RunFolder, SearchRequest, search_network
from apq_deploy.exporting import ExportSettings, export_network
from apq_deploy.model import ModelFolder
from apq_deploy.predictor.fit import FitSettings, fit_quantized
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.integer import run_integers
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.quantize.thresholds import ClipMethod
from apq_deploy.search import Budget, Evolution, SpaceCosts, search
from apq_deploy.space import Genes
from apq_deploy.supernet.subnet import reestimate_batch_norm
from apq_deploy.supernet.train import save_supernet
from exporters import QuantizedNetwork, read_onnx, runtime, write_onnx
from exporters.audit import audit
from exporters.parity import parity
from exporters.runtime import run_onnx
from hwmodels import load_hardware

FASHION = SearchSpace.load("fashion")
PAIRS = [(w, a) for w in FASHION.bits for a in FASHION.bits]


def integers_of(space: SearchSpace, genome: Genes, *, power_of_two: bool = False, n: int = 32) -> QuantizedNetwork:
    """The calibrated integer network of a genome, with random weights."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((n, space.input_channels, space.input_size, space.input_size), np.float32))
    subnet = random_supernet(space, 1).extract(space.decode(genome))
    reestimate_batch_norm(subnet, [images])
    network = QuantizedSubnet(subnet).eval()
    if power_of_two:
        network.use_power_of_two_scales()
    calibrate(network, [images])
    reestimate_batch_norm(network, [images])
    return to_integers(network)


def check(net: QuantizedNetwork, path: Path, n_images: int = 16) -> None:
    """The file equals the network: fields, bits, kernels, codes."""
    write_onnx(net, path)
    images = np.random.default_rng(2).random((n_images, *net.input.shape), np.float32)
    again = read_onnx(path)
    assert again.tensors == net.tensors
    report = parity(net, path, images, {"torch": run_integers(net, torch.from_numpy(images))})
    assert report.is_equal, str(report)
    assert report.compared == {"onnxruntime": len(net.tensors), "torch": len(net.tensors)}
    inspected = audit(path)
    assert inspected.is_true, inspected.false_claims
    assert all(layer.is_integer for layer in inspected.layers)


@pytest.mark.parametrize(("weight_bits", "act_bits"), PAIRS)
def test_every_pair_of_bits(weight_bits: int, act_bits: int, tmp_path: Path) -> None:
    genome = FASHION.sample(1, np.random.default_rng(weight_bits * 10 + act_bits))[0]
    _, blocks = FASHION.split(genome[None])
    blocks[..., 2::2] = FASHION.bits.index(weight_bits)
    blocks[..., 3::2] = FASHION.bits.index(act_bits)
    check(integers_of(FASHION, genome), tmp_path / "model.onnx")


@pytest.mark.parametrize("seed", range(20))
def test_random_mixes(seed: int, tmp_path: Path) -> None:
    genome = FASHION.sample(1, np.random.default_rng(seed))[0]
    check(integers_of(FASHION, genome, power_of_two=seed % 5 == 4), tmp_path / "model.onnx")


def test_a_subnet_of_the_papers_space(tmp_path: Path) -> None:
    space = SearchSpace.load("apq-imagenet")
    genome = space.sample(1, np.random.default_rng(0))[0]
    depth, blocks = space.split(genome[None])
    depth[:] = 0
    blocks[..., 1] = 0
    check(integers_of(space, genome, n=2), tmp_path / "model.onnx", n_images=4)


def test_long_finetuning_goes_on_only_with_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.make(tmp_path)
    space = SearchSpace.load(tmp_path / "tiny.toml")
    folder = ModelFolder(tmp_path / "model")
    save_supernet(random_supernet(space, 1), folder.supernet)
    costs = SpaceCosts.from_hardware(space, load_hardware("bitfusion"))
    result = search(costs, lambda features: features.mean(axis=1), Budget(), settings=Evolution(20, 3))
    done: list[int] = []
    stop_at: int | None = 103

    @contextmanager
    def watched(_: str, __: int) -> Iterator[Callable[[int, str], None]]:
        def advance(step: int, _: str) -> None:
            done.append(step)
            if step == stop_at:
                raise KeyboardInterrupt

        yield advance

    monkeypatch.setattr(exporting, "progress", watched)

    def export(act_method: ClipMethod) -> None:
        done.clear()
        settings = ExportSettings(104, act_method=act_method)
        data = place.path / "data"
        export_network(result, folder, tmp_path / "model.onnx", tmp_path / "run" / "export.json", settings, data)

    with pytest.raises(KeyboardInterrupt):
        export("max")
    with pytest.raises(KeyboardInterrupt):
        export("kl")  # with other clips it begins anew
    assert done[0] == 1
    stop_at = None
    export("kl")
    assert done == [101, 102, 103, 104]


def test_only_the_model_of_the_search_is_exported(tmp_path: Path) -> None:
    folders = [ModelFolder(tmp_path / name) for name in ("searched", "other")]
    for seed, folder in enumerate(folders):
        save_supernet(random_supernet(FASHION, seed), folder.supernet)
    genes = FASHION.sample(20, np.random.default_rng(0))
    fit_quantized(FASHION, genes, np.linspace(0.8, 0.9, 20), FitSettings(1), None).save(folders[0].predictor)
    run = tmp_path / "run"
    search_network(SearchRequest("fashion", Budget(latency_ms=0.05), model=folders[0].path), run)
    RunFolder(run).check_model(folders[0])
    with pytest.raises(UserError, match=r"searched for another supernet than .*other"):
        RunFolder(run).check_model(folders[1])


def test_a_large_data_set_is_run_some_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_network(np.random.default_rng(0), size=8)
    write_onnx(net, tmp_path / "model.onnx")
    images = np.random.default_rng(1).random((23, *net.input.shape), np.float32)
    whole = run_onnx(tmp_path / "model.onnx", images)
    sizes: list[int] = []
    real = ort.InferenceSession.run

    def counted(session: ort.InferenceSession, names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        sizes.extend(len(array) for array in given.values())
        return real(session, names, given)

    monkeypatch.setattr(runtime, "RUN_BATCH", 10)
    monkeypatch.setattr(ort.InferenceSession, "run", counted)
    assert np.array_equal(run_onnx(tmp_path / "model.onnx", images), whole)
    assert sizes == [10, 10, 3]
