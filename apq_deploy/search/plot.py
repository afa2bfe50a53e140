"""A front as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from apq_deploy.errors import UserError
from apq_deploy.files import atomic
from apq_deploy.search.budget import metric_words, unit
from apq_deploy.search.front import Front

FORMATS = (".pdf", ".png", ".svg")


def draw_front(front: Front, picked: int | None = None) -> Figure:
    """Predicted accuracy against each objective, a panel per objective; the network `picked` is marked.

    With several objectives a panel shows points that another one beats there: they are better elsewhere.
    """
    figure = Figure(figsize=(1.0 + 4.5 * len(front.objectives), 3.8), layout="constrained")
    panels = figure.subplots(1, len(front.objectives), squeeze=False, sharey=True)[0]
    for panel, name in zip(panels, front.objectives, strict=True):
        panel.plot(
            front.costs[name], front.accuracy, "o", markersize=3.5, color="#30618c", label=f"{len(front)} networks"
        )
        limit = front.budget.limits.get(name)
        if limit is not None:
            panel.axvline(limit, color="#888888", linewidth=1, linestyle="--", label="budget")
        if picked is not None:
            where = front.costs[name][picked], front.accuracy[picked]
            panel.plot(*where, "D", markersize=7, color="#c4532f", label="picked")
        panel.set_xlabel(f"{metric_words(name)}, {unit(name)}")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("predicted accuracy")
    panels[0].legend(loc="lower right", frameon=False)
    on = f" on {front.hardware}" if front.hardware else ""
    scope = ", sums as in APQ's table" if front.scope == "apq" else ""
    figure.suptitle(f"{front.space.name}{on}{scope}", fontsize=11)
    return figure


def save_front_plot(front: Front, path: str | Path, picked: int | None = None) -> None:
    """Writes the picture in the format that the file's name asks for; SVG comes out the same for the same front.

    Raises: UserError for another format.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise UserError(f"expected a plot named {', '.join('*' + ending for ending in FORMATS)}, got {target.name}")
    undated = {"Date": None} if target.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "front"}), atomic(target) as temporary:
        draw_front(front, picked).savefig(temporary, format=target.suffix[1:], metadata=undated)
