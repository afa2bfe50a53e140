"""A subnet with the bits of its Arch: fake-quantized in torch just as the exported integer network will compute.

Weights are quantized per tensor before batch norm, whose factor becomes the per-channel scale of the export (as HAQ
does). An activation has the bit width of the convolution that reads it; a block's output before the residual addition
has the space's fixed width, since no convolution reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apq_deploy.errors import UserError
from apq_deploy.quantize.quantizers import Quantizer, power_of_two_scale
from apq_deploy.supernet.data import to_unit
from apq_deploy.supernet.subnet import ConvUnit, InvertedResidual, Subnet

IMAGE_SCALE, POWER_IMAGE_SCALE = 1 / 255, 1 / 256
"""1/255 makes the 8-bit codes of an image its pixels; 1/256 is the power of two next to it."""
# A channel whose folded weights are nearly zero would get a scale so small that its bias overflows the accumulator; the
# scale is raised until the bias stays below this, within which float32 sums are exact too.
LARGEST_BIAS = 2**23
SMALLEST_SCALE = 1e-30


def folded_scale(factor: Tensor, weight: Quantizer) -> Tensor:
    """Scale of every channel's weights with batch norm's `factor` in them, (out,)."""
    own = (factor.abs() * weight.scale).clamp(min=SMALLEST_SCALE)
    return power_of_two_scale(own.detach()) if weight.power_of_two else own


def accumulator_scale(
    own: Tensor, largest_codes: Tensor, bias: Tensor, weight: Quantizer, input_scale: float
) -> Tensor:
    """Weight scale of every channel that makes the accumulator's step as fine as it can be, (out,).

    own: scale of the folded weights. Codes that use a part of their range only can be multiplied by a whole number and
    the scale divided by it, which changes no product; a channel without any weight left gets the finest step that its
    bias allows.
    """
    least = (bias.abs() / (input_scale * LARGEST_BIAS)).clamp(min=SMALLEST_SCALE)
    finer = torch.where(largest_codes > 0, (weight.levels / largest_codes.clamp(min=1)).floor(), torch.inf)
    finer = torch.minimum(finer, (own / least).floor()).clamp(min=1)
    scale = torch.maximum(own / finer, least)
    return torch.exp2(scale.log2().ceil()) if weight.power_of_two else scale


class QuantizedUnit(nn.Module):
    """Convolution with quantized weights, batch norm, ReLU6 unless linear, quantized output.

    The bias that batch norm leaves is rounded to the step of the integer accumulator, as the export must do: with few
    bits that step is coarse, and what reads the tensor has to be estimated and trained on what it will get.
    """

    def __init__(self, unit: ConvUnit, weight_bits: int, out_bits: int, source: Quantizer | None) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple: it belongs to another unit
        self.conv = unit.conv
        self.bn = unit.bn
        self.linear = unit.linear
        self.weight = Quantizer(weight_bits, signed=True)
        self.output = Quantizer(out_bits, signed=unit.linear)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        weight = self._folded_by_powers() if self._by_powers else self.weight(conv.weight)
        y = self.bn(F.conv2d(x, weight, None, conv.stride, conv.padding, groups=conv.groups))
        if self.weight.enabled:
            y = y + self._bias_rounding(weight)[:, None, None]
        return self.output(y if self.linear else F.relu6(y))

    @property
    def input_scale(self) -> float:
        """Scale of the tensor that the convolution reads."""
        source = self._source[0]
        if source is None:
            return POWER_IMAGE_SCALE if self.weight.power_of_two else IMAGE_SCALE
        return source.scale.item()

    @property
    def _by_powers(self) -> bool:
        return self.weight.power_of_two and self.weight.enabled

    def _folded_by_powers(self) -> Tensor:
        """Weights that are quantized after batch norm's factor, by a power of two for every channel, as exported.

        The factor is taken out again, for batch norm to apply. The gradient passes rounding, not the clamp.
        """
        factor = self.batch_norm()[0][:, None, None, None]
        own = folded_scale(factor, self.weight)
        ratio = self.conv.weight * factor / own
        codes = ratio.clamp(-self.weight.levels, self.weight.levels)
        codes = codes + (codes.round() - codes).detach()
        return torch.where(factor == 0, 0.0, codes * own / torch.where(factor == 0, 1.0, factor))

    def batch_norm(self) -> tuple[Tensor, Tensor]:
        """Factor and bias of every channel, (out,) each, by the present statistics."""
        bn = self.bn
        assert bn.running_mean is not None and bn.running_var is not None
        factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        return factor, bn.bias - bn.running_mean * factor

    @torch.no_grad()
    def _bias_rounding(self, weight: Tensor) -> Tensor:
        """What rounding adds to the bias of every channel, (out,)."""
        factor, bias = self.batch_norm()
        own = folded_scale(factor, self.weight)
        unit = own / factor.abs() if self._by_powers else self.weight.scale
        codes = (weight.flatten(1).abs().amax(1) / unit).round()
        step = self.input_scale * accumulator_scale(own, codes, bias, self.weight, self.input_scale)
        return (bias / step).round() * step - bias


class QuantizedBlock(nn.Module):
    """An inverted-residual block; `add` quantizes the sum where there is a residual connection."""

    def __init__(
        self,
        block: InvertedResidual,
        pointwise: tuple[int, int],
        depthwise: tuple[int, int],
        out_bits: int,
        fixed: int,
        source: Quantizer,
    ) -> None:
        super().__init__()
        self.expand = None
        if block.expand is not None:
            self.expand = QuantizedUnit(block.expand, pointwise[0], depthwise[1], source)
            source = self.expand.output
        self.depthwise = QuantizedUnit(block.depthwise, depthwise[0], pointwise[1], source)
        project_bits = fixed if block.residual else out_bits
        self.project = QuantizedUnit(block.project, pointwise[0], project_bits, self.depthwise.output)
        self.add = Quantizer(out_bits, signed=True) if block.residual else None

    @property
    def output(self) -> Quantizer:
        """What quantizes the block's output."""
        return self.project.output if self.add is None else self.add

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(x) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return self.add(x + y) if self.add is not None else y


