"""Convolution with groups 1 in AMX's tiles: one instruction for 16 pixels, 16 output channels and 64 codes of each.

A tile is up to 16 rows of 64 bytes. Weights lie in memory as for the vector kernels, which is as a tile takes them:
a row for each word of four inputs, in it 16 output channels. The weights of a group of up to four vectors share the
tile of codes; their sums stay in tiles until the last product and reach the codes through the stack.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from exporters.tvm import conv, ir
from exporters.tvm.conv import ConvSpec, Groups, Tile
from exporters.tvm.isa import Isa
from exporters.tvm.layout import fill_border

MOST_ROWS = 16  # of a tile: pixels, or words of the sum
ROW_BYTES = 64
# Tiles by number: sums of up to four vectors from 0 on, and operands for whole chunks of the sum and for the last one.
SUMS, WHOLE, LAST = 0, (4, 5), (6, 7)
# One tile product takes the time of some 32 vector products, and loading its operands that of 16 more. Below this
# count of vector products in its place, vectors are about as fast.
LEAST_PRODUCTS = 64


@dataclass(frozen=True)
class Chunks:
    """How a run of words is cut for the tiles: `count` chunks of `words`, and one of `last` words if that is not 0."""

    count: int
    words: int
    last: int

    @classmethod
    def of(cls, words: int) -> Chunks:
        """As few as fit a tile; of equal size where that is no more."""
        pieces = -(-words // MOST_ROWS)
        if words % pieces == 0:
            return cls(pieces, words // pieces, 0)
        return cls(words // MOST_ROWS, MOST_ROWS, words % MOST_ROWS)


def choose_pixels(spec: ConvSpec) -> tuple[int, int]:
    """Rows and columns of a tile's pixels: a run of equally spaced ones, at most 16, overlapping little at the edge."""
    source, target = spec.source, spec.target
    columns = -(-target.width // -(-target.width // MOST_ROWS))
    evenly_spaced = spec.kernel == (1, 1) and spec.stride == 1 and source.row == target.width * source.pitch
    if columns < target.width or not evenly_spaced:
        return 1, columns
    most = min(target.height, MOST_ROWS // columns)
    return -(-target.height // -(-target.height // most)), columns


def pays(spec: ConvSpec) -> bool:
    """Whether tiles are faster than vectors: not for weights that vectors unpack, a single pixel, or a short sum."""
    if spec.packed:
        return False
    rows, columns = choose_pixels(spec.flat())
    _, words = spec.runs
    return rows * columns * words >= LEAST_PRODUCTS * -(-words // MOST_ROWS)


def conv_kernel(isa: Isa, spec: ConvSpec, threads: int) -> ir.Kernel:
    """The kernel of `conv.conv_kernel`, with the same arguments; over tiles where that pays."""
    if not pays(spec):
        return conv.conv_kernel(isa, spec, threads)
    sizes = conv.group_sizes(isa, spec)
    flat = spec.flat()
    pixels = choose_pixels(flat)
    chunks = Chunks.of(flat.runs[1])

    def body(*buffers: ir.Buffer) -> None:
        fill_border(buffers[-1], flat.target, flat.clamp.zero_point, isa.width)
        # The configuration belongs to a thread and takes as long as some products: once a task, not once a tile.
        with ir.loop(threads, threads) as task:
            _configure(pixels[0] * pixels[1], chunks)
            sums = ir.vectors_on_stack(pixels[0] * pixels[1] * max(sizes), "int32", isa.lanes)
            for groups in conv.equal_groups(sizes):
                tile = Tile(*pixels, groups.vectors)
                with ir.share(conv.count_tiles(flat, tile, groups), task, threads) as index:
                    _tile(isa, flat, buffers, sums, tile, groups, chunks, index)
            ir.effect("llvm.x86.tilerelease")

    return ir.Kernel(conv.kernel_arguments(isa, spec), body)


def configuration(pixels: int, chunks: Chunks) -> list[int]:
    """The 64 bytes that LDTILECFG takes, as 16 int32: rows and bytes of a row of each tile."""
    shapes = {SUMS + n: (pixels, ROW_BYTES) for n in range(conv.WIDE_GROUP)}
    for (codes, weights), words in ((WHOLE, chunks.words), (LAST, chunks.last)):
        if words:
            shapes[codes], shapes[weights] = (pixels, 4 * words), (words, ROW_BYTES)
    content = np.zeros(64, np.uint8)
    content[0] = 1  # the palette, of eight tiles of 1,024 bytes
    for number, (rows, row_bytes) in shapes.items():
        content[16 + 2 * number] = row_bytes
        content[48 + number] = rows
    return content.view(np.int32).tolist()


def _configure(pixels: int, chunks: Chunks) -> None:
    words = ir.vectors_on_stack(16, "int32", 1)
    for index, value in enumerate(configuration(pixels, chunks)):
        ir.store(words, index, ir.splat(value, "int32", 1), 1)
    ir.effect("llvm.x86.ldtilecfg", ir.address(words, 0))


def _tile(
    isa: Isa,
    spec: ConvSpec,
    buffers: tuple[ir.Buffer, ...],
    sums: ir.Buffer,
    tile: Tile,
    groups: Groups,
    chunks: Chunks,
    index: ir.Expr,
) -> None:
    """Codes of tile number `index` of the groups."""
    codes, weights, bias, scale, output = buffers
    y, x, vector = conv.locate(spec, tile, groups, index)
    start = ir.bind(conv.first_code(spec, y, x))
    runs, words = spec.runs
    pixel_bytes, block_bytes = spec.stride * spec.source.pitch, isa.block * spec.parts
    for n in range(tile.vectors):
        _load(SUMS + n, bias, (vector + n) * isa.lanes, 0)  # no stride: the same biases for every pixel
    with ir.loop(spec.kernel[0]) as k_y, ir.loop(runs) as k_x:
        place = ir.bind(start + k_y * spec.source.row + k_x * spec.source.pitch)
        for (codes_tile, weights_tile), word in _chunks(chunks):
            block = (k_y * runs + k_x) * words + word
            _load(codes_tile, codes, place + word * 4, pixel_bytes)
            for n in range(tile.vectors):
                for part in range(spec.parts):
                    first = ((vector + n) * spec.steps + block) * block_bytes + part * isa.block
                    _load(weights_tile, weights, first, block_bytes)
                    numbers = (ir.splat(number, "int8", 1) for number in (SUMS + n, codes_tile, weights_tile))
                    ir.effect("llvm.x86.tdpbusd", *numbers)
    for n in range(tile.vectors):
        stride = ir.splat(tile.vectors * ROW_BYTES, "int64", 1)
        ir.effect("llvm.x86.tilestored64", ir.splat(SUMS + n, "int8", 1), ir.address(sums, n), stride)
    conv.write_codes(isa, spec, tile, sums, scale, output, y, x, vector)


def _chunks(chunks: Chunks) -> Iterator[tuple[tuple[int, int], ir.Expr]]:
    """The tiles of operands and the first word of every chunk, in a loop over the whole ones."""
    with ir.loop(chunks.count) as index:
        yield WHOLE, index * chunks.words
    if chunks.last:
        yield LAST, chunks.count * chunks.words


def _load(tile: int, buffer: ir.Buffer, offset: ir.Expr, stride: int) -> None:
    """Load a tile whose rows lie `stride` bytes apart."""
    number, distance = ir.splat(tile, "int8", 1), ir.splat(stride, "int64", 1)
    ir.effect("llvm.x86.tileloadd64", number, ir.address(buffer, offset), distance)
