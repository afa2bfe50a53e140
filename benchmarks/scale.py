"""What a collection at APQ's scale takes on processors like this one, from the cost of an image in each kind of work.

    python -m benchmarks.scale [--space apq-imagenet] [--images 16] [--subnets 3]

Random subnets, random images, one thread; processor time, so that other work on the machine disturbs it little. Prints
the milliseconds of an image and the hours of docs/scale.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from apq_deploy import SearchSpace
from apq_deploy.predictor.collect import CLIP_IMAGES, CollectSettings
from apq_deploy.quantize.calibrate import calibrate
from apq_deploy.quantize.network import QuantizedSubnet
from apq_deploy.supernet.network import Supernet
from apq_deploy.supernet.train import CALIBRATION_IMAGES
from apq_deploy.text import table

FLOAT_POINTS, QUANTIZED_POINTS = 80_000, 5_000
"""Source: APQ (CVPR 2020), section 4.1."""
TRAIN_IMAGES = 1_281_167
"""ImageNet's training part. Source: ILSVRC 2012."""


def image_seconds(work: Callable[[], object], images: int) -> float:
    """Processor time of one image: the least of three runs after one that warms up."""
    work()
    taken = []
    for _ in range(3):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken) / images


def learn(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    F.cross_entropy(network(x), y).backward()


def measured_seconds(space: SearchSpace, images: int, subnets: int) -> dict[str, float]:
    """Seconds of an image, by kind of work, mean of some random subnets."""
    shape = (images, space.input_channels, space.input_size, space.input_size)
    x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
    y = torch.randint(space.num_classes, (images,))
    supernet = Supernet(space).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    largest = space.decode(space.extreme(largest=True))
    seconds: dict[str, list[float]] = {}
    for genome in space.sample(subnets, np.random.default_rng(0)):
        arch = space.decode(genome)
        subnet = supernet.extract(arch).eval()
        quantized = QuantizedSubnet(supernet.extract(arch).eval())
        calibrate(quantized, [x])
        works: dict[str, Callable[[], object]] = {
            "float, forward": torch.no_grad()(lambda s=subnet: s(x)),
            "quantized, forward": torch.no_grad()(lambda q=quantized: q(x)),
            "quantized, forward and backward": lambda q=quantized: learn(q, x, y),
            "supernet, forward and backward": lambda a=arch: learn(lambda x: supernet.train()(x, a), x, y),
            "largest, forward": torch.no_grad()(lambda: supernet.eval()(x, largest)),
            "largest, forward and backward": lambda: learn(lambda x: supernet.train()(x, largest), x, y),
        }
        for name, work in works.items():
            seconds.setdefault(name, []).append(image_seconds(work, images))
    return {name: float(np.mean(found)) for name, found in seconds.items()}


def hours(seconds: dict[str, float], settings: CollectSettings) -> dict[str, float]:
    """Processor hours of each part, as arithmetic of what it computes."""
    evaluated = CALIBRATION_IMAGES + settings.held_out_images
    float_point = evaluated * seconds["float, forward"]
    finetuned = settings.finetune_steps * settings.batch_size
    quantized_point = (
        CALIBRATION_IMAGES * seconds["float, forward"]
        + (CLIP_IMAGES + 2 * evaluated) * seconds["quantized, forward"]
        + finetuned * (seconds["quantized, forward and backward"] + seconds["float, forward"])
    )
    shrinking = seconds["largest, forward"] + 2 * seconds["supernet, forward and backward"]
    return {
        "one full-precision point": float_point / 3600,
        "one quantized point": quantized_point / 3600,
        f"{FLOAT_POINTS} full-precision points": FLOAT_POINTS * float_point / 3600,
        f"{QUANTIZED_POINTS} quantized points": QUANTIZED_POINTS * quantized_point / 3600,
        "an epoch on the largest network": TRAIN_IMAGES * seconds["largest, forward and backward"] / 3600,
        "an epoch of shrinking": TRAIN_IMAGES * shrinking / 3600,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What APQ's scale takes here.")
    parser.add_argument("--space", default="apq-imagenet")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--subnets", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    seconds = measured_seconds(SearchSpace.load(arguments.space), arguments.images, arguments.subnets)
    print(table([(name, f"{1e3 * each:.1f}") for name, each in seconds.items()], ("work", "ms per image")))
    found = hours(seconds, CollectSettings())
    print(f"\n{table([(name, f'{each:.4g}') for name, each in found.items()], ('part', 'processor hours'))}")


if __name__ == "__main__":
    main()
