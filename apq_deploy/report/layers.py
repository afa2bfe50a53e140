"""Parts of the page about the hardware: every layer's latency and energy, and bits that do not pay there."""

from __future__ import annotations

from collections.abc import Sequence

from apq_deploy.report.evidence import HardwareCosts
from apq_deploy.report.markup import Markup, data_table, figure, folded, grid, joined, note, tag
from apq_deploy.report.plot import Row, bars
from apq_deploy.report.words import Unit, energy_unit, number, percent, time_unit
from apq_deploy.search import Metric
from apq_deploy.search.budget import in_words, metric_words
from apq_deploy.search.explain import BIT_CHOICES, Choice
from apq_deploy.workload import NamedLayer

# A space that no line breaks at.
_FIXED = "\N{NO-BREAK SPACE}"

_TONES = {"expand": 1, "depthwise": 2, "project": 3}
_WIDTH_METRICS: tuple[Metric, ...] = ("latency_ms", "energy_mj", "size_kb")


def layers_part(costs: HardwareCosts) -> Markup:
    """A bar per layer: latency, and energy where it is known."""
    layers = [each.named for each in costs.layers]
    hardware = costs.table.hardware_name
    latency = [each.latency_ms for each in costs.layers]
    energy = [each.energy_mj for each in costs.layers if each.energy_mj is not None]
    figures = [_bars(f"Latency on {hardware}", layers, latency, time_unit(latency))]
    if len(energy) == len(layers):
        figures.append(_bars(f"Energy on {hardware}", layers, energy, energy_unit(energy)))
    total = sum(latency)
    rows = [
        (
            each.named.name,
            str(each.named.layer),
            str(each.named.precision),
            number(each.named.layer.macs / 1e6),
            number(each.named.layer.bitops(each.named.precision) / 1e9),
            number(each.latency_ms),
            "-" if each.energy_mj is None else number(each.energy_mj),
            f"{100 * each.latency_ms / total:.1f}",
        )
        for each in costs.layers
    ]
    head = ("layer", "shape", "bits", "M MACs", "G BitOps", "ms", "mJ", "% of ms")
    sources = sorted({costs.table[each.named.layer, each.named.precision].source for each in costs.layers})
    words = f"One image; costs are {' and '.join(sources)}. Sum: {time_unit([total]).text(total, 4)}"
    words += f", {energy_unit(energy).text(sum(energy), 4)}." if len(energy) == len(layers) else "."
    return joined([grid(*figures), note(words), folded("Numbers by layer", data_table(head, rows))])


def _bars(title: str, layers: Sequence[NamedLayer], values: Sequence[float], unit: Unit) -> Markup:
    rows, group = [], ""
    for named, value in zip(layers, values, strict=True):
        block, _, part = named.name.rpartition(".")
        # Layers outside of the blocks have no dot in their names: what follows the last block is a group of its own.
        heading = None
        if block != group:
            heading = _block_words(block) if block else "after the blocks"
        group = block
        rows.append(
            Row(
                part,
                value,
                unit.text(value),
                _TONES.get(part, 4) if named.part == "blocks" else 4,
                str(named.precision),
                heading=heading,
            )
        )
    most = max(range(len(values)), key=values.__getitem__)
    summary = f"{title} by layer; the most, {unit.text(values[most])}, takes {layers[most].name}."
    return figure(title, bars(rows, summary, names=118.0, values=66.0))


def bits_part(costs: HardwareCosts) -> Markup:
    """What each width costs with all blocks at it, and what the next wider bits of each choice would add."""
    found = costs.explanation
    sentences = found.sentences() or [
        f"Every width pays: each saves at least {percent(found.threshold, 0)} against the next wider one."
    ]
    widest = found.widths[-1]
    not_paying = {(bits, name) for bits, name, _ in found.does_not_pay()}
    figures = []
    for name in _WIDTH_METRICS:
        if name not in widest.costs:
            continue
        rows = []
        for width in reversed(found.widths):
            share = width.costs[name] / widest.costs[name]
            words = in_words(name, width.costs[name])
            is_waste = (width.bits, name) in not_paying
            rows.append(
                Row(f"{width.bits} bits", share, words, 1, "does not pay" if is_waste else "", is_hollow=is_waste)
            )
        where = "in the file" if name == "size_kb" else f"on {costs.table.hardware_name}"
        title = f"{metric_words(name).capitalize()} {where}, all blocks at one width"
        summary = f"{title}: " + ", ".join(f"{row.name} {row.words} {row.detail}".strip() for row in rows)
        figures.append(figure(title, bars(rows, summary, names=128.0, values=78.0)))
    table = data_table(("block", *(name.replace("_", " ") for name in BIT_CHOICES)), _wider_rows(costs))
    title = "What the next wider bits would add to the latency"
    words = (
        "Shares of the network's latency, all other choices held; a lone number is the widest there is. "
        "Framed: the wider bits cost less than "
        f"{percent(found.threshold, 0)} of the block's latency, so the narrower ones buy no time there."
    )
    lines = tag("ul", {"class": "sentences"}, *(tag("li", None, _readable(line)) for line in sentences))
    return joined([lines, grid(*figures), tag("h3", None, title), table, note(words)])


def _block_words(name: str) -> str:
    """`stage 1, block 2` for `stage1.block2`, which breaks into two lines where room is scarce."""
    words = name.replace("stage", f"stage{_FIXED}").replace(".block", f", block{_FIXED}")
    return words.replace("_", " ")


def _readable(sentence: str) -> str:
    for name in BIT_CHOICES:
        sentence = sentence.replace(name, name.replace("_", " "))
    return sentence[:1].upper() + sentence[1:] + ("" if sentence.endswith(".") else ".")


def _wider_rows(costs: HardwareCosts) -> list[list[str]]:
    total = costs.explanation.costs["latency_ms"]
    rows = []
    for block in costs.explanation.blocks:
        choices = {choice.name: choice for choice in block.choices}
        rows.append([_block_words(block.name), *(_wider(choices[name], total) for name in BIT_CHOICES)])
    return rows


def _wider(choice: Choice, total_ms: float) -> Markup:
    """`4→6 +1.2 %`, framed where the wider bits are as good as free."""
    wider = [other for other in choice.alternatives if other.value > choice.value]
    if not wider:
        return tag("span", {"class": "faint"}, f"{choice.value}")
    added = 100 * wider[0].added["latency_ms"] / total_ms
    style = "wider free" if "latency_ms" in choice.wasted_on else "wider"
    return tag("span", {"class": style}, f"{choice.value}→{wider[0].value} ", tag("b", None, f"{added:+.1f} %"))
