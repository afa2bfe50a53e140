"""The picture of the chosen network: a drawing per stage, a line of three convolutions per block."""

from __future__ import annotations

from collections.abc import Sequence

from apq_deploy.arch import Block
from apq_deploy.report.markup import Markup, figure, grid, joined, note, tag
from apq_deploy.report.plot import WIDTH, svg, text
from apq_deploy.report.records import RunRecords
from apq_deploy.report.words import TIMES, plural
from apq_deploy.workload import NamedLayer, arch_layers

_GAP = 12.0
_BOX = (WIDTH - 2 * _GAP) / 3
_CHIP, _BAR = 19.0, 5.0


def network_part(records: RunRecords) -> Markup:
    """Every block with its kernel, channels and bits."""
    result = records.search
    space = result.search_space()
    layers = {named.name: named for named in arch_layers(space, result.arch)}
    widest = max(named.layer.out_channels for named in layers.values())
    figures = []
    before = [named for named in layers.values() if named.part in ("stem", "first_block")]
    after = [named for named in layers.values() if named.part in ("head", "classifier")]
    figures.append(_figure("Before the stages", [("", before)], widest))
    for s, stage in enumerate(result.arch.stages, 1):
        lines = []
        for b, block in enumerate(stage.blocks, 1):
            names = [f"stage{s}.block{b}.{part}" for part in ("expand", "depthwise", "project")]
            lines.append((_heading(b, block), [layers[name] for name in names]))
        first = lines[0][1][0].layer
        last = lines[-1][1][-1].layer
        sizes = f"{first.in_size}{TIMES}{first.in_size} to {last.out_size}{TIMES}{last.out_size} pixels"
        figures.append(_figure(f"Stage {s}: {plural(len(stage.blocks), 'block')}, {sizes}", lines, widest))
    figures.append(_figure("After the stages", [("", after)], widest))
    bits = sorted({b for named in layers.values() for b in (named.precision.weight_bits, named.precision.act_bits)})
    legend = [tag("li", None, _swatch(width), f"{width} bits") for width in bits]
    words = (
        f"W: bits of the weights, A: bits of the activations that the layer reads. Bar: output channels, {widest} is "
        "the full width. +: the block's input is added to its output."
    )
    return joined([tag("ul", {"class": "legend wide"}, *legend), grid(*figures), note(words)])


def _heading(number: int, block: Block) -> str:
    words = [f"block {number}"]
    if block.stride > 1:
        words.append(f"stride {block.stride}")
    if block.has_residual:
        words.append("+ input")
    return " · ".join(words)


def _swatch(bits: int) -> Markup:
    box = tag("rect", {"class": f"bits b{bits}", "x": 0, "y": 0, "width": 22, "height": 14, "rx": 3})
    return tag("svg", {"class": "swatch", "viewBox": "0 0 22 14", "aria-hidden": "true"}, box)


def _figure(title: str, lines: Sequence[tuple[str, Sequence[NamedLayer]]], widest: int) -> Markup:
    parts: list[Markup] = []
    y = 2.0
    for heading, layers in lines:
        if heading:
            parts.append(text(0.0, y + 11, heading, style="strong"))
            y += 17.0
        for place, named in enumerate(layers):
            x = (place % 3) * (_BOX + _GAP)
            if place and place % 3 == 0:
                y += 46.0
            parts += _convolution(x, y, named, widest)
            if place % 3:
                arrow = f"M{x - _GAP + 3:.1f},{y + 20:.1f} l5,4.5 l-5,4.5"
                parts.append(tag("path", {"class": "arrow", "d": arrow}))
        y += 50.0
    summary = "; ".join(
        ", ".join(f"{named.name} {named.layer} {named.precision}" for named in each) for _, each in lines
    )
    return figure(title, svg(y, summary, *parts))


def _convolution(x: float, y: float, named: NamedLayer, widest: int) -> list[Markup]:
    layer, precision = named.layer, named.precision
    size = f"{layer.kernel_size}{TIMES}{layer.kernel_size}"
    if named.part == "classifier":
        words = f"linear {layer.in_channels}→{layer.out_channels}"
    elif layer.is_depthwise:
        words = f"dw {size}, {layer.out_channels}"
    else:
        words = f"{size}, {layer.in_channels}→{layer.out_channels}"
    half = _BOX / 2
    parts = [text(x, y + 11, words)]
    for left, bits, letter in ((x, precision.weight_bits, "W"), (x + half, precision.act_bits, "A")):
        chip = {"class": f"bits b{bits}", "x": left, "y": y + 15, "width": half - 1, "height": _CHIP, "rx": 3}
        parts.append(tag("rect", chip))
        parts.append(text(left + (half - 1) / 2, y + 29, f"{letter}{bits}", "middle", f"on-b{bits}"))
    width = max(1.5, layer.out_channels / widest * (_BOX - 1))
    parts.append(tag("rect", {"class": "channels", "x": x, "y": y + 15 + _CHIP + 2, "width": width, "height": _BAR}))
    return parts
