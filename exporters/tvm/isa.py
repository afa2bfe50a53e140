"""What the kernels ask of an instruction set: products of bytes, and the way back from 32-bit sums to codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import ir
from exporters.tvm.layout import Clamp

# Adding 1.5 * 2**23 leaves the nearest integer (ties to even) of a small float32 in the low bits of the sum.
ROUNDING_OFFSET = 12582912.0
ROUNDING_BITS = 0x4B400000  # that float's bits


@dataclass(frozen=True)
class Isa(ABC):
    """One family of instructions at one vector width.

    lanes: 32-bit numbers in a vector. registers: vector registers. fma: float32 fused multiply-add in hardware.
    A block of weights is `lanes` output channels times four inputs; a "quad" holds four inputs for each lane.
    """

    lanes: int
    registers: int
    fma: bool

    weight_dtype = "int8"
    narrow_groups = True  # a matrix product may take three vectors of output channels at a time instead of four
    code_offset = 0  # what `quads` takes from every code; the biases give it back

    @property
    def width(self) -> int:
        """Bytes in a vector."""
        return 4 * self.lanes

    @property
    def block(self) -> int:
        """Elements of `weight_dtype` in a block of weights."""
        return 4 * self.lanes

    def pack_weights(self, blocks: NDArray[np.int8]) -> NDArray[Any]:
        """Blocks (..., lanes, 4) in the order that `weights` reads, flat."""
        return np.ascontiguousarray(blocks).reshape(-1)

    @property
    @abstractmethod
    def tile_limit(self) -> int:
        """How many accumulators of a matrix product stay in registers."""

    def weights(self, buffer: ir.Buffer, block: ir.Expr) -> ir.Expr:
        """The operand of `dot` for block number `block`."""
        return ir.load(buffer, block * self.block, self.block)

    def expand_weights(self, block: ir.Expr) -> ir.Expr:
        """The operand of `dot` for a block held as int8, in a vector of bytes."""
        return block

    def quads(self, codes: ir.Expr) -> ir.Expr:
        """The operand of `dot` for a vector of uint8 codes, four for each lane."""
        return codes

    def broadcast(self, word: ir.Expr) -> ir.Expr:
        """The operand of `dot` with the same four codes, an int32, in each lane."""
        return self.quads(ir.bind(ir.bits(ir.T.broadcast(word, self.lanes), "uint8", self.width)))

    @abstractmethod
    def dot(self, total: ir.Expr, quads: ir.Expr, weights: ir.Expr) -> ir.Expr:
        """`total` plus, for each lane, the sum of the four products."""

    def round(self, value: ir.Expr) -> ir.Expr:
        """The nearest int32 (ties to even) of float32 values within +-2**21."""
        shifted = ir.bits(value + ir.splat(ROUNDING_OFFSET, "float32", self.lanes), "int32", self.lanes)
        return shifted - ir.splat(ROUNDING_BITS, "int32", self.lanes)

    def codes(self, values: Sequence[ir.Expr], clamp: Clamp, may_overflow: bool) -> ir.Expr:
        """Four float32 vectors, rounded, shifted by the zero point and clamped, as one vector of uint8 codes.

        Byte 16 i + 4 j + t of the result is element 4 i + t of vector j (`interleave`).
        may_overflow: some value may lie outside of the int32 range.
        """
        low, high = clamp.low - clamp.zero_point, clamp.high - clamp.zero_point
        parts = []
        for value in values:
            rounded = self.round(ir.clip(value, low, high, "float32", self.lanes))
            shifted = rounded + ir.splat(clamp.zero_point, "int32", self.lanes)
            parts.append(ir.bind(ir.cast(shifted, "uint8", self.lanes)))
        return ir.shuffle(parts, np.argsort(self.interleave()).tolist())

    def multiply_add(self, a: ir.Expr, b: ir.Expr, c: ir.Expr) -> ir.Expr:
        """a * b + c in float32 with a single rounding, for integers a below 2**16.

        Without the instruction, float64 holds the product and, for scales within 2**14 of each other, the sum exactly.
        """
        if self.fma:
            return ir.T.fma(a, b, c)
        wide = [ir.cast(value, "float64", self.lanes) for value in (a, b, c)]
        return ir.cast(wide[0] * wide[1] + wide[2], "float32", self.lanes)

    def interleave(self) -> NDArray[np.int64]:
        """For element (j, lane) of four vectors, flat, the byte of `codes` it becomes."""
        j, lane = np.divmod(np.arange(4 * self.lanes), self.lanes)
        return 16 * (lane // 4) + 4 * j + lane % 4


def unpack_nibbles(isa: Isa, packed: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
    """Operands of `dot` for the two blocks of 4-bit weights in a vector of bytes, each weight times 16."""
    words = ir.bits(packed, "int32", isa.lanes)
    high_halves = ir.splat(-0x0F0F0F10, "int32", isa.lanes)  # 0xF0 in every byte
    low = ir.T.bitwise_and(ir.T.shift_left(words, ir.splat(4, "int32", isa.lanes)), high_halves)
    high = ir.T.bitwise_and(words, high_halves)
    first, second = (isa.expand_weights(ir.bind(ir.bits(half, "int8", isa.width))) for half in (low, high))
    return first, second


def chunk_size(isa: Isa, line: int) -> int:
    """Codes taken at once from a line of `line` bytes, a multiple of 16."""
    return max(size for size in (16, 32, 64) if size <= min(isa.width, line))


def load_wide(isa: Isa, codes: ir.Buffer, start: ir.Expr, count: int) -> list[ir.Expr]:
    """`count` codes (repeated to fill a vector) as four int32 vectors, in the order that `Isa.codes` takes."""
    found = ir.load(codes, start, count)
    if count < isa.width:
        found = ir.shuffle([found] * (isa.width // count), range(isa.width))
    found, zero = ir.bind(found), ir.splat(0, "uint8", isa.width)
    halves = [ir.bind(ir.unpack(isa.width, 1, high, found, zero)) for high in (0, 1)]
    words = [ir.unpack(isa.width, 2, high, half, zero) for half in halves for high in (0, 1)]
    return [ir.bits(word, "int32", isa.lanes) for word in words]


def store_narrow(isa: Isa, output: ir.Buffer, start: ir.Expr, codes: ir.Expr, count: int) -> None:
    """Store the first `count` codes of a vector."""
    ir.store(output, start, codes if count == isa.width else ir.shuffle([codes], range(count)), count)
