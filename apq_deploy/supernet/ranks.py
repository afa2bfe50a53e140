"""Training by several processes under torchrun: each takes its share of every batch, and all stay equal.

The batch, the subnets and the augmentation of a step are those of one process. Gradients are averaged by
DistributedDataParallel, batch-norm statistics are those of the whole batch, so the losses are those of one process but
for rounding.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from apq_deploy.arch import Arch
from apq_deploy.errors import UserError
from apq_deploy.supernet.subnet import ConvUnit

Network = Callable[[Tensor, Arch], Tensor]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together. local_rank: its place on its own machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_torchrun(cls) -> Ranks:
        """The place that torchrun gave this process; alone where it was not started so."""
        if not distributed.is_torchelastic_launched():
            return ALONE
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: str) -> Iterator[str]:
        """This process's own device, while all ranks are connected: over NCCL on GPUs, else over gloo.

        Raises: UserError for one device that all ranks would share.
        """
        if self.count == 1:
            yield device
            return
        if device not in ("cpu", "cuda"):
            raise UserError(f"expected the device cpu or cuda under torchrun, got {device!r}; every rank takes its own")
        if device == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"expected a GPU for every rank, got {torch.cuda.device_count()}; call torchrun with at most as "
                    "many --nproc-per-node"
                )
            device = f"cuda:{self.local_rank}"
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device != "cpu" else "gloo")
        try:
            yield device
        finally:
            gc.collect()  # what still uses the group would outlive it, and abort the process when Python ends
            distributed.destroy_process_group()

    def share(self, n: int) -> slice:
        """This rank's part of `n` images.

        Raises: UserError where the ranks would get different numbers: their statistics would not weigh the same.
        """
        if n % self.count:
            raise UserError(f"expected a batch that {self.count} processes share evenly, got {n} images")
        size = n // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def total(self, value: float, device: str) -> float:
        """The sum of all ranks' values."""
        if self.count == 1:
            return value
        found = torch.tensor(value, device=device)
        distributed.all_reduce(found)
        return float(found)

    def check_equal(self, values: tuple[int, ...], what: str, device: str) -> None:
        """Nothing, if all ranks have these values.

        Raises: UserError otherwise, on every rank.
        """
        if self.count == 1:
            return
        least = torch.tensor(values, device=device)
        most = least.clone()
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise UserError(
                f"expected {what} to be the same on every rank, got {least.tolist()} to {most.tolist()}; give all of "
                "them the same folders, on a file system that all machines see"
            )

    def parallel(self, network: nn.Module) -> Network:
        """`network`, whose gradients become the average over all ranks. Parameters outside a subnet get none."""
        if self.count == 1:
            return network
        # it copies the gradients of depthwise kernels, whose strides are ambiguous: a few kilobytes
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        return DistributedDataParallel(network, find_unused_parameters=True)


ALONE = Ranks()


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the statistics of all ranks' images. PyTorch's own SyncBatchNorm needs GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` (n, c, h, w) normalized with the parameters of the first c channels."""
        width = x.shape[1]
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        running_mean, running_var = self.running_mean[:width], self.running_var[:width]
        weight, bias = self.weight[:width], self.bias[:width]
        if not self.training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, eps=self.eps)
        mean, var = shared_statistics(x)
        n = distributed.get_world_size() * x.numel() / width
        with torch.no_grad():
            running_mean.lerp_(mean, self.momentum)
            running_var.lerp_(var * (n / (n - 1)), self.momentum)
        scale = weight * (var + self.eps).rsqrt()
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]


def shared_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel over all ranks' images of equal number; (c,) each."""
    own = torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)])
    ranks = [own if r == distributed.get_rank() else torch.zeros_like(own) for r in range(distributed.get_world_size())]
    means, variances = _Sum.apply(torch.stack(ranks)).unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


class _Sum(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def share_statistics(network: nn.Module) -> None:
    """Give every batch norm of a new network the statistics of all ranks' images while it trains."""
    for unit in network.modules():
        if isinstance(unit, ConvUnit):
            unit.bn = SharedBatchNorm2d(unit.bn.num_features)
