"""How the page says that a part is not there."""

from __future__ import annotations

from apq_deploy.report.markup import Markup, tag
from apq_deploy.report.records import Missing


def missing(part: Missing, before: str = "") -> Markup:
    """Why a part is not there, and the command that makes it."""
    words = [f"{before} {part.reason} ".lstrip()]
    if part.command is not None:
        words += ["Make it with ", tag("code", None, part.command), "."]
    return tag("p", {"class": "missing"}, *words)
