"""Compiled codes against onnxruntime's and the reference's: every tensor of networks at all bit widths."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from networks import BITS, random_image, random_network

from exporters import compile_tvm, write_onnx
from exporters.parity import parity
from exporters.tvm import families
from exporters.tvm.targets import TARGETS

RUNNABLE = [name for name, target in TARGETS.items() if target.runs_here]


def check(path: Path, seed: int, weight_bits: tuple[int, ...], act_bits: tuple[int, ...], targets: list[str]) -> None:
    """Every tensor of 16 images, by each target, against the reference and onnxruntime's optimised graph."""
    rng = np.random.default_rng(seed)
    net = random_network(rng, weight_bits, act_bits, size=int(rng.integers(9, 20)))
    images = random_image(net, 16, rng)
    write_onnx(net, path)
    models = {target: compile_tvm(net, target) for target in targets}
    report = parity(net, path, images, {name: model.tensors(images) for name, model in models.items()})
    assert report.is_equal, str(report)
    logits = {name: model(images) for name, model in models.items()}
    expected = (models[targets[0]].tensors(images)[net.output.name].astype(np.float32) - net.output.zero_point) * (
        np.float32(net.output.scale)
    )
    for target, found in logits.items():
        np.testing.assert_array_equal(found, expected)
        for size in (1, 4):
            np.testing.assert_array_equal(models[target](images[:size]), expected[:size])


@pytest.mark.parametrize(("weight_bits", "act_bits"), list(product(BITS, BITS)))
def test_every_bit_pair_equals_onnxruntime(tmp_path: Path, weight_bits: int, act_bits: int) -> None:
    seed = 10 * weight_bits + act_bits
    check(tmp_path / "model.onnx", seed, (weight_bits,), (act_bits,), ["host"])


@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_bits_on_every_target_equal_onnxruntime(tmp_path: Path, seed: int) -> None:
    check(tmp_path / "model.onnx", seed, BITS, BITS, RUNNABLE)


def test_two_threads_give_the_codes_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "WORK_FOR_THREADS", 0)  # small layers would stay on one
    rng = np.random.default_rng(2)
    net = random_network(rng, size=16)
    images = random_image(net, 2, rng)
    report = parity(net, None, images, {"two threads": compile_tvm(net, threads=2).tensors(images)})
    assert report.is_equal, str(report)


AFFINITY = """
import os, sys
import numpy as np
from networks import random_image, random_network
from exporters import compile_tvm
from exporters.tvm import families

families.WORK_FOR_THREADS = 0
rng = np.random.default_rng(3)
net = random_network(rng, size=16)
model, images = compile_tvm(net, threads=2), random_image(net, 2, rng)
before = os.sched_getaffinity(0)
for use in (model, model.tensors, model.profile, model):
    use(images)
    assert os.sched_getaffinity(0) == before, os.sched_getaffinity(0)
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores can be asked for on Linux alone")
def test_two_threads_leave_all_cores_to_what_comes_after() -> None:
    """TVM binds the thread that calls it, here to one core; nothing else should be left with that core alone."""
    environment = os.environ | {"TVM_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", AFFINITY], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