class QuantizedSubnet(nn.Module):
    """The quantized form of a subnet; it owns the subnet's modules from now on.

    Images (n, c, h, w) are k / 255 with whole k, so that their 8-bit codes are exact; logits (n, classes).

    Raises: UserError if the subnet's Arch carries no bits.
    """

    def __init__(self, subnet: Subnet) -> None:
        super().__init__()
        space, arch = subnet.space, subnet.arch
        self.space, self.arch = space, arch
        fixed = space.fixed_bits
        bits = [block.bits for block in arch.blocks]
        if any(b is None for b in bits):
            raise UserError("expected a subnet with bit widths, got one in full precision")
        widths = [b for b in bits if b is not None]
        reads = [b.pointwise_act for b in widths] + [fixed]  # what reads the output of every block
        first = subnet.first_block
        self.stem = QuantizedUnit(subnet.stem, fixed, reads[0] if first is None else fixed, None)
        source = self.stem.output
        self.first_block = None
        if first is not None:
            self.first_block = QuantizedBlock(first, (fixed, fixed), (fixed, fixed), reads[0], fixed, source)
            source = self.first_block.output
        self.stages = nn.ModuleList()
        index = 0
        for stage in subnet.stages:
            blocks = nn.ModuleList()
            for block in stage:  # type: ignore[union-attr]
                b = widths[index]
                quantized = QuantizedBlock(
                    block,
                    (b.pointwise_weight, b.pointwise_act),
                    (b.depthwise_weight, b.depthwise_act),
                    reads[index + 1],
                    fixed,
                    source,
                )
                blocks.append(quantized)
                source = quantized.output
                index += 1
            self.stages.append(blocks)
        self.head = QuantizedUnit(subnet.head, fixed, fixed, source)
        self.pool = Quantizer(fixed, signed=False)
        self.classifier = subnet.classifier
        self.classifier_weight = Quantizer(fixed, signed=True)
        self.logits = Quantizer(fixed, signed=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool.power_of_two:
            x = (x / POWER_IMAGE_SCALE).round().clamp(max=255) * POWER_IMAGE_SCALE
        x = self.stem(x)
        for _, block in self.named_blocks():
            x = block(x)
        x = self.pool(self.head(x).mean((2, 3)))
        return self.logits(F.linear(x, self.classifier_weight(self.classifier.weight), self.classifier.bias))

    def named_blocks(self) -> Iterator[tuple[str, QuantizedBlock]]:
        """The blocks by the names that every report uses, in order."""
        if self.first_block is not None:
            yield "first_block", self.first_block
        for s, stage in enumerate(self.stages, 1):
            for b, block in enumerate(stage, 1):  # type: ignore[arg-type]
                yield f"stage{s}.block{b}", block

    def use_power_of_two_scales(self) -> None:
        """Round every scale to a power of two, so that integers and floats agree on every runtime."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.power_of_two = True

    def units(self) -> Iterator[tuple[str, QuantizedUnit]]:
        """Every convolution with its name, in order."""
        yield "stem", self.stem
        for name, block in self.named_blocks():
            if block.expand is not None:
                yield f"{name}.expand", block.expand
            yield f"{name}.depthwise", block.depthwise
            yield f"{name}.project", block.project
        yield "head", self.head

    def weights(self) -> Iterator[tuple[str, Quantizer, Tensor]]:
        """Every weight quantizer with its layer's name and its float weights."""
        for name, unit in self.units():
            yield name, unit.weight, unit.conv.weight
        yield "classifier", self.classifier_weight, self.classifier.weight

    def activations(self) -> Iterator[tuple[str, Quantizer]]:
        """Every activation quantizer with the name of what it quantizes."""
        for name, unit in self.units():
            if name == "head":
                for block_name, block in self.named_blocks():
                    if block.add is not None:
                        yield f"{block_name}.add", block.add
            yield name, unit.output
        yield "pool", self.pool
        yield "classifier", self.logits


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> float:
    """Share of uint8 images (n, c, h, w) whose largest logit is the label's, the network in evaluation mode."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    right = 0
    for start in range(0, len(images), batch_size):
        logits = network(to_unit(images[start : start + batch_size], device))
        right += int((logits.argmax(1).cpu() == labels[start : start + batch_size]).sum())
    network.train(was_training)
    return right / len(images)
