"""Linear quantizers as torch modules, with learnable clips and straight-through gradients.

Weights and signed activations use the symmetric codes -(2^(b-1) - 1) .. 2^(b-1) - 1 at scale v / (2^(b-1) - 1),
activations after ReLU6 the codes 0 .. 2^b - 1 at scale v / (2^b - 1), where v is the clip. Source: APQ (CVPR 2020),
section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apq_deploy.quantize.histogram import Histogram

SMALLEST_CLIP = 1e-6
RELU6_CLIP = 6.0
WIDER, TINY = 1 + 2**-22, 2**-100
"""What widens a bound by the least that float32 can tell."""


class _FakeQuantize(torch.autograd.Function):
    """`clamp(round(x / scale), lo, hi) * scale`; the gradient passes where x is within the clamp.

    The scale's gradient is that of the formula with rounding taken as identity. Source: LSQ (ICLR 2020), section 2.1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: int, hi: int) -> Tensor:
        ratio = x / scale
        codes = ratio.round().clamp_(lo, hi)
        ctx.save_for_backward(ratio, codes, scale)
        ctx.bounds = (lo, hi)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, codes, scale = ctx.saved_tensors
        lo, hi = ctx.bounds
        grad = grads[0]
        # The bounds themselves are within the clamp; the kernel's comparison is strict.
        passed = torch.ops.aten.hardtanh_backward(grad, ratio, lo * WIDER - TINY, hi * WIDER)
        # Averaging rather than summing keeps the clip's step independent of the tensor's size.
        grad_scale = ((grad * codes).sum() - (passed * ratio).sum()) / (ratio.numel() * hi) ** 0.5
        return passed, grad_scale.view_as(scale), None, None


def power_of_two_scale(values: Tensor) -> Tensor:
    """A power of two for every positive scale: the next lower one within 2^-0.25 of it, else the next higher one.

    Not the nearest, since clipping costs more than coarser codes (docs/calibration.md).
    """
    return torch.exp2((values.log2() + 0.25).round())


class Quantizer(nn.Module):
    """Fake quantization of one tensor by `bits`.

    clip: the learnable v. signed: symmetric codes; else codes from 0, for tensors after ReLU6, whose v is at most 6.
    While `histogram` is set, tensors are only counted in it; while `enabled` is False they pass unchanged.
    With `power_of_two` the scale is a power of two near v / levels.
    """

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.clip = nn.Parameter(torch.tensor(1.0 if signed else RELU6_CLIP))
        self.histogram: Histogram | None = None
        self.enabled = True
        self.power_of_two = False

    @property
    def levels(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def scale(self) -> Tensor:
        highest = None if self.signed else RELU6_CLIP
        scale = self.clip.clamp(SMALLEST_CLIP, highest) / self.levels
        if self.power_of_two:
            scale = scale * (power_of_two_scale(scale.detach()) / scale.detach())
        return scale

    def forward(self, x: Tensor) -> Tensor:
        if self.histogram is not None:
            self.histogram.update(x.detach().cpu().numpy())
            return x
        if not self.enabled:
            return x
        lo = -self.levels if self.signed else 0
        if not torch.is_grad_enabled():
            return (x / self.scale).round_().clamp_(lo, self.levels).mul_(self.scale)  # the same with one new tensor
        return _FakeQuantize.apply(x, self.scale, lo, self.levels)

    def set_clip(self, value: float) -> None:
        with torch.no_grad():
            self.clip.fill_(value)
