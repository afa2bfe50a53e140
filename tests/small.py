"""A small search space and small data for the tests that train."""

from __future__ import annotations

import numpy as np
import torch

from apq_deploy import SearchSpace
from apq_deploy.supernet.data import DataSplits, ImagesInMemory

SMALL = SearchSpace.from_dict(
    {
        "schema": 1,
        "name": "small",
        "input_channels": 1,
        "input_size": 12,
        "num_classes": 3,
        "stem_channels": 4,
        "head_channels": 8,
        "kernel_sizes": [3, 5, 7],
        "expand_min": 2,
        "expand_max": 4,
        "channel_step": 4,
        "bits": [4, 6, 8],
        "fixed_bits": 8,
        "stages": [
            {"out_channels": 4, "stride": 1, "depths": [1, 2]},
            {"out_channels": 6, "stride": 2, "depths": [1, 2]},
        ],
    }
)


def small_data(n_train: int = 240, n_other: int = 60) -> DataSplits:
    """Images whose class is where their bright square lies."""

    def part(n: int, seed: int) -> ImagesInMemory:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, n)
        pixels = rng.integers(0, 90, (n, 1, 12, 12))
        for image, label in zip(pixels, labels, strict=True):
            image[0, 4 * label : 4 * label + 4, 3:9] += 150
        return ImagesInMemory(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels))

    return DataSplits("small", part(n_train, 1), part(n_other, 2), part(n_other, 3))
