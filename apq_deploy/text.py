"""Plain text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Rows as aligned columns, numbers to the right; floats as they are formatted by the caller."""
    lines = [[str(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [all(_is_number(str(row[i])) for row in rows) for i in range(len(widths))]
    aligned = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
    if head:
        aligned.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(aligned)


def _is_number(text: str) -> bool:
    return text.strip("+-").replace(".", "", 1).rstrip("%x").isdigit() or text in ("-", "")
