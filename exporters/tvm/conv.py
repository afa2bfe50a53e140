"""Convolution with groups 1, and with it the pointwise convolution and the fully connected layer: a matrix product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from exporters.tvm import ir
from exporters.tvm.isa import Isa, unpack_nibbles
from exporters.tvm.layout import Clamp, Layout, fill_border

WIDE_GROUP = 4  # vectors of output channels that are packed into one vector of codes


@dataclass(frozen=True)
class ConvSpec:
    """What sets the code of a convolution apart; weights, biases and scales are arguments of the kernel.

    padding: top and left only; the layouts give the rest. may_overflow: see `Isa.codes`. parts: int8 weights that
    make up a weight, more than one where its zero point leads out of int8. packed: weights of 4 bits lie two to a
    byte, and all sums are 16 times what they mean (`pack_nibbles`).
    """

    source: Layout
    target: Layout
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    clamp: Clamp
    may_overflow: bool = False
    parts: int = 1
    packed: bool = False

    @property
    def words(self) -> int:
        """32-bit words of four input channels in a pixel."""
        return -(-self.source.channels // 4)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def steps(self) -> int:
        """Length of the sum, in words."""
        return self.taps * self.words

    @property
    def runs(self) -> tuple[int, int]:
        """Runs of bytes that a row of taps lies in, and the words of each: a single run where no padding parts them."""
        if self.words * 4 == self.source.pitch:
            return 1, self.words * self.kernel[1]
        return self.kernel[1], self.words

    def flat(self) -> ConvSpec:
        """The same convolution over a single row of pixels, where neither stride nor border forbids it."""
        plain = self.kernel == (1, 1) and self.stride == 1 and not any(self.source.border + self.target.border)
        if not plain:
            return self
        return replace(self, source=self.source.flat(), target=self.target.flat())


@dataclass(frozen=True)
class Tile:
    """Pixels (rows x columns) times vectors of output channels whose sums are held in registers."""

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """(row, column) of each pixel."""
        return [(row, column) for row in range(self.rows) for column in range(self.columns)]


def tile_work(isa: Isa, spec: ConvSpec, tile: Tile) -> float:
    """Estimated time of all tiles of one group of channels, in products of one vector; overlaps at edges included."""
    pixels = tile.rows * tile.columns
    sums = pixels * tile.vectors
    # A product's latency hides behind at least eight others; operands cost a quarter of a product. Codes of four
    # vectors are stored as they are packed, others are put in order first.
    per_step = max(sums, 8) + 0.25 * (pixels + tile.vectors)
    per_sum = 4 if tile.vectors == WIDE_GROUP else 6
    count = -(-spec.target.height // tile.rows) * -(-spec.target.width // tile.columns)
    return count * (spec.steps * per_step + per_sum * sums + 24)


@cache
def choose_tile(isa: Isa, spec: ConvSpec, vectors: int) -> Tile:
    """The tile with the least estimated work for groups of `vectors` output vectors."""
    height, width = spec.target.height, spec.target.width
    limit = max(1, (isa.tile_limit - (vectors if isa.registers > 16 else 0)) // vectors)
    tiles = [
        Tile(rows, columns, vectors)
        for rows in range(1, min(height, limit) + 1)
        for columns in range(1, min(width, limit // rows) + 1)
    ]
    return min(tiles, key=lambda tile: tile_work(isa, spec, tile))


@cache
def group_sizes(isa: Isa, spec: ConvSpec) -> tuple[int, ...]:
    """Vectors of output channels in each group: four, or three where that fits pixels better, and once the rest."""
    flat, vectors = spec.flat(), spec.target.pitch // isa.lanes

    def split(size: int) -> tuple[int, ...]:
        full, rest = divmod(vectors, size)
        return (size,) * full + ((rest,) if rest else ())

    def work(sizes: tuple[int, ...]) -> float:
        found = sum(tile_work(isa, flat, choose_tile(isa, flat, size)) for size in sizes)
        return found if sizes[0] == WIDE_GROUP else 1.06 * found  # measured: what the estimate misses

    choices = [WIDE_GROUP] if spec.packed or not isa.narrow_groups else [WIDE_GROUP, WIDE_GROUP - 1]
    return min((split(size) for size in choices), key=work)


def channel_order(isa: Isa, spec: ConvSpec) -> NDArray[np.int64]:
    """The channel that stands at each place of the packed weights: groups of four vectors come out in natural order."""
    order, start = [], 0
    for size in group_sizes(isa, spec):
        count = size * isa.lanes
        within = isa.interleave() if size == WIDE_GROUP else np.arange(count)
        order.append(start + within)
        start += count
    return np.concatenate(order)


def split_weight(weight: NDArray[np.int16]) -> NDArray[np.int8]:
    """(parts, *weight.shape): int8 weights whose sum is `weight`; one part where that is enough."""
    parts, rest = [], weight
    while not parts or np.any(rest):
        parts.append(np.clip(rest, -128, 127).astype(np.int8))
        rest = rest - parts[-1]
    return np.stack(parts)


def pack_conv(isa: Isa, spec: ConvSpec, weight: NDArray[np.int8]) -> NDArray[np.generic]:
    """(parts, out, in, k_h, k_w) -> [vector][k_h][k_w][word][part][lane][4], zeros up to the target's pitch."""
    return isa.pack_weights(_blocks(isa, spec, weight))


