"""What a gate found, and what all gates of a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = "apq-deploy/check/1"
Status = Literal["passed", "failed", "skipped", "not set"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a gate looked at.

    value, bound, unit, excess: where it is a figure; excess is how far the value is on the wrong side of the bound,
    negative where it is on the right one.
    """

    passed: bool
    text: str
    value: float | None = None
    bound: float | None = None
    unit: str | None = None
    excess: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure. of: what it was measured on; figures of different things are not compared."""

    value: float
    unit: str
    of: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """Outcome of a gate. reason: why it is skipped, not set, or could not be measured."""

    gate: str
    status: Status
    findings: tuple[Finding, ...] = ()
    reason: str | None = None
    seconds: float = 0.0

    @property
    def texts(self) -> list[str]:
        """What to tell, a line each: of a failed gate only what failed."""
        if self.reason is not None:
            return [self.reason]
        return [each.text for each in self.findings if self.status != "failed" or not each.passed]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Outcome of a check. lines: where each gate stands in the budget file. notes: what else the user should know."""

    model: str
    budget: str
    gates: tuple[GateResult, ...]
    figures: dict[str, Figure]
    lines: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.of_status("failed")

    def of_status(self, status: Status) -> list[str]:
        """Names of the gates of that status."""
        return [each.gate for each in self.gates if each.status == status]

    @property
    def summary(self) -> str:
        """One line: how many gates failed and which, and which were skipped."""
        failed, skipped = self.of_status("failed"), self.of_status("skipped")
        run = len(failed) + len(self.of_status("passed"))
        text = f"failed: {len(failed)} of {run} gates ({', '.join(failed)})" if failed else f"passed: {run} gates"
        return text + (f"; skipped by name: {', '.join(skipped)}" if skipped else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "budget": self.budget,
            "passed": self.passed,
            "summary": self.summary,
            "gates": [asdict(each) for each in self.gates],
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "notes": list(self.notes),
        }


def at_most(value: float, bound: float, unit: str, note: str = "", *, label: str = "") -> Finding:
    """A finding that passes where `value <= bound`. label: stands before the value, note: after it."""
    return _bounded(value, bound, unit, note, label, value - bound, "at most", "over")


def at_least(value: float, bound: float, unit: str, note: str = "", *, label: str = "") -> Finding:
    """A finding that passes where `value >= bound`; arguments as `at_most`."""
    return _bounded(value, bound, unit, note, label, bound - value, "at least", "short")


def problem(text: str) -> Finding:
    """A finding that is no figure and fails."""
    return Finding(False, one_line(text))


def fact(text: str) -> Finding:
    """A finding that is no figure and passes."""
    return Finding(True, one_line(text))


def one_line(text: str) -> str:
    """The text on one line: names out of a file may hold line breaks and other things that do not print."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def number(value: float) -> str:
    """A figure to read: whole numbers whole, others to six digits."""
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.1f}"


def _bounded(
    value: float, bound: float, unit: str, note: str, label: str, excess: float, words: str, wrong: str
) -> Finding:
    passed = excess <= 0
    # units of several words, "codes differ", are said once
    short = unit if " " not in unit else ""
    parts = (label, number(value), unit, f"({note})" if note else "")
    text = f"{' '.join(filter(None, parts))}, {words} {number(bound)} {short}".rstrip()
    if not passed:
        by = f"{excess:.3g}" if excess < 1000 else number(excess)
        share = f", {100 * excess / bound:.3g} %" if bound and short not in ("", "%") else ""
        text += f": {by} {'points' if short == '%' else short}".rstrip() + f"{share} {wrong}"
    return Finding(passed, one_line(text), value, bound, unit, excess)
