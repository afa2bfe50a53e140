"""Subnets of the search spaces as quantized networks, and the same layers in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from apq_deploy import SearchSpace
from apq_deploy.arch import Arch
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.convert import to_integers
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.search import Budget, Evolution, SpaceCosts, search
from apq_deploy.supernet.network import Supernet, load_supernet
from apq_deploy.supernet.subnet import reestimate_batch_norm
from apq_deploy.workload import space_entries
from benchmarks.float_graph import FloatGraph, Value
from benchmarks.search import random_network
from exporters.qnet import QAdd, QConv, QDepthwise, QLinear, QPool, QuantizedNetwork
from hwmodels import build_table, load_hardware


def searched(space: SearchSpace, latency_ms: float, generations: int = 100) -> Arch:
    """The subnet that a search finds on BitFusion within the budget, with a fixed random network as the predictor."""
    table = build_table(load_hardware("bitfusion"), space_entries(space))
    costs = SpaceCosts.from_table(space, table, "apq")
    accuracy = random_network(space.n_features)
    return search(costs, accuracy, Budget(latency_ms=latency_ms), settings=Evolution(generations=generations)).arch


def quantized(space: SearchSpace, arch: Arch, weights: Path | None = None) -> QuantizedNetwork:
    """The subnet, calibrated on random images. weights: of a trained supernet; None for random ones."""
    torch.manual_seed(0)
    supernet = load_supernet(space, weights) if weights is not None else Supernet(space)
    subnet = supernet.extract(arch).eval()
    images = torch.rand(4, space.input_channels, space.input_size, space.input_size)
    reestimate_batch_norm(subnet, [images])
    network = QuantizedSubnet(subnet).eval()
    calibrate(network, [images])
    return to_integers(network)


def float_twin(net: QuantizedNetwork, path: Path) -> None:
    """Write a float network of the same layers, with random weights, to `path`.

    Raises: ValueError for a layer that subnets do not have.
    """
    graph = FloatGraph(np.random.default_rng(0))
    channels, size, _ = net.input.shape
    values: dict[str, Value] = {net.input.name: graph.image(channels, size)}
    for layer in net.layers:
        source, name = values[layer.input], layer.output.name
        match layer:
            case QConv() | QDepthwise():
                groups = source.shape[0] if isinstance(layer, QDepthwise) else 1
                kernel, out = layer.weight.shape[2], layer.weight.shape[0]
                value = graph.conv(name, source, out, kernel, layer.stride, groups, layer.padding)
                if layer.output.lo == layer.output.zero_point:  # nothing below zero: an activation is fused
                    value = graph.relu6(f"{name}.clip", value)
            case QAdd():
                value = graph.add(name, *(values[input_name] for input_name in layer.inputs))
            case QPool():
                value = graph.global_average_pool(name, source)
            case QLinear():
                value = graph.linear(name, source, len(layer.weight))
            case _:
                raise ValueError(f"layer {layer.name}: expected a layer of a subnet, got {type(layer).__name__}")
        values[name] = value
    graph.save(path, values[net.output.name], f"{net.name}-float")
