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
from small import SMALL, small_data
from train_ranks import SETTINGS

from apq_deploy import UserError
from apq_deploy.supernet.data import augment
from apq_deploy.supernet.ranks import Ranks
from apq_deploy.supernet.train import train_supernet

SCRIPT = Path(__file__).parent / "train_ranks.py"
# Rounding alone sets the two apart: by 7e-5 after 60 steps. Statistics of half of the batch would by 1e-2.
LOSS_TOLERANCE = 3e-4
WEIGHT_TOLERANCE = 5e-3
STOP_AT = 11  # in the second phase, three steps after a checkpoint


def two_processes(*arguments: str) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT))
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    """They are stopped once and go on from the checkpoint."""
    folder = tmp_path / "two"
    folder.mkdir()
    two_processes(str(folder), str(STOP_AT))
    assert not (folder / "supernet.safetensors").exists()
    two_processes(str(folder))
    found = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    expected: list[tuple[str, int, float]] = []
    train_supernet(SMALL, small_data().train, tmp_path, SETTINGS, on_loss=lambda *loss: expected.append(loss))
    assert len(expected) == 24
    assert len(found) == 24 - 8  # the checkpoint was made after the first phase
    for (phase, step, loss), (same_phase, same_step, same_loss) in zip(expected[8:], found, strict=True):
        assert (phase, step) == (same_phase, same_step)
        assert loss == pytest.approx(same_loss, abs=LOSS_TOLERANCE)
    ranks = [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]
    one = load_file(tmp_path / "supernet.safetensors")
    for name, tensor in ranks[0].items():
        assert torch.equal(tensor, ranks[1][name]), name
        if tensor.is_floating_point():
            assert (tensor - one[name].float()).abs().max() <= WEIGHT_TOLERANCE, name


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
