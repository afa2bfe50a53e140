"""The page itself: one HTML file with everything in it, readable without any network."""

from __future__ import annotations

from pathlib import Path

from apq_deploy import __version__
from apq_deploy.errors import UserError
from apq_deploy.files import atomic
from apq_deploy.report.blocks import network_part
from apq_deploy.report.evidence import front_of, hardware_costs, held_out, trained_predictor
from apq_deploy.report.layers import bits_part, layers_part
from apq_deploy.report.making import cost_part, records_part, versions_part
from apq_deploy.report.markup import Markup, tag
from apq_deploy.report.missing import missing
from apq_deploy.report.outcome import outcome
from apq_deploy.report.quality import accuracy_part, agreement_part, sizes_part
from apq_deploy.report.records import Missing, RunRecords
from apq_deploy.report.searching import front_part, history_part
from apq_deploy.report.style import STYLE

# Nothing may be loaded from anywhere, whatever a record holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(
    run: Path, output: Path, model: Path | None = None, hardware: str | None = None, cost_table: Path | None = None
) -> None:
    """Write the page of a run to `output`.

    model: folder of the trained model, found as the other commands find it if not given; it gives the front (unless
    the run folder has one), the predictor on held-out points and the design's cost. hardware: name or file; cost_table:
    a table in its place; by default the preset of the search's hardware.

    Raises: UserError if there is no search in `run`, a record is damaged, or `output` cannot be written;
    HardwareError for a hardware or a table that cannot be used.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"expected the name of an .html file to write, got {output}")
    text = report_html(run, model, hardware, cost_table)
    with atomic(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def report_html(run: Path, model: Path | None, hardware: str | None, cost_table: Path | None) -> str:
    """The page's text; see `write_report`."""
    records = RunRecords.load(run, model)
    costs = hardware_costs(records.search, hardware, cost_table)
    predictor = trained_predictor(records)
    front, is_made_here = front_of(records, predictor, costs)
    points = held_out(records.model, predictor, records.search)
    parts = [
        ("result", "Budget and result", outcome(records)),
        (
            "front",
            "Pareto front",
            missing(front) if isinstance(front, Missing) else front_part(records, front, is_made_here),
        ),
        ("search", "Search", history_part(records.search)),
        ("network", "The network", network_part(records)),
        ("layers", "Layer by layer", missing(costs) if isinstance(costs, Missing) else layers_part(costs)),
        ("bits", "Where bits do not pay", missing(costs) if isinstance(costs, Missing) else bits_part(costs)),
        ("accuracy", "Predicted and measured", accuracy_part(records, points)),
        ("agreement", "Agreement", agreement_part(records)),
        ("size", "Size and speed", sizes_part(records)),
        ("cost", "Design cost", cost_part(records)),
        ("versions", "Versions and seeds", versions_part(records)),
        ("records", "Records", records_part(records)),
    ]
    title = _heading(records)
    links = [tag("a", {"href": f"#{name}"}, words) for name, words, _ in parts]
    body = tag(
        "body",
        None,
        tag(
            "header",
            None,
            tag("p", {"class": "over"}, f"apq-deploy {__version__} · deployment report"),
            tag("h1", None, title),
            tag("nav", {"aria-label": "Parts of this page"}, *links),
        ),
        tag("main", None, *(_section(*part) for part in parts)),
    )
    head = tag(
        "head",
        None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"name": "color-scheme", "content": "light dark"}),
        tag("title", None, title),
        tag("style", None, Markup(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", {"lang": "en"}, head, body) + "\n"


def _heading(records: RunRecords) -> str:
    result = records.search
    budget = str(result.budget).replace("<= ", "≤\N{NO-BREAK SPACE}") if result.budget.limits else "no budget"
    return f"{result.space} on {result.hardware}: {budget}"


def _section(name: str, title: str, content: Markup) -> Markup:
    return tag("section", {"id": name, "aria-labelledby": f"{name}-title"}, _title(name, title), content)


def _title(name: str, title: str) -> Markup:
    return tag("h2", {"id": f"{name}-title"}, title)
