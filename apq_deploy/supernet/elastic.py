"""Elastic layers: one set of weights for every kernel size and every width. Source: OFA (ICLR 2020), section 3.3."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apq_deploy.space import Position
from apq_deploy.supernet.ranks import SharedBatchNorm2d
from apq_deploy.supernet.subnet import ConvUnit, InvertedResidual


class ElasticUnit(ConvUnit):
    """A ConvUnit whose first `in_channels` inputs and first `out_channels` outputs may be used alone."""

    def weight(self, out_channels: int, in_channels: int) -> Tensor:
        """The weights in use, (out_channels, in_channels, 1, 1)."""
        return self.conv.weight[:out_channels, :in_channels]

    def normalize(self, x: Tensor) -> Tensor:
        """Batch norm, and ReLU6 unless linear, with the parameters of the first channels."""
        bn, width = self.bn, x.shape[1]
        assert bn.running_mean is not None
        assert bn.running_var is not None
        assert bn.momentum is not None
        if isinstance(bn, SharedBatchNorm2d):
            x = bn(x)
        else:
            x = F.batch_norm(
                x,
                bn.running_mean[:width],
                bn.running_var[:width],
                bn.weight[:width],
                bn.bias[:width],
                self.training,
                bn.momentum,
                bn.eps,
            )
        return x if self.linear else F.relu6(x)

    def run(self, x: Tensor, out_channels: int) -> Tensor:
        return self.normalize(F.conv2d(x, self.weight(out_channels, x.shape[1])))


class ElasticDepthwise(ElasticUnit):
    """A depthwise ConvUnit; a smaller kernel is the centre of the next larger one through a learned transform."""

    def __init__(self, channels: int, kernel_sizes: tuple[int, ...], stride: int) -> None:
        super().__init__(channels, channels, kernel_sizes[-1], stride, groups=channels)
        self.kernel_sizes = kernel_sizes
        self.transforms = nn.ParameterDict({str(k): nn.Parameter(torch.eye(k * k)) for k in kernel_sizes[:-1]})
        self.stride = stride

    def kernel(self, kernel_size: int, channels: int) -> Tensor:
        """The weights in use, (channels, 1, kernel_size, kernel_size)."""
        weight = self.conv.weight[:channels]
        for smaller in reversed(self.kernel_sizes[:-1]):
            if kernel_size > smaller:
                break
            edge = (weight.shape[-1] - smaller) // 2
            centre = weight[:, :, edge : edge + smaller, edge : edge + smaller].reshape(channels, smaller * smaller)
            weight = (centre @ self.transforms[str(smaller)]).view(channels, 1, smaller, smaller)
        return weight

    def run_kernel(self, x: Tensor, kernel_size: int) -> Tensor:
        weight = self.kernel(kernel_size, x.shape[1])
        return self.normalize(F.conv2d(x, weight, None, self.stride, kernel_size // 2, groups=x.shape[1]))


class ElasticBlock(nn.Module):
    """An inverted-residual block at one position of the space, for every kernel size and middle width."""

    def __init__(self, position: Position, kernel_sizes: tuple[int, ...]) -> None:
        super().__init__()
        widest = position.channels[-1]
        self.expand = ElasticUnit(position.in_channels, widest, 1)
        self.depthwise = ElasticDepthwise(widest, kernel_sizes, position.stride)
        self.project = ElasticUnit(widest, position.out_channels, 1, linear=True)
        self.residual = position.has_residual
        self.out_channels = position.out_channels

    def run(self, x: Tensor, mid_channels: int, kernel_size: int) -> Tensor:
        y = self.expand.run(x, mid_channels)
        y = self.project.run(self.depthwise.run_kernel(y, kernel_size), self.out_channels)
        return x + y if self.residual else y

    @torch.no_grad()
    def sort_channels(self) -> None:
        """Order the middle channels by importance, the most important first; the full-width function stays the same.

        Importance is the L1 norm of the weights that read the channel. Source: OFA (ICLR 2020), section 3.3.
        """
        order = self.project.conv.weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
        for unit in (self.expand, self.depthwise):
            unit.conv.weight.copy_(unit.conv.weight[order])
            for tensor in (unit.bn.weight, unit.bn.bias, unit.bn.running_mean, unit.bn.running_var):
                assert tensor is not None
                tensor.copy_(tensor[order])
        self.project.conv.weight.copy_(self.project.conv.weight[:, order])

    @torch.no_grad()
    def copy_into(self, block: InvertedResidual) -> None:
        """Give a plain block the weights and statistics that this block uses for its sizes."""
        assert block.expand is not None
        mid = block.depthwise.conv.out_channels
        block.expand.conv.weight.copy_(self.expand.weight(mid, self.expand.conv.in_channels))
        block.depthwise.conv.weight.copy_(self.depthwise.kernel(block.depthwise.conv.kernel_size[0], mid))
        block.project.conv.weight.copy_(self.project.weight(self.out_channels, mid))
        for plain, elastic in (
            (block.expand, self.expand),
            (block.depthwise, self.depthwise),
            (block.project, self.project),
        ):
            for name, tensor in plain.bn.state_dict().items():
                source = elastic.bn.state_dict()[name]
                tensor.copy_(source[: len(tensor)] if tensor.ndim else source)
