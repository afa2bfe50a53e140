"""HTML and SVG as escaped text: what is not markup already is escaped where it enters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_EMPTY = frozenset({"circle", "col", "line", "meta", "path", "polygon", "polyline", "rect"})


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Attributes = Mapping[str, str | float]


def tag(name: str, attributes: Attributes | None = None, *children: str) -> Markup:
    """An element. Children of type Markup are taken as they are, plain text is escaped; so are attributes."""
    words = "".join(f' {key}="{escape(_text(value))}"' for key, value in (attributes or {}).items())
    if name in _EMPTY:
        return Markup(f"<{name}{words}/>")
    return Markup(f"<{name}{words}>{joined(children)}</{name}>")


def joined(children: Sequence[str]) -> Markup:
    """The children one after the other, plain text escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child, quote=False) for child in children))


def _text(value: str | float) -> str:
    """Coordinates to a tenth of a unit: finer than a screen shows."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def data_table(head: Sequence[str], rows: Sequence[Sequence[str]], row_heads: bool = True) -> Markup:
    """A table in a box that scrolls on its own where the page is narrow; numbers to the right.

    row_heads: whether the first column names the rows.
    """
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(rows[0]) if rows else 0)]
    lines = []
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            attributes: dict[str, str | float] = {"class": "number"} if right[i] else {}
            if i == 0 and row_heads:
                cells.append(tag("th", {**attributes, "scope": "row"}, cell))
            else:
                cells.append(tag("td", attributes, cell))
        lines.append(tag("tr", None, *cells))
    heads = [
        tag("th", {"scope": "col", **({"class": "number"} if i < len(right) and right[i] else {})}, word)
        for i, word in enumerate(head)
    ]
    parts = [tag("thead", None, tag("tr", None, *heads))] if head else []
    return tag("div", {"class": "scroll"}, tag("table", None, *parts, tag("tbody", None, *lines)))


def facts(rows: Sequence[tuple[str, str]]) -> Markup:
    """Names with what they are, as a list of definitions."""
    lines = [tag("div", None, tag("dt", None, name), tag("dd", None, value)) for name, value in rows]
    return tag("dl", None, *lines)


def paragraph(*children: str) -> Markup:
    return tag("p", None, *children)


def note(*children: str) -> Markup:
    """A remark in small print."""
    return tag("p", {"class": "note"}, *children)


def folded(summary: str, *children: str, printed: bool = True) -> Markup:
    """Content behind a line that opens it; on paper it is open if `printed`."""
    return tag("details", {"class": "printed" if printed else "screen-only"}, tag("summary", None, summary), *children)


def figure(title: str, *children: str) -> Markup:
    """A chart under its title."""
    return tag("figure", None, tag("figcaption", None, title), *children)


def grid(*children: str) -> Markup:
    """Figures side by side where there is room."""
    return tag("div", {"class": "grid"}, *children)


def _is_number(cell: str) -> bool:
    if isinstance(cell, Markup):
        return False
    text = cell.strip().lstrip("+-").rstrip("%").strip().replace(",", "")
    return text.replace(".", "", 1).replace("e-", "", 1).isdigit() or cell in ("", "-")
