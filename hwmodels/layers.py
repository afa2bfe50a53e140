"""What a hardware model is asked about: one convolution and the bit widths of its two operands."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

MIN_BITS = 1
MAX_BITS = 16


def _plain_int(description: object, name: str) -> int | None:
    """The field as a Python int, also where NumPy's integers came; None for anything else."""
    value = getattr(description, name)
    if type(value) is int:
        return value
    if not isinstance(value, Integral) or isinstance(value, bool):
        return None
    object.__setattr__(description, name, int(value))
    return int(value)


@dataclass(frozen=True, slots=True, order=True)
class Precision:
    """Bit widths of a layer's weights and of the activations that enter it.

    Raises: ValueError for a width outside 1..16.
    """

    weight_bits: int
    act_bits: int

    def __post_init__(self) -> None:
        for name in ("weight_bits", "act_bits"):
            bits = _plain_int(self, name)
            if bits is None or not MIN_BITS <= bits <= MAX_BITS:
                raise ValueError(
                    f"{name} must be an integer from {MIN_BITS} to {MAX_BITS}, got {getattr(self, name)!r}; "
                    f"choose another width"
                )

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.act_bits}"


@dataclass(frozen=True, slots=True, order=True)
class ConvLayer:
    """A square 2-D convolution, or a fully connected layer as a 1x1 convolution on one pixel.

    Sizes are in pixels, `padding` is what is added on each side. `im2col` says that the layer is unrolled to a
    matrix product, which BitFusion does for the first convolution of a network only.

    Raises: ValueError for sizes that no convolution has.
    """

    in_channels: int
    out_channels: int
    in_size: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    im2col: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "in_size", "kernel_size", "stride", "groups"):
            value = _plain_int(self, name)
            if value is None or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        padding = _plain_int(self, "padding")
        if padding is None or padding < 0:
            raise ValueError(f"padding must be a non-negative integer, got {self.padding!r}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {self.groups} for "
                f"{self.in_channels} -> {self.out_channels}"
            )
        if self.in_size + 2 * self.padding < self.kernel_size:
            raise ValueError(
                f"the kernel must fit the padded input, got kernel_size {self.kernel_size} for in_size "
                f"{self.in_size} with padding {self.padding}"
            )

    @classmethod
    def linear(cls, in_features: int, out_features: int) -> ConvLayer:
        """A fully connected layer: K = O = S = 1."""
        return cls(in_features, out_features, in_size=1, kernel_size=1)

    @property
    def out_size(self) -> int:
        return (self.in_size + 2 * self.padding - self.kernel_size) // self.stride + 1

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return self.kernel_size**2 * (self.in_channels // self.groups) * self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.weights * self.out_size**2

    def bitops(self, precision: Precision) -> int:
        """MACs * weight bits * activation bits for one image.

        Source: HAQ (CVPR 2019) and APQ (CVPR 2020), section 5.
        """
        return self.macs * precision.weight_bits * precision.act_bits

    def __str__(self) -> str:
        kind = f"depthwise {self.in_channels}" if self.is_depthwise else f"{self.in_channels}->{self.out_channels}"
        extras = "".join(
            [
                f" p{self.padding}" if self.padding else "",
                f" g{self.groups}" if self.groups > 1 and not self.is_depthwise else "",
                " im2col" if self.im2col else "",
            ]
        )
        return f"{kind} k{self.kernel_size} s{self.stride}{extras} at {self.in_size}x{self.in_size}"
