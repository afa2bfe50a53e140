"""Charts as inline SVG: a few marks on two axes, and rows of bars or dots.

Every chart is 360 units wide: on a phone a unit is about a pixel, so its text stays readable there. Colours are classes
that the page's style sets for light and dark; no chart tells things apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isclose, log10
from typing import Literal

from apq_deploy.report.markup import Markup, tag
from apq_deploy.report.words import number

WIDTH = 360.0
FONT = 11.0
# Width of a character as a share of the font's size: wide enough for the fonts of every system.
CHARACTER = 0.58
_DOT = 2.2
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 10.0, 40.0

Mark = Literal["line", "dashed", "steps", "circles", "diamond", "square"]


@dataclass(frozen=True, slots=True)
class Series:
    """Points drawn in one way. `tone`: number of the colour, 1 to 4."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: Mark
    tone: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value of `low`..`high` lies between two coordinates."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values within `low`..`high`, at most `most` of them and two where there is room for one."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** floor(log10(span / most))
    for step in (power, 2 * power, 2.5 * power, 5 * power, 10 * power, 20 * power):
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [i * step for i in range(first, last + 1)]
    raise AssertionError("a step of 20 powers leaves few ticks")


def bounds(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of the values and a little more; never empty."""
    low, high = min(values), max(values)
    if isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        room = abs(low) * 0.05 or 1.0
        return low - room, high + room
    room = (high - low) * margin
    return low - room, high + room


def svg(height: float, summary: str, *children: Markup) -> Markup:
    """The drawing; `summary` is what a screen reader says."""
    attributes = {"viewBox": f"0 0 {WIDTH:g} {height:g}", "role": "img", "aria-label": summary}
    return tag("svg", attributes, *children)


def text(x: float, y: float, words: str, anchor: str = "start", style: str = "", room: float | None = None) -> Markup:
    """One line of text. Where `room` is given, what does not fit is cut, and told in full on pointing at it."""
    attributes: dict[str, str | float] = {"x": x, "y": y}
    if anchor != "start":
        attributes["text-anchor"] = anchor
    if style:
        attributes["class"] = style
    if room is not None and (most := int(room / (FONT * CHARACTER))) < len(words):
        return tag("text", attributes, tag("title", None, words), words[: max(1, most - 1)] + "…")
    return tag("text", attributes, words)


def _decimals(values: Sequence[float]) -> list[str]:
    """Ticks with as many decimals as they need, all the same."""
    for decimals in range(7):
        words = [f"{value:.{decimals}f}" for value in values]
        if all(isclose(float(word), value, abs_tol=1e-12) for word, value in zip(words, values, strict=True)):
            return words
    return [number(value) for value in values]


def _shape(mark: Mark, x: float, y: float, tone: int, size: float) -> Markup:
    style = f"mark t{tone}" if size > _DOT else f"mark dot t{tone}"
    if mark == "diamond":
        corners = f"{x:.1f},{y - size:.1f} {x + size:.1f},{y:.1f} {x:.1f},{y + size:.1f} {x - size:.1f},{y:.1f}"
        return tag("polygon", {"class": style, "points": corners})
    if mark == "square":
        return tag("rect", {"class": style, "x": x - size, "y": y - size, "width": 2 * size, "height": 2 * size})
    return tag("circle", {"class": style, "cx": x, "cy": y, "r": size})


def _draw(series: Series, x: Scale, y: Scale) -> list[Markup]:
    places = [(x(a), y(b)) for a, b in zip(series.x, series.y, strict=True)]
    if series.mark in ("line", "dashed", "steps"):
        words = [f"{places[0][0]:.1f},{places[0][1]:.1f}"]
        for (_, before), (here, level) in pairwise(places):
            words += [f"{here:.1f},{before:.1f}"] if series.mark == "steps" else []
            words.append(f"{here:.1f},{level:.1f}")
        style = f"stroke t{series.tone}" + (" dashed" if series.mark == "dashed" else "")
        return [tag("polyline", {"class": style, "points": " ".join(words)})]
    size = _DOT if series.mark == "circles" else 6.0
    return [_shape(series.mark, a, b, series.tone, size) for a, b in places]


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    summary: str,
    *,
    height: float = 230.0,
    x_limit: float | None = None,
    diagonal: bool = False,
) -> Markup:
    """Series on two axes with a legend below. x_limit: where a limit stands; diagonal: draw where x equals y."""
    xs = [value for each in series for value in each.x] + ([] if x_limit is None else [x_limit])
    ys = [value for each in series for value in each.y]
    x_range, y_range = bounds(xs, 0.03), bounds(ys)
    if diagonal:
        x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
    x = Scale(*x_range, _LEFT, WIDTH - _RIGHT)
    y = Scale(*y_range, height - _BOTTOM, _TOP)
    parts = []
    y_ticks, x_ticks = ticks(*y_range), ticks(*x_range)
    for value, word in zip(y_ticks, _decimals(y_ticks), strict=True):
        parts.append(tag("line", {"class": "rule", "x1": _LEFT, "x2": WIDTH - _RIGHT, "y1": y(value), "y2": y(value)}))
        parts.append(text(_LEFT - 6, y(value) + 4, word, "end"))
    for value, word in zip(x_ticks, _decimals(x_ticks), strict=True):
        place = min(x(value), WIDTH - len(word) * FONT * CHARACTER / 2)
        parts.append(tag("line", {"class": "rule", "x1": x(value), "x2": x(value), "y1": _TOP, "y2": height - _BOTTOM}))
        parts.append(text(place, height - _BOTTOM + 15, word, "middle"))
    middle = (_TOP + height - _BOTTOM) / 2
    turn = f"rotate(-90 10 {middle:g})"
    parts.append(tag("text", {"x": 10.0, "y": middle, "text-anchor": "middle", "transform": turn}, y_label))
    parts.append(text((_LEFT + WIDTH - _RIGHT) / 2, height - 5, x_label, "middle"))
    if diagonal:
        ends = {"x1": x(x_range[0]), "y1": y(x_range[0]), "x2": x(x_range[1]), "y2": y(x_range[1])}
        parts.append(tag("line", {"class": "limit", **ends}))
    if x_limit is not None:
        ends = {"x1": x(x_limit), "x2": x(x_limit), "y1": _TOP, "y2": height - _BOTTOM}
        parts.append(tag("line", {"class": "limit", **ends}))
    for each in series:
        parts += _draw(each, x, y)
    names = [_legend_entry(each.mark, each.tone, each.name) for each in series]
    if x_limit is not None:
        names.append(_legend_entry("limit", 0, "budget"))
    if diagonal:
        names.append(_legend_entry("limit", 0, "predicted = measured"))
    return Markup(svg(height, summary, *parts) + tag("ul", {"class": "legend"}, *names))


def _legend_entry(mark: Mark | Literal["limit"], tone: int, name: str) -> Markup:
    if mark in ("line", "dashed", "steps", "limit"):
        style = "limit" if mark == "limit" else f"stroke t{tone}" + (" dashed" if mark == "dashed" else "")
        drawn = tag("line", {"class": style, "x1": 0, "x2": 22, "y1": 7, "y2": 7})
    else:
        drawn = _shape("circles" if mark == "circles" else mark, 11.0, 7.0, tone, 4.0 if mark == "circles" else 5.5)
    swatch = tag("svg", {"class": "swatch", "viewBox": "0 0 22 14", "aria-hidden": "true"}, drawn)
    return tag("li", None, swatch, name)


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: what it stands for, its value and the words at its end.

    `detail`: shown beside the name. `span`: (low, high) of a whisker. `heading`: starts a group of rows.
    """

    name: str
    value: float
    words: str
    tone: int = 1
    detail: str = ""
    span: tuple[float, float] | None = None
    heading: str | None = None
    is_hollow: bool = False


def bars(rows: Sequence[Row], summary: str, *, names: float = 110.0, values: float = 64.0) -> Markup:
    """A bar per row from zero. names, values: units kept for the names and for the words at the bars' ends."""
    most = max((max(row.value, row.span[1] if row.span else 0.0) for row in rows), default=0.0) or 1.0
    x = Scale(0.0, most, names, WIDTH - values)
    return _rows(rows, x, summary, names, dots=False)


def dots(rows: Sequence[Row], summary: str, *, names: float = 130.0, values: float = 64.0) -> Markup:
    """A dot per row on a scale that need not begin at zero, which the ticks under it tell."""
    ends = [end for row in rows for end in (row.span or (row.value, row.value))]
    low, high = bounds(ends, 0.12)
    return _rows(rows, Scale(low, high, names, WIDTH - values), summary, names, dots=True)


def _rows(rows: Sequence[Row], x: Scale, summary: str, names: float, dots: bool) -> Markup:
    parts, y = [], 4.0
    marks: list[Markup] = []
    for row in rows:
        if row.heading is not None:
            y += 4.0 if y > 4.0 else 0.0
            parts.append(text(0.0, y + 12.0, row.heading, style="strong", room=WIDTH))
            y += 18.0
        middle = y + 8.0
        detail = len(row.detail) * FONT * CHARACTER + 6 if row.detail else 0.0
        parts.append(text(0.0, middle + 4, row.name, room=names - 6 - detail))
        if row.detail:
            parts.append(text(names - 8, middle + 4, row.detail, "end", "faint"))
        place = x(row.value)
        if dots:
            marks.append(tag("line", {"class": "rule", "x1": x.start, "x2": x.end, "y1": middle, "y2": middle}))
            shape: Mark = "diamond" if row.is_hollow else "circles"
            marks += _whisker(row, x, middle)
            marks.append(_shape(shape, place, middle, row.tone, 5.5 if row.is_hollow else 4.5))
            parts.append(text(WIDTH, middle + 4, row.words, "end"))
        else:
            style = f"{'hollow' if row.is_hollow else 'fill'} t{row.tone}"
            width = max(place - x.start, 0.6)
            marks.append(tag("rect", {"class": style, "x": x.start, "y": y + 2, "width": width, "height": 12.0}))
            marks += _whisker(row, x, middle)
            end = max(place, x(row.span[1]) if row.span else place)
            parts.append(text(end + 5, middle + 4, row.words))
        y += 18.0
    if dots:
        values = ticks(x.low, x.high, 4)
        for value, word in zip(values, _decimals(values), strict=True):
            parts.append(text(x(value), y + 14, word, "middle", "faint"))
            parts.insert(0, tag("line", {"class": "rule", "x1": x(value), "x2": x(value), "y1": 4.0, "y2": y}))
        y += 18.0
    return svg(y + 2.0, summary, *parts, *marks)


def _whisker(row: Row, x: Scale, middle: float) -> list[Markup]:
    if row.span is None:
        return []
    low, high = x(row.span[0]), x(row.span[1])
    lines = [(low, high, middle, middle), (low, low, middle - 4, middle + 4), (high, high, middle - 4, middle + 4)]
    return [tag("line", {"class": "whisker", "x1": a, "x2": b, "y1": c, "y2": d}) for a, b, c, d in lines]
