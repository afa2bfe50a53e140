"""A subnet as the list of layers that a hardware model is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from apq_deploy.arch import Arch, Block
from apq_deploy.errors import UserError
from apq_deploy.space import Position, SearchSpace
from hwmodels.layers import ConvLayer, Precision

Part = Literal["stem", "first_block", "blocks", "head", "classifier"]
Entry = tuple[ConvLayer, Precision]


@dataclass(frozen=True, slots=True)
class NamedLayer:
    """One layer of a subnet; `part` says whether a sum of costs includes it."""

    name: str
    part: Part
    layer: ConvLayer
    precision: Precision


def block_layers(position: Position, mid_channels: int, kernel_size: int) -> tuple[ConvLayer, ConvLayer, ConvLayer]:
    """The expanding, the depthwise and the projecting convolution of a block at one position."""
    return (
        ConvLayer(position.in_channels, mid_channels, position.in_size, kernel_size=1),
        ConvLayer(
            mid_channels, mid_channels, position.in_size, kernel_size, position.stride, kernel_size // 2, mid_channels
        ),
        ConvLayer(mid_channels, position.out_channels, position.out_size, kernel_size=1),
    )


def fixed_layers(space: SearchSpace) -> tuple[list[NamedLayer], list[NamedLayer]]:
    """The layers before the first and after the last block, which every subnet shares."""
    precision = Precision(space.fixed_bits, space.fixed_bits)
    size = (space.input_size - 1) // 2 + 1
    stem, width = space.stem_channels, space.first_block_channels
    before = [
        NamedLayer(
            "stem", "stem", ConvLayer(space.input_channels, stem, space.input_size, 3, 2, 1, im2col=True), precision
        )
    ]
    if width is not None:
        before += [
            NamedLayer("first_block.depthwise", "first_block", ConvLayer(stem, stem, size, 3, 1, 1, stem), precision),
            NamedLayer("first_block.project", "first_block", ConvLayer(stem, width, size, 1), precision),
        ]
    last = space.stages[-1].out_channels
    after = [
        NamedLayer("head", "head", ConvLayer(last, space.head_channels, space.final_size, 1), precision),
        NamedLayer("classifier", "classifier", ConvLayer.linear(space.head_channels, space.num_classes), precision),
    ]
    return before, after


def arch_layers(space: SearchSpace, arch: Arch) -> list[NamedLayer]:
    """Every layer of a subnet, in order, at its precision; a subnet without bits counts at the fixed bits."""
    before, after = fixed_layers(space)
    place = {(p.stage, p.index): p for p in space.positions}
    middle = []
    for stage, choices in enumerate(arch.stages):
        for index, block in enumerate(choices.blocks):
            position = place[stage, index]
            pointwise, depthwise = _precisions(block, space.fixed_bits)
            expand, spatial, project = block_layers(position, block.mid_channels, block.kernel_size)
            middle += [
                NamedLayer(f"{position.name}.expand", "blocks", expand, pointwise),
                NamedLayer(f"{position.name}.depthwise", "blocks", spatial, depthwise),
                NamedLayer(f"{position.name}.project", "blocks", project, pointwise),
            ]
    return before + middle + after


@dataclass(frozen=True, slots=True)
class Widths:
    """The bit widths that a hardware accepts, or that were measured on it; None: all."""

    weight_bits: tuple[int, ...] | None = None
    act_bits: tuple[int, ...] | None = None

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Widths:
        """The widths that a hardware's description names."""
        found = {name: description.get(name) for name in ("weight_bits", "act_bits")}
        return cls(**{name: tuple(widths) for name, widths in found.items() if isinstance(widths, list | tuple)})

    def __str__(self) -> str:
        weight_bits, act_bits = (
            "any" if widths is None else ", ".join(map(str, widths)) for widths in (self.weight_bits, self.act_bits)
        )
        return f"weights of {weight_bits} and activations of {act_bits} bits"

    def accept(self, precision: Precision) -> bool:
        return self.accept_weight(precision.weight_bits) and self.accept_act(precision.act_bits)

    def accept_weight(self, bits: int) -> bool:
        return self.weight_bits is None or bits in self.weight_bits

    def accept_act(self, bits: int) -> bool:
        return self.act_bits is None or bits in self.act_bits


ALL_WIDTHS = Widths()


def space_entries(space: SearchSpace, widths: Widths = ALL_WIDTHS) -> list[Entry]:
    """Every distinct layer at every precision that a subnet of the space can hold, in order of appearance.

    Blocks at a width that the hardware does not accept are left out; the layers that every subnet has never are.

    Raises: UserError where no width is left for weights or activations.
    """
    for words, accept in (("weights", widths.accept_weight), ("activations", widths.accept_act)):
        if not any(map(accept, space.bits)):
            raise UserError(
                f"space {space.name!r} has blocks of {', '.join(map(str, space.bits))} bits, the hardware {widths}: no "
                f"width in common for {words}; measure one of those, or choose another space or hardware"
            )
    fixed = {(item.layer, item.precision) for part in fixed_layers(space) for item in part}
    return [e for e in dict.fromkeys(_all_entries(space)) if widths.accept(e[1]) or e in fixed]


def _all_entries(space: SearchSpace) -> Iterator[Entry]:
    before, after = fixed_layers(space)
    yield from ((item.layer, item.precision) for item in before)
    pairs = [Precision(w, a) for w in space.bits for a in space.bits]
    for position in space.positions:
        for mid in position.channels:
            for k, kernel_size in enumerate(space.kernel_sizes):
                expand, depthwise, project = block_layers(position, mid, kernel_size)
                for pair in pairs:
                    yield expand, pair
                    if space.allowed_depthwise[k, space.bits.index(pair.act_bits)]:
                        yield depthwise, pair
                    yield project, pair
    yield from ((item.layer, item.precision) for item in after)


def _precisions(block: Block, fixed_bits: int) -> tuple[Precision, Precision]:
    if block.bits is None:
        return Precision(fixed_bits, fixed_bits), Precision(fixed_bits, fixed_bits)
    bits = block.bits
    return Precision(bits.pointwise_weight, bits.pointwise_act), Precision(bits.depthwise_weight, bits.depthwise_act)
