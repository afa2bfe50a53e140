"""What a subnet is: stages of inverted-residual blocks, each with its choices and its bit widths."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from apq_deploy.errors import UserError


@dataclass(frozen=True, slots=True)
class BlockBits:
    """Bit widths of one block. Source: APQ (CVPR 2020), section 3.3.

    A convolution's activation bits are those of the tensor it reads: `pointwise_act` is the width of the block's input
    and of the depthwise convolution's output, `depthwise_act` that of the first pointwise convolution's output.
    """

    pointwise_weight: int
    pointwise_act: int
    depthwise_weight: int
    depthwise_act: int

    def __str__(self) -> str:
        return f"pw W{self.pointwise_weight}A{self.pointwise_act} dw W{self.depthwise_weight}A{self.depthwise_act}"


@dataclass(frozen=True, slots=True)
class Block:
    """One inverted-residual block: pointwise, depthwise, linear pointwise. `bits` is None in full precision."""

    in_channels: int
    mid_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    bits: BlockBits | None = None

    @property
    def has_residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one resolution; its depth is their number."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Arch:
    """A subnet of the space named `space`."""

    space: str
    stages: tuple[Stage, ...]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries; `from_json` reads them back."""
        return {"space": self.space, "stages": [[asdict(block) for block in stage.blocks] for stage in self.stages]}

    @classmethod
    def from_json(cls, data: Any) -> Arch:
        """The subnet that `to_json` wrote.

        Raises: UserError if a field is missing, unknown or of the wrong kind.
        """
        try:
            stages = tuple(
                Stage(
                    tuple(
                        Block(**(block | {"bits": BlockBits(**block["bits"]) if block["bits"] is not None else None}))
                        for block in blocks
                    )
                )
                for blocks in data["stages"]
            )
            return cls(str(data["space"]), stages)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"expected the description of a subnet, got something else ({error})") from None
