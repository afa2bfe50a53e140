"""What is exported is what was chosen: torch, NumPy and onnxruntime agree on every code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_supernet import random_supernet

from apq_deploy import SearchSpace
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.integer import run_integers
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.space import Genes
from apq_deploy.supernet.subnet import reestimate_batch_norm
from exporters import QuantizedNetwork, read_onnx, write_onnx
from exporters.audit import audit
from exporters.parity import parity

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
