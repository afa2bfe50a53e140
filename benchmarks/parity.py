"""Codes of compiled networks against onnxruntime's optimised graph, tensor by tensor, on every target of this machine.

    python -m benchmarks.parity                      everything; some minutes
    python -m benchmarks.parity pairs mixes          nine pairs of bit widths, and 20 mixes, of subnets of `fashion`
    python -m benchmarks.parity imagenet mobilenet   subnets of `apq-imagenet` and MobileNetV2 1.0, both at 224

Subnets of `fashion` have its trained weights, the other networks random ones. 16 images each, one at a time and in
batches of 4. Exit code 1 if a code differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from apq_deploy import SearchSpace
from apq_deploy.arch import Arch, BlockBits
from apq_deploy.model import find_model
from benchmarks.mobilenet_v2 import quantized_mobilenet
from benchmarks.subnets import quantized, searched
from exporters import QuantizedNetwork, compile_tvm, read_onnx, write_onnx
from exporters.parity import compare
from exporters.runtime import run_onnx, tensors_onnx
from exporters.tvm.targets import TARGETS

IMAGES, BATCH, MIXES = 16, 4, 20
Case = tuple[str, QuantizedNetwork, Path]


def pairs(folder: Path) -> Iterator[Case]:
    """One subnet of `fashion` at every pair of bit widths."""
    space = SearchSpace.load("fashion")
    weights = find_model(space, None).supernet
    genome = space.sample(1, np.random.default_rng(0))[0]
    for weight, act in product(space.bits, space.bits):
        arch = with_bits(space.decode(genome), BlockBits(weight, act, weight, act))
        yield _written(f"fashion, {weight} x {act} bits", quantized(space, arch, weights), folder)


def mixes(folder: Path) -> Iterator[Case]:
    """Random subnets of `fashion`, each block with bits of its own."""
    space = SearchSpace.load("fashion")
    weights = find_model(space, None).supernet
    for number, genome in enumerate(space.sample(MIXES, np.random.default_rng(1))):
        yield _written(f"fashion, mix {number}", quantized(space, space.decode(genome), weights), folder)


def imagenet(folder: Path) -> Iterator[Case]:
    """Subnets of `apq-imagenet`: one that a search found, one at random."""
    space = SearchSpace.load("apq-imagenet")
    yield _written("apq-imagenet, searched", quantized(space, searched(space, 8.4)), folder)
    genome = space.sample(1, np.random.default_rng(0))[0]
    yield _written("apq-imagenet, random", quantized(space, space.decode(genome)), folder)


def mobilenet(folder: Path) -> Iterator[Case]:
    """MobileNetV2 1.0 as onnxruntime's quantize_static writes it."""
    path, _ = quantized_mobilenet(folder, 224, 1000)
    yield "MobileNetV2 1.0, 224", read_onnx(path), path


PARTS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "pairs": pairs,
    "mixes": mixes,
    "imagenet": imagenet,
    "mobilenet": mobilenet,
}


def with_bits(arch: Arch, bits: BlockBits) -> Arch:
    """The same subnet with one choice of bits for every block."""
    stages = (
        replace(stage, blocks=tuple(replace(block, bits=bits) for block in stage.blocks)) for stage in arch.stages
    )
    return replace(arch, stages=tuple(stages))


def _written(name: str, net: QuantizedNetwork, folder: Path) -> Case:
    path = folder / "subnet.onnx"
    write_onnx(net, path)
    return name, net, path


def differing(net: QuantizedNetwork, path: Path, target: str) -> int:
    """Codes and logits of the compiled network that are not onnxruntime's, whatever the batch."""
    images = np.random.default_rng(2).random((IMAGES, *net.input.shape), dtype=np.float32)
    model = compile_tvm(net, target)
    found, logits = 0, run_onnx(path, images)
    for size in (1, BATCH):
        batches = [images[i : i + size] for i in range(0, IMAGES, size)]
        found += int(np.count_nonzero(np.concatenate([model(batch) for batch in batches]) != logits))
    for start in range(0, IMAGES, BATCH):  # every tensor of all images at once would take gigabytes at 224
        batch = images[start : start + BATCH]
        ours, theirs = model.tensors(batch), tensors_onnx(path, batch)
        for name in net.tensors:
            difference = compare(target, name, None, theirs[name], ours[name])
            found += 0 if difference is None else difference.differing
    return found


def main() -> int:
    """Print how many codes differ, network by network; 1 if any does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)}; all if left out")
    parser.add_argument("--targets", nargs="+", default=[name for name, target in TARGETS.items() if target.runs_here])
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; known are {', '.join(PARTS)}")
    total = networks = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts or PARTS:
            for name, net, path in PARTS[part](Path(folder)):
                counts = {target: differing(net, path, target) for target in options.targets}
                words = ", ".join(f"{target} {count}" for target, count in counts.items())
                print(f"{name:24} {len(net.tensors):4} tensors, codes that differ: {words}", flush=True)
                total, networks = total + sum(counts.values()), networks + 1
    print(f"{networks} networks, {IMAGES} images each: {total} codes differ")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
