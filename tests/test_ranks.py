"""Training by two processes: the losses and weights of one, the same on both, also after a stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import small_data

from apq_deploy import UserError
from apq_deploy.supernet.data import augment
from apq_deploy.supernet.ranks import Ranks

SCRIPT = Path(__file__).parent / "train_ranks.py"
# In double precision, by rounding alone. In single precision it is up to 1e-4 after 60 steps; statistics of half of the
# batch would set the losses apart by 1e-2.
TOLERANCE = 1e-9
RANK0, RANK1 = "rank0.safetensors", "rank1.safetensors"
STOP_AT = 11  # in the second phase, three steps after a checkpoint


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    """They are stopped once and go on from the checkpoint."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    run(str(SCRIPT), str(one))
    run(*TORCHRUN, str(SCRIPT), str(two), str(STOP_AT))
    assert not (two / "supernet.safetensors").exists()
    run(*TORCHRUN, str(SCRIPT), str(two))
    expected, found = (json.loads((folder / "losses.json").read_text(encoding="utf-8")) for folder in (one, two))
    assert len(expected) == 24
    assert len(found) == 24 - 8  # the checkpoint was made after the first phase
    for (phase, step, loss), (same_phase, same_step, same_loss) in zip(expected[8:], found, strict=True):
        assert (phase, step) == (same_phase, same_step)
        assert loss == pytest.approx(same_loss, abs=TOLERANCE)
    alone, first, second = (load_file(folder / name) for folder, name in ((one, RANK0), (two, RANK0), (two, RANK1)))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        if tensor.is_floating_point():
            assert (tensor - alone[name]).abs().max() <= 1e3 * TOLERANCE, name


def test_shares_make_the_batch() -> None:
    ranks = [Ranks(rank, 3) for rank in range(3)]
    images = small_data().train.images(np.arange(12))
    whole = augment(images, np.random.default_rng(0))
    parts = [augment(images[r.share(12)], np.random.default_rng(0), 12, r.share(12)) for r in ranks]
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(UserError, match="3 processes share evenly, got 32 images"):
        ranks[0].share(32)


def test_every_rank_needs_its_own_device() -> None:
    with pytest.raises(UserError, match="expected the device cpu or cuda under torchrun"), Ranks(0, 2).joined("cuda:1"):
        pass
