"""What a supernet is worth: the accuracy of its largest, its smallest and of random subnets."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from apq_deploy.progress import progress
from apq_deploy.quantize.network import accuracy
from apq_deploy.supernet.data import ImagesInMemory
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.subnet import reestimate_batch_norm


def measure_supernet(
    network: Supernet, images: ImagesInMemory, calibration: list[Tensor], n_random: int, seed: int
) -> dict[str, float]:
    """Accuracies in percent on `images`, batch norm re-estimated for every subnet."""
    space = network.space
    rng = np.random.default_rng((seed, 6))
    genomes = [space.extreme(largest=True), space.extreme(largest=False), *space.sample(n_random, rng)]
    found = []
    with progress("measure subnets", len(genomes)) as advance:
        for genome in genomes:
            subnet = network.extract(space.decode(genome, quantized=False)).eval()
            reestimate_batch_norm(subnet, calibration)
            found.append(100 * accuracy(subnet, images.pixels, images.classes))
            advance(len(found), f"{found[-1]:.2f}%")
    random = np.array(found[2:])
    return {
        "images": float(len(images)),
        "largest": found[0],
        "smallest": found[1],
        "random_subnets": float(n_random),
        "random_mean": float(random.mean()),
        "random_std": float(random.std()),
        "random_min": float(random.min()),
        "random_max": float(random.max()),
    }
