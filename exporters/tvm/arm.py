"""aarch64: NEON that every 64-bit Arm CPU has, and the dot products of Armv8.2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import ir
from exporters.tvm.isa import Isa


@dataclass(frozen=True)
class DotProduct(Isa):
    """sdot multiplies signed bytes, so codes are moved down by 128, and the weights' sum times 128 is added back.

    usdot would take the codes as they are, but few CPUs have it.
    """

    lanes: int = 4
    registers: int = 32
    fma: bool = True

    code_offset = 128

    @property
    def tile_limit(self) -> int:
        return self.registers - 5

    def quads(self, codes: ir.Expr) -> ir.Expr:
        return ir.bind(ir.bits(ir.T.bitwise_xor(codes, ir.splat(128, "uint8", 16)), "int8", 16))

    def dot(self, total: ir.Expr, quads: ir.Expr, weights: ir.Expr) -> ir.Expr:
        return ir.intrinsic("int32x4", "llvm.aarch64.neon.sdot", total, quads, weights)


@dataclass(frozen=True)
class Widening(Isa):
    """Products of 16-bit halves (smull, smlal): a quad is split into its four codes, the weights stored likewise."""

    lanes: int = 4
    registers: int = 32
    fma: bool = True

    weight_dtype = "int16"

    def pack_weights(self, blocks: NDArray[np.int8]) -> NDArray[np.int16]:
        return np.ascontiguousarray(np.swapaxes(blocks, -1, -2).astype(np.int16)).reshape(-1)

    @property
    def tile_limit(self) -> int:
        return self.registers - 10

    def weights(self, buffer: ir.Buffer, block: ir.Expr) -> ir.Expr:
        return [ir.bind(ir.load(buffer, block * self.block + i * self.lanes, self.lanes)) for i in range(4)]

    def expand_weights(self, block: ir.Expr) -> ir.Expr:
        return self.quads(block)

    def quads(self, codes: ir.Expr) -> ir.Expr:
        wide = ir.bind(ir.cast(codes, "int16", 16))
        return [ir.bind(ir.shuffle([wide], range(i, 16, 4))) for i in range(4)]

    def dot(self, total: ir.Expr, quads: ir.Expr, weights: ir.Expr) -> ir.Expr:
        for code, factor in zip(quads, weights, strict=True):
            total = total + ir.cast(code, "int32", 4) * ir.cast(factor, "int32", 4)
        return total


NEON_DOT = DotProduct()
NEON = Widening()