def _blocks(isa: Isa, spec: ConvSpec, weight: NDArray[np.int8]) -> NDArray[np.int8]:
    channels = spec.target.pitch
    parts, out, inside, k_h, k_w = weight.shape
    words = -(-inside // 4)
    padded = np.zeros((parts, channels, words * 4, k_h, k_w), np.int8)
    padded[:, :out, :inside] = weight
    ordered = padded[:, channel_order(isa, spec)]
    blocks = ordered.reshape(parts, channels // isa.lanes, isa.lanes, words, 4, k_h, k_w)
    return blocks.transpose(1, 5, 6, 3, 0, 2, 4)


def pack_nibbles(isa: Isa, spec: ConvSpec, weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """(1, out, in, k_h, k_w) -> [pair of vectors][k_h][k_w][word][lane][4], the first vector in the low halves."""
    blocks = _blocks(isa, spec, weight)
    vectors = np.ascontiguousarray(blocks).reshape(len(blocks), -1)
    vectors = np.concatenate([vectors, np.zeros((len(vectors) % 2, vectors.shape[1]), np.int8)])
    low, high = vectors[0::2].view(np.uint8), vectors[1::2].view(np.uint8)
    return ((low & 15) | (high << 4)).astype(np.uint8).view(np.int8).reshape(-1)


def conv_kernel(isa: Isa, spec: ConvSpec, threads: int) -> ir.Kernel:
    """(source uint8, weights, bias int32, scale float32, target uint8)."""
    sizes = group_sizes(isa, spec)
    flat = spec.flat()

    def body(*buffers: ir.Buffer) -> None:
        fill_border(buffers[-1], flat.target, flat.clamp.zero_point, isa.width)
        for groups in equal_groups(sizes):
            _groups(isa, flat, buffers, groups, threads)

    return ir.Kernel(kernel_arguments(isa, spec), body)


def kernel_arguments(isa: Isa, spec: ConvSpec) -> tuple[tuple[int, str], ...]:
    """Size and type of each buffer of the kernel."""
    channels = spec.target.pitch
    vectors = channels // isa.lanes
    if spec.packed:
        stored = -(-vectors // 2) * spec.steps * isa.width, "int8"
    else:
        stored = vectors * spec.steps * spec.parts * isa.block, isa.weight_dtype
    return (
        (spec.source.size, "uint8"),
        stored,
        (channels, "int32"),
        (channels, "float32"),
        (spec.target.size, "uint8"),
    )


@dataclass(frozen=True)
class Groups:
    """`count` groups of `vectors` output vectors each, from vector `first` on."""

    vectors: int
    count: int
    first: int


def equal_groups(sizes: tuple[int, ...]) -> list[Groups]:
    """What `group_sizes` found, groups of one size together."""
    same = sizes.count(sizes[0])
    found = [Groups(sizes[0], same, 0)]
    if len(sizes) > same:
        found.append(Groups(sizes[-1], 1, same * sizes[0]))
    return found


def count_tiles(spec: ConvSpec, tile: Tile, groups: Groups) -> int:
    return -(-spec.target.height // tile.rows) * -(-spec.target.width // tile.columns) * groups.count


def locate(spec: ConvSpec, tile: Tile, groups: Groups, index: ir.Expr) -> tuple[ir.Expr, ir.Expr, ir.Expr]:
    """Row and column of the first pixel of tile number `index`, and its first output vector.

    Tiles at the edges are moved inwards to fit: pixels in two tiles are computed twice.
    """
    target = spec.target
    down, across = -(-target.height // tile.rows), -(-target.width // tile.columns)
    # Weights that exceed half of a first-level cache are read once a group instead of once a tile of pixels.
    if spec.steps * target.pitch * 4 > 16_384:
        group, place = _divmod(index, down * across)
    else:
        place, group = _divmod(index, groups.count)
    row, column = _divmod(place, across)
    y = ir.bind(ir.tirx.min(row * tile.rows, target.height - tile.rows))
    x = ir.bind(ir.tirx.min(column * tile.columns, target.width - tile.columns))
    return y, x, ir.bind(groups.first + group * groups.vectors)


def _groups(isa: Isa, spec: ConvSpec, buffers: tuple[ir.Buffer, ...], groups: Groups, threads: int) -> None:
    """All tiles of the groups."""
    tile = choose_tile(isa, spec, groups.vectors)
    with ir.loop(count_tiles(spec, tile, groups), threads) as index:
        _tile(isa, spec, buffers, tile, *locate(spec, tile, groups, index))


def _divmod(index: ir.Expr, divisor: int) -> tuple[ir.Expr, ir.Expr]:
    if divisor == 1:
        return index, ir.tirx.IntImm("int32", 0)
    return ir.bind(ir.tirx.truncdiv(index, divisor)), ir.bind(ir.tirx.truncmod(index, divisor))


def _tile(
    isa: Isa, spec: ConvSpec, buffers: tuple[ir.Buffer, ...], tile: Tile, y: ir.Expr, x: ir.Expr, vector: ir.Expr
) -> None:
    codes, weights, bias, scale, output = buffers
    source, lanes = spec.source, isa.lanes
    pixels = tile.pixels
    start = ir.bind(first_code(spec, y, x))
    sums = ir.Accumulators(len(pixels) * tile.vectors, "int32", lanes)
    for n in range(tile.vectors):
        initial = ir.bind(ir.load(bias, (vector + n) * lanes, lanes))
        for m in range(len(pixels)):
            sums[m * tile.vectors + n] = initial

    def step(offset: ir.Expr, block: ir.Expr) -> None:
        """Add the products of one word of every pixel."""
        factors = _factors(isa, spec, weights, vector, tile.vectors, block)
        for m, (row, column) in enumerate(pixels):
            place = offset + (row * source.row + column * source.pitch) * spec.stride
            quads = isa.broadcast(ir.bind(ir.bits(ir.load(codes, place, 4), "int32", 1)))
            for n in range(tile.vectors):
                for factor in factors[n]:
                    sums[m * tile.vectors + n] = isa.dot(sums[m * tile.vectors + n], quads, factor)

    runs, words = spec.runs
    with ir.loop(spec.kernel[0]) as k_y, ir.loop(runs) as k_x, ir.loop(words) as word:
        step(start + k_y * source.row + k_x * source.pitch + word * 4, (k_y * runs + k_x) * words + word)
    write_codes(isa, spec, tile, sums, scale, output, y, x, vector)


def first_code(spec: ConvSpec, y: ir.Expr, x: ir.Expr) -> ir.Expr:
    """Place of the first code that the output pixel (y, x) reads."""
    row, column = y * spec.stride - spec.padding[0], x * spec.stride - spec.padding[1]
    return spec.source.origin + row * spec.source.row + column * spec.source.pitch


def _factors(
    isa: Isa, spec: ConvSpec, weights: ir.Buffer, vector: ir.Expr, vectors: int, block: ir.Expr
) -> list[list[ir.Expr]]:
    """The parts of the weights of step `block`, for each of the output vectors from `vector` on."""
    if not spec.packed:
        first = [((vector + n) * spec.steps + block) * spec.parts for n in range(vectors)]
        return [[isa.weights(weights, start + part) for part in range(spec.parts)] for start in first]
    factors: list[list[ir.Expr]] = []
    for pair in range(-(-vectors // 2)):
        # groups start at a multiple of four vectors, so a pair never reaches into the next group
        place = ((ir.tirx.truncdiv(vector, 2) + pair) * spec.steps + block) * isa.width
        factors += [[half] for half in unpack_nibbles(isa, ir.bind(ir.load(weights, place, isa.width)))]
    return factors[:vectors]


def write_codes(
    isa: Isa,
    spec: ConvSpec,
    tile: Tile,
    sums: ir.Accumulators | ir.Buffer,
    scale: ir.Buffer,
    output: ir.Buffer,
    y: ir.Expr,
    x: ir.Expr,
    vector: ir.Expr,
) -> None:
    """Turn the sums of a tile, of one pixel after another, into codes and store them."""
    target, lanes = spec.target, isa.lanes
    scales = [ir.bind(ir.load(scale, (vector + n) * lanes, lanes)) for n in range(tile.vectors)]
    base = ir.bind(target.origin + y * target.row + x * target.pitch + vector * lanes)
    places = [
        (m * tile.vectors + n, row * target.row + column * target.pitch + n * lanes, scales[n])
        for m, (row, column) in enumerate(tile.pixels)
        for n in range(tile.vectors)
    ]
    for first in range(0, len(places), 4):
        chunk = places[first : first + 4]
        values = [ir.cast(sums[index], "float32", lanes) * factor for index, _, factor in chunk]
        values += values[-1:] * (4 - len(values))
        packed = ir.bind(isa.codes(values, spec.clamp, spec.may_overflow))
        if tile.vectors == WIDE_GROUP:
            ir.store(output, base + chunk[0][1], packed, isa.width)
            continue
        natural = ir.bind(ir.shuffle([packed], isa.interleave().tolist())) if lanes > 4 else packed
        for part, offset, length in _runs([offset for _, offset, _ in chunk], lanes):
            piece = natural if length == isa.width else ir.shuffle([natural], range(part, part + length))
            ir.store(output, base + offset, piece, length)


def _runs(offsets: list[int], lanes: int) -> list[tuple[int, int, int]]:
    """(first byte in the vector, offset in memory, length) of the stores that write `offsets`."""
    runs, index = [], 0
    while index < len(offsets):
        length = 4
        while length > 1 and (
            index + length > len(offsets)
            or any(offsets[index + i] != offsets[index] + i * lanes for i in range(length))
        ):
            length //= 2
        runs.append((index * lanes, offsets[index], length * lanes))
        index += length
    return runs
