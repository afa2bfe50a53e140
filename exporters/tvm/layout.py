"""How an activation lies in memory: rows of pixels, channels innermost, with its zero padding around it."""

from __future__ import annotations

from dataclasses import dataclass

from exporters.qnet import QTensor
from exporters.tvm import ir

Border = tuple[int, int, int, int]  # top, left, bottom, right; in pixels
SIGNED_SHIFT = 128  # int8 codes are held as code + 128: kernels know unsigned codes only


@dataclass(frozen=True)
class Clamp:
    """The range of codes a kernel writes, as unsigned bytes."""

    zero_point: int
    low: int
    high: int

    @classmethod
    def of(cls, tensor: QTensor) -> Clamp:
        shift = SIGNED_SHIFT if tensor.dtype == "int8" else 0
        return cls(tensor.zero_point + shift, tensor.lo + shift, tensor.hi + shift)


@dataclass(frozen=True)
class Layout:
    """One image of an activation, as bytes.

    channels, height, width: what the network means. pitch: bytes from a pixel to the next (channels, padded).
    border: padding that the convolutions reading the tensor ask for; the tensor's writer fills it with the zero point,
    so that no reader has an edge case.
    """

    channels: int
    height: int
    width: int
    pitch: int
    border: Border = (0, 0, 0, 0)

    @property
    def row(self) -> int:
        """Bytes from a row to the next."""
        return (self.border[1] + self.width + self.border[3]) * self.pitch

    @property
    def size(self) -> int:
        """Bytes of the whole buffer."""
        return (self.border[0] + self.height + self.border[2]) * self.row

    @property
    def origin(self) -> int:
        """Offset of the first pixel within the border."""
        return self.border[0] * self.row + self.border[1] * self.pitch

    def flat(self) -> Layout:
        """The same bytes as a single row of pixels; itself where a border lies between the rows."""
        if any(self.border):
            return self
        return Layout(self.channels, 1, self.height * self.width, self.pitch)


def fill_border(buffer: ir.Buffer, layout: Layout, value: int, width: int) -> None:
    """Write `value` around the image, at most `width` bytes at a time."""
    if not any(layout.border):
        return
    _, left, bottom, right = layout.border
    _fill(buffer, 0, layout.origin, value, layout.pitch, width)
    gap = (left + right) * layout.pitch
    if gap and layout.height > 1:
        with ir.loop(layout.height - 1) as y:
            _fill(buffer, layout.origin + y * layout.row + layout.width * layout.pitch, gap, value, layout.pitch, width)
    tail = right * layout.pitch + bottom * layout.row
    _fill(buffer, layout.size - tail, tail, value, layout.pitch, width)


def _fill(buffer: ir.Buffer, start: ir.Expr, count: int, value: int, pitch: int, width: int) -> None:
    """Write `count` bytes, a multiple of `pitch`."""
    done = 0
    while done < count:
        size = next(size for size in (64, 32, 16, 8, 4, 1) if size <= min(width, count - done))
        times = (count - done) // size
        with ir.loop(times) as i:
            ir.store(buffer, start + done + i * size, ir.splat(value, "uint8", size), size)
        done += times * size
