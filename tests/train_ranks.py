"""One rank of a training run for test_ranks.py: `torchrun train_ranks.py FOLDER [STOP_AT]`.

Every rank writes its weights, the first one its losses as well. All stop before they train the step STOP_AT.
It computes in double precision, where rounding is too small to hide a difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small import SMALL, small_data

from apq_deploy.supernet import train
from apq_deploy.supernet.data import to_unit
from apq_deploy.supernet.ranks import Ranks
from apq_deploy.supernet.train import TrainSettings, train_supernet

SETTINGS = TrainSettings(8, 5, 4, 7, batch_size=32, checkpoint_every=4)


def in_double(images: torch.Tensor, device: str) -> torch.Tensor:
    return to_unit(images, device).double()


def main(folder: Path, stop_at: int | None) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    train.to_unit = in_double
    losses: list[tuple[str, int, float]] = []
    real = train.batch_indices

    def stopping(*arguments: object) -> object:
        if len(losses) == stop_at:
            raise SystemExit(0)
        return real(*arguments)  # type: ignore[arg-type]

    train.batch_indices = stopping  # type: ignore[assignment]
    ranks = Ranks.of_torchrun()
    with ranks.joined("cpu") as device:
        network, _ = train_supernet(
            SMALL, small_data().train, folder, SETTINGS, device, ranks, lambda *loss: losses.append(loss)
        )
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / f"rank{ranks.rank}.safetensors")
    if ranks.is_first:
        (folder / "losses.json").write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
