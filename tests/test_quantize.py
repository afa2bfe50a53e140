"""Quantizers, quantized subnets, and the way to integers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL, small_data
from test_supernet import random_supernet
from torch import nn

from apq_deploy import SearchSpace, UserError
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.finetune import BestState, FinetuneSettings, finetune
from apq_deploy.quantize.integer import run_integers
from apq_deploy.quantize.network import QuantizedSubnet, accuracy
from apq_deploy.quantize.quantizers import Quantizer
from apq_deploy.supernet.data import ImagesInMemory, to_unit
from apq_deploy.supernet.subnet import Subnet, reestimate_batch_norm
from exporters import run_reference


def subnet_of(space: SearchSpace, seed: int) -> Subnet:
    genome = space.sample(1, np.random.default_rng(seed))[0]
    subnet = random_supernet(space, seed).extract(space.decode(genome))
    reestimate_batch_norm(subnet, [torch.rand(64, space.input_channels, space.input_size, space.input_size)])
    return subnet


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_quantizer_against_its_formula(bits: int, signed: bool) -> None:
    quantizer = Quantizer(bits, signed=signed)
    quantizer.set_clip(2.5)
    x = torch.linspace(-4, 7, 1001)
    levels = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    scale = np.float32(2.5) / np.float32(levels)
    expected = np.clip(np.rint(x.numpy() / scale), -levels if signed else 0, levels) * scale
    assert np.array_equal(quantizer(x).detach().numpy(), expected)


def test_straight_through_gradients_by_hand() -> None:
    quantizer = Quantizer(3, signed=True)  # codes -3..3
    quantizer.set_clip(3.0)  # scale 1
    x = torch.tensor([0.4, -2.2, 5.0, -9.0], requires_grad=True)
    quantizer(x).backward(torch.ones(4))
    assert x.grad is not None and quantizer.clip.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0]
    # d/ds per value: round - ratio within the clamp, the bound beyond: -0.4, 0.2, 3, -3; ds/dv = 1/3.
    assert quantizer.clip.grad.item() == pytest.approx((-0.4 + 0.2 + 3 - 3) / (4 * 3) ** 0.5 / 3, rel=1e-5)


def test_relu6_clips_never_exceed_six() -> None:
    quantizer = Quantizer(8, signed=False)
    quantizer.set_clip(9.0)
    assert quantizer.scale.item() == pytest.approx(6 / 255)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_integers_are_the_simulation(seed: int, power_of_two: bool) -> None:
    """Torch integers equal the NumPy reference on every tensor, and fake quantization but for rounded biases."""
    space = SMALL if seed % 2 else SearchSpace.load("fashion")
    network = QuantizedSubnet(subnet_of(space, seed))
    if power_of_two:
        network.use_power_of_two_scales()
    rng = np.random.default_rng(seed)
    size = space.input_size
    images = torch.from_numpy(rng.integers(0, 256, (16, space.input_channels, size, size)).astype(np.uint8))
    calibrate(network, [to_unit(images)])
    with torch.no_grad():
        for _, unit in network.units():  # negative factors of batch norm must come out right
            unit.bn.weight[::3] *= -1
    network.eval()
    integers = to_integers(network)
    codes = run_integers(integers, to_unit(images))
    reference = run_reference(integers, to_unit(images).numpy())
    assert codes.keys() == reference.keys() == integers.tensors.keys()
    for name, array in codes.items():
        assert array.dtype == reference[name].dtype
        assert np.array_equal(array, reference[name]), name
    inputs = {layer.name: layer.input for layer in integers.weighted()}
    for name, unit in network.units():
        source, output = integers.tensors[inputs[name]], integers.tensors[name]
        x = torch.from_numpy((codes[source.name].astype(np.float32) - source.zero_point) * np.float32(source.scale))
        with torch.no_grad():
            fake = np.rint(unit(x).numpy() / output.scale) + output.zero_point
        # Float rounding moves a value across a half step now and then; by powers of two many lie on a half exactly.
        difference = np.abs(fake - codes[name])
        assert difference.max() <= 1, name
        assert difference.mean() < (0.15 if power_of_two else 1e-2), name


@pytest.mark.parametrize("seed", range(4))
def test_every_tensor_has_the_bits_of_its_reader(seed: int) -> None:
    space = SearchSpace.load("fashion")
    subnet = subnet_of(space, seed)
    integers = to_integers(QuantizedSubnet(subnet).eval())
    tensors = integers.tensors
    layers = {layer.name: layer for layer in integers.weighted()}
    for s, stage in enumerate(subnet.arch.stages, 1):
        for b, block in enumerate(stage.blocks, 1):
            assert block.bits is not None
            name = f"stage{s}.block{b}"
            expected = {
                "expand": (block.bits.pointwise_weight, block.bits.pointwise_act),
                "depthwise": (block.bits.depthwise_weight, block.bits.depthwise_act),
                "project": (block.bits.pointwise_weight, block.bits.pointwise_act),
            }
            for part, bits in expected.items():
                layer = layers[f"{name}.{part}"]
                assert (layer.weight_bits, tensors[layer.input].bits) == bits, layer.name
                assert np.abs(layer.weight).max() <= 2 ** (bits[0] - 1) - 1
    assert {layers[n].weight_bits for n in ("stem", "head", "classifier")} == {8}


def test_nearly_dead_channels_do_not_overflow_the_bias() -> None:
    network = QuantizedSubnet(subnet_of(SMALL, 1)).eval()
    with torch.no_grad():
        network.stem.bn.weight[0] = 1e-12
        network.stem.bn.bias[0] = 5.0
    integers = to_integers(network)
    stem = integers.layers[0]
    assert abs(int(stem.bias[0])) <= 2**23 + 1  # type: ignore[union-attr]
    images = torch.rand(2, 1, 12, 12)
    assert np.array_equal(
        run_integers(integers, images)["stem"][:, 0], run_reference(integers, images.numpy())["stem"][:, 0]
    )
    expected = np.rint(5.0 / integers.tensors["stem"].scale)
    assert np.abs(run_integers(integers, images)["stem"][:, 0] - expected).max() <= 1


def test_finetuning_recovers_four_bits() -> None:
    data = small_data(480)
    torch.manual_seed(0)
    genome = SMALL.extreme(largest=True, bits=4)
    subnet = Subnet(SMALL, SMALL.decode(genome))
    optimizer = torch.optim.Adam(subnet.parameters(), 1e-2)
    order = np.arange(480)
    for step in range(40):
        chosen = order[(32 * step) % 480 :][:32]
        loss = nn.functional.cross_entropy(subnet(to_unit(data.train.images(chosen))), data.train.labels(chosen))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    subnet.eval()
    pixels, labels = data.test.images(np.arange(60)), data.test.labels(np.arange(60))
    calibration = [to_unit(data.train.images(order[:256]))]
    network = QuantizedSubnet(copy.deepcopy(subnet))
    calibrate(network, calibration)
    clips = [p.item() for n, p in network.named_parameters() if n.endswith("clip")]
    before = accuracy(network, pixels, labels)
    finetune(network, data.train, FinetuneSettings(60, 32, 5e-3), subnet)
    reestimate_batch_norm(network, calibration)
    after = accuracy(network, pixels, labels)
    assert after >= max(before, 0.85)
    assert clips != [p.item() for n, p in network.named_parameters() if n.endswith("clip")]


def test_a_network_without_bits_is_refused() -> None:
    arch = SMALL.decode(SMALL.extreme(largest=True), quantized=False)
    with pytest.raises(UserError, match="expected a subnet with bit widths"):
        QuantizedSubnet(Subnet(SMALL, arch))


def test_calibration_leaves_no_histogram_behind() -> None:
    network = QuantizedSubnet(subnet_of(SMALL, 2))
    calibrate(network, [torch.rand(32, 1, 12, 12)])
    assert all(q.histogram is None and q.enabled for q in network.modules() if isinstance(q, Quantizer))
    for name, quantizer in network.activations():
        assert quantizer.clip.item() > 0, name


def test_long_finetuning_goes_on_and_keeps_the_best(tmp_path: Path) -> None:
    data = small_data(320)
    torch.manual_seed(0)
    subnet = subnet_of(SMALL, 3)
    calibration = [to_unit(data.train.images(np.arange(256)))]
    validation = ImagesInMemory(data.held_out.images(np.arange(60)), data.held_out.labels(np.arange(60)))
    settings = FinetuneSettings(12, 32)

    def keeper(path: Path) -> BestState:
        return BestState(path, validation, calibration, {"network": 1}, every=4)

    def fresh() -> QuantizedSubnet:
        network = QuantizedSubnet(copy.deepcopy(subnet))
        calibrate(network, calibration)
        reestimate_batch_norm(network, calibration)
        return network

    whole, stopped = fresh(), fresh()
    finetune(whole, data.train, settings, subnet, keep=keeper(tmp_path / "whole"))
    assert not (tmp_path / "whole").exists()

    def stop(done: int, _: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, data.train, settings, subnet, stop, keeper(tmp_path / "stopped"))
    assert (tmp_path / "stopped").exists()
    resumed = fresh()
    finetune(resumed, data.train, settings, subnet, keep=keeper(tmp_path / "stopped"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
