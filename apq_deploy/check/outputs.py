"""A check's outcome as text for a terminal, JSON, JUnit XML, GitHub annotations or Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree

from apq_deploy.check.findings import CheckReport, GateResult
from apq_deploy.errors import UserError
from apq_deploy.text import table

Format = Literal["text", "json", "junit", "github", "markdown"]
WORDS = {"passed": "passed", "failed": "FAILED", "skipped": "skipped", "not set": "not set"}
CLASS_NAME = "apq-deploy.check"


def as_text(report: CheckReport) -> str:
    """A table with a line for each thing found, and the outcome as the last line."""
    rows: list[tuple[str, str, str]] = []
    for gate in report.gates:
        for position, text in enumerate(gate.texts):
            rows.append((gate.gate, WORDS[gate.status], text) if position == 0 else ("", "", text))
    lines = [f"{report.model} against {report.budget}", "", table(rows, ("gate", "result", "found")), ""]
    return "\n".join([*lines, *report.notes, report.summary])


def as_json(report: CheckReport) -> str:
    """The whole report, schema `apq-deploy/check/1`."""
    return json.dumps(report.as_dict(), indent=1)


def as_junit(report: CheckReport) -> str:
    """One test case for each gate; gates that are skipped or not set are skipped test cases."""
    counts = {
        "tests": str(len(report.gates)),
        "failures": str(len(report.of_status("failed"))),
        "errors": "0",
        "skipped": str(len(report.of_status("skipped")) + len(report.of_status("not set"))),
        "time": f"{sum(gate.seconds for gate in report.gates):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "apq-deploy check"} | counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": _legal(report.model)} | counts)
    properties = ElementTree.SubElement(suite, "properties")
    for name, figure in report.figures.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": f"{figure.value:.9g}"})
    for gate in report.gates:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": CLASS_NAME, "name": gate.gate, "time": f"{gate.seconds:.3f}"}
        )
        texts = [_legal(text) for text in gate.texts]
        if gate.status == "failed":
            failure = ElementTree.SubElement(case, "failure", {"message": texts[0], "type": gate.gate})
            failure.text = "\n".join(texts)
        elif gate.status == "passed":
            ElementTree.SubElement(case, "system-out").text = "\n".join(texts)
        else:
            ElementTree.SubElement(case, "skipped", {"message": texts[0]})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def as_github(report: CheckReport) -> str:
    """Workflow commands: an error at the gate's line of the budget file for everything that failed, a notice for skips.

    Source: GitHub's documentation, "Workflow commands for GitHub Actions".
    """
    lines = []
    for gate in report.gates:
        if gate.status == "failed":
            lines += [_annotation("error", report, gate, text) for text in gate.texts]
        elif gate.status == "skipped":
            lines.append(_annotation("notice", report, gate, f"skipped {gate.reason}"))
    unset = report.of_status("not set")
    lines += [f"not set: {', '.join(unset)}"] if unset else []
    return "\n".join([*lines, *(_message(note) for note in report.notes), _message(report.summary)])


def as_markdown(report: CheckReport) -> str:
    """A table for a job summary or a comment."""
    outcome = "passed" if report.passed else "failed"
    lines = [f"### apq-deploy check: {outcome}", "", f"{_cell(report.model)} against {_cell(report.budget)}", ""]
    lines += ["| gate | result | found |", "|---|---|---|"]
    for gate in report.gates:
        word = f"**{WORDS[gate.status]}**" if gate.status == "failed" else WORDS[gate.status]
        lines.append(f"| {gate.gate} | {word} | {'<br>'.join(_cell(text) for text in gate.texts)} |")
    return "\n".join([*lines, "", *(f"{_cell(note)}  " for note in report.notes), _cell(report.summary)])


def append_summary(report: CheckReport, path: Path) -> None:
    """Append the Markdown form to the job summary, a file that all steps of a GitHub job share.

    Raises: UserError if it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(as_markdown(report) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the job summary {path}: {error.strerror}") from None


def _annotation(level: str, report: CheckReport, gate: GateResult, text: str) -> str:
    line = report.lines.get(gate.gate, 1)
    file, title = _property(report.budget), _property(f"apq-deploy check: {gate.gate}")
    return f"::{level} file={file},line={line},title={title}::{_message(text)}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text that Markdown leaves alone: names from a file may hold anything."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|`*_[]":
        escaped = escaped.replace(mark, f"\\{mark}")
    return " ".join(escaped.split())


def _legal(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return "".join(c if c in "\t\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


WRITERS: dict[str, Callable[[CheckReport], str]] = {
    "text": as_text,
    "json": as_json,
    "junit": as_junit,
    "github": as_github,
    "markdown": as_markdown,
}
assert tuple(WRITERS) == get_args(Format)
