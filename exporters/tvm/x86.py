"""x86-64: AVX512 with VNNI, with AMX or without, AVX2, and the SSE2 that every CPU has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import ir
from exporters.tvm.isa import Isa
from exporters.tvm.layout import Clamp


@dataclass(frozen=True)
class X86(Isa):
    """Saturating packs, common to all widths: exact, since a sum beyond 16 bits is beyond any code as well."""

    def round(self, value: ir.Expr) -> ir.Expr:
        dtype = ir.vector("int32", self.lanes)
        if self.lanes == 16:
            undefined = ir.splat(0, "int32", 16)
            everywhere, current_rounding = ir.tirx.IntImm("int16", -1), ir.T.int32(4)
            name = "llvm.x86.avx512.mask.cvtps2dq.512"
            return ir.intrinsic(dtype, name, value, undefined, everywhere, current_rounding)
        return ir.intrinsic(dtype, {8: "llvm.x86.avx.cvt.ps2dq.256", 4: "llvm.x86.sse2.cvtps2dq"}[self.lanes], value)

    def codes(self, values: Sequence[ir.Expr], clamp: Clamp, may_overflow: bool) -> ir.Expr:
        words, width = 2 * self.lanes, self.width
        to_int16, to_uint8 = {
            16: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
            8: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
            4: ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
        }[self.lanes]
        if may_overflow:
            top = ir.splat(clamp.high - clamp.zero_point, "float32", self.lanes)
            values = [ir.tirx.min(value, top) for value in values]
        rounded = [ir.bind(self.round(value)) for value in values]
        pairs = [ir.intrinsic(ir.vector("int16", words), to_int16, *rounded[i : i + 2]) for i in (0, 2)]
        if clamp.zero_point:
            offset = ir.splat(clamp.zero_point, "int16", words)
            pairs = [ir.intrinsic(ir.vector("int16", words), "llvm.sadd.sat", pair, offset) for pair in pairs]
        codes = ir.bind(ir.intrinsic(ir.vector("uint8", width), to_uint8, *pairs))
        if clamp.high < 255:
            codes = ir.tirx.min(codes, ir.splat(clamp.high, "uint8", width))
        if clamp.low > 0:
            codes = ir.tirx.max(codes, ir.splat(clamp.low, "uint8", width))
        return codes


@dataclass(frozen=True)
class Vnni(X86):
    """AVX512-VNNI: one instruction for sixteen lanes of four products."""

    lanes: int = 16
    registers: int = 32
    fma: bool = True

    @property
    def tile_limit(self) -> int:
        return self.registers - 5

    def dot(self, total: ir.Expr, quads: ir.Expr, weights: ir.Expr) -> ir.Expr:
        return ir.intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", total, ir.bits(quads, "int8", 64), weights)


@dataclass(frozen=True)
class Amx(Vnni):
    """AVX512-VNNI, and beside it AMX's tiles, which take the large matrix products (`tiles.py`)."""

    narrow_groups = False


@dataclass(frozen=True)
class PairProducts(X86):
    """AVX2 and SSE2: products of 16-bit pairs (pmaddwd), since their products of bytes saturate.

    A quad is split into its even and its odd codes, and the weights are stored likewise, as int16.
    """

    weight_dtype = "int16"

    def pack_weights(self, blocks: NDArray[np.int8]) -> NDArray[np.int16]:
        halves = np.stack([blocks[..., 0::2], blocks[..., 1::2]], axis=-3)  # (..., even/odd, lanes, 2)
        return np.ascontiguousarray(halves.astype(np.int16)).reshape(-1)

    @property
    def tile_limit(self) -> int:
        return self.registers - 4

    def weights(self, buffer: ir.Buffer, block: ir.Expr) -> ir.Expr:
        words = 2 * self.lanes
        return [ir.load(buffer, block * self.block + half * words, words) for half in range(2)]

    def expand_weights(self, block: ir.Expr) -> ir.Expr:
        words = 2 * self.lanes
        pairs, eight = ir.bits(block, "int16", words), ir.splat(8, "int16", words)
        even = ir.T.shift_right(ir.T.shift_left(pairs, eight), eight)
        return [ir.bind(even), ir.bind(ir.T.shift_right(pairs, eight))]

    def quads(self, codes: ir.Expr) -> ir.Expr:
        words = 2 * self.lanes
        pairs = ir.bits(codes, "uint16", words)
        even = ir.T.bitwise_and(pairs, ir.splat(255, "uint16", words))
        odd = ir.T.shift_right(pairs, ir.splat(8, "uint16", words))
        return [ir.bind(ir.bits(half, "int16", words)) for half in (even, odd)]

    def dot(self, total: ir.Expr, quads: ir.Expr, weights: ir.Expr) -> ir.Expr:
        name = {8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}[self.lanes]
        for codes, factors in zip(quads, weights, strict=True):
            total = total + ir.intrinsic(ir.vector("int32", self.lanes), name, codes, factors)
        return total


AVX2 = PairProducts(lanes=8, registers=16, fma=True)
SSE2 = PairProducts(lanes=4, registers=16, fma=False)
VNNI = Vnni()
AMX = Amx()
