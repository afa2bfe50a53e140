"""A subnet as a plain torch module: convolutions, batch norms and ReLU6, nothing elastic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apq_deploy.arch import Arch
from apq_deploy.space import SearchSpace


class ConvUnit(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, linear pointwise projection. Source: MobileNetV2 (CVPR 2018).

    Without `mid_channels` there is no expansion.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int | None,
        out_channels: int,
        kernel_size: int,
        stride: int,
        residual: bool,
    ) -> None:
        super().__init__()
        mid = mid_channels or in_channels
        self.expand = ConvUnit(in_channels, mid, 1) if mid_channels else None
        self.depthwise = ConvUnit(mid, mid, kernel_size, stride, groups=mid)
        self.project = ConvUnit(mid, out_channels, 1, linear=True)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class Subnet(nn.Module):
    """The network that an Arch describes; images (n, c, h, w) in [0, 1] -> logits (n, classes)."""

    def __init__(self, space: SearchSpace, arch: Arch) -> None:
        super().__init__()
        self.space = space
        self.arch = arch
        width = space.first_block_channels
        self.stem = ConvUnit(space.input_channels, space.stem_channels, 3, 2)
        self.first_block = InvertedResidual(space.stem_channels, None, width, 3, 1, False) if width else None
        self.stages = nn.ModuleList(
            nn.ModuleList(
                InvertedResidual(b.in_channels, b.mid_channels, b.out_channels, b.kernel_size, b.stride, b.has_residual)
                for b in stage.blocks
            )
            for stage in arch.stages
        )
        self.head = ConvUnit(space.stages[-1].out_channels, space.head_channels, 1)
        self.classifier = nn.Linear(space.head_channels, space.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.first_block is not None:
            x = self.first_block(x)
        for stage in self.stages:
            for block in stage:  # type: ignore[union-attr]
                x = block(x)
        return self.classifier(self.head(x).mean((2, 3)))


def reestimate_batch_norm(network: nn.Module, batches: list[Tensor]) -> None:
    """Set batch-norm statistics to the averages over `batches`. Source: OFA (ICLR 2020), section 3.2."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    was_training = network.training
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)
