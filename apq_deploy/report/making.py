"""Parts of the page about how it came about: what the design cost, and versions and seeds to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from apq_deploy.report.markup import Markup, data_table, facts, figure, folded, grid, joined, note, tag
from apq_deploy.report.missing import missing
from apq_deploy.report.plot import Row, bars
from apq_deploy.report.provenance import OPTIONAL_STEPS, STEPS, Clock, Step
from apq_deploy.report.records import Missing, RunRecords
from apq_deploy.report.words import duration, plural

_PACKAGES = ("apq-deploy", "numpy", "torch", "onnx", "onnxruntime", "apache-tvm")
_DEPLOYMENTS = (1, 10, 100, 1000)


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of the design took.

    is_once: paid once for all deployments. seconds: None where the record does not say. clock: what was counted;
    `processor` adds up all threads.
    """

    name: str
    is_once: bool
    seconds: float | None
    clock: Clock


def stage_costs(records: RunRecords) -> list[StageCost]:
    """The stages in order: train, collect, fit and refine once, then search, export and compile for each deployment."""
    export, compiled = records.export, records.compiled
    exported = None if isinstance(export, Missing) else export.cpu_seconds
    built: tuple[float | None, Clock] = (None, "processor")
    if not isinstance(compiled, Missing):
        built = (compiled.cpu_seconds, "processor")
        if compiled.cpu_seconds is None:
            built = (compiled.compile_seconds, "wall")
    return [
        *_once(records),
        StageCost("search", False, records.search_cpu_seconds, "processor"),
        StageCost("export", False, exported, "processor"),
        StageCost("compile", False, *built),
    ]


def _once(records: RunRecords) -> list[StageCost]:
    steps = {} if isinstance(records.provenance, Missing) else records.provenance
    return [
        StageCost(name, True, steps[name].seconds, steps[name].clock)
        if name in steps
        else StageCost(name, True, None, "wall")
        for name in (*STEPS, *(name for name in OPTIONAL_STEPS if name in steps))
    ]


def cost_part(records: RunRecords) -> Markup:
    """Time per stage; what is paid once, and what one more deployment costs. Source: APQ (CVPR 2020), table 2."""
    stages = stage_costs(records)
    known = [stage for stage in stages if stage.seconds is not None]
    parts: list[str] = []
    if isinstance(records.provenance, Missing):
        parts.append(missing(records.provenance, "What is paid once is not known."))
    once = [stage for stage in stages if stage.is_once]
    each = [stage for stage in stages if not stage.is_once]
    fixed, marginal = _sum(once), _sum(each)
    parts.append(_sentence(fixed, marginal, once, each))
    figures = []
    if known:
        rows = [
            Row(
                stage.name,
                stage.seconds or 0.0,
                duration(stage.seconds or 0.0),
                1 if stage.is_once else 2,
                "once" if stage.is_once else "each",
            )
            for stage in known
        ]
        summary = "Time by stage: " + ", ".join(f"{row.name} {row.words}" for row in rows)
        figures.append(figure("Time by stage", bars(rows, summary, values=72.0)))
    if fixed is not None and marginal is not None:
        rows = [
            Row(
                plural(count, "deployment"),
                fixed / count + marginal,
                duration(fixed / count + marginal),
                1,
            )
            for count in _DEPLOYMENTS
        ]
        summary = "Time per deployment: " + ", ".join(f"{row.name} {row.words}" for row in rows)
        figures.append(figure("Time per deployment, all stages shared out", bars(rows, summary, values=72.0)))
    head = ("stage", "paid", "time")
    rows = [
        (
            stage.name,
            "once" if stage.is_once else "each deployment",
            "not recorded" if stage.seconds is None else f"{duration(stage.seconds)} ({stage.clock})",
        )
        for stage in stages
    ]
    parts += [grid(*figures), data_table(head, rows)]
    lacking = [f"apq-deploy {stage.name}" for stage in stages if stage.seconds is None]
    if lacking:
        parts.append(note(f"Times that are not recorded are noted by {', '.join(lacking)}."))
    return joined(parts)


def _sum(stages: list[StageCost]) -> float | None:
    """Seconds of all stages, None if one of them is not known."""
    seconds = [stage.seconds for stage in stages]
    return None if None in seconds else sum(value for value in seconds if value is not None)


def _sentence(fixed: float | None, marginal: float | None, once: list[StageCost], each: list[StageCost]) -> Markup:
    if fixed is not None and marginal is not None:
        words = f"N deployments take {duration(fixed)} + N · {duration(marginal)}: "
        words += "the first part is paid once, the second is the marginal cost of one more deployment."
        return tag("p", None, words)
    lines = []
    for total, stages, what in ((fixed, once, "What is paid once"), (marginal, each, "One more deployment")):
        lacking = [stage.name for stage in stages if stage.seconds is None]
        known = sum(stage.seconds for stage in stages if stage.seconds is not None)
        if total is not None:
            lines.append(f"{what} takes {duration(total)}.")
        elif len(lacking) == len(stages):
            lines.append(f"{what}: no stage has recorded its time.")
        else:
            lines.append(
                f"{what} takes {duration(known)} and what {' and '.join(lacking)} took, which is not recorded."
            )
    return tag("p", None, " ".join(lines))


def versions_part(records: RunRecords) -> Markup:
    """What has to be the same to get the same network: seeds, settings, hashes and versions."""
    result = records.search
    held = ", ".join(result.freeze) or "nothing"
    rows = [
        ("space", result.space),
        ("hardware", f"{result.hardware}, SHA-256 {result.hardware_sha256}"),
        ("algorithm", f"{result.algorithm}: " + _settings(result.settings)),
        ("held fixed", held if result.bits is None else f"{held}; {result.bits} bits everywhere"),
        ("seed of the search", str(result.seed)),
    ]
    if not isinstance(records.export, Missing):
        rows.append(("export", _settings(records.export.settings)))
    if not isinstance(records.compiled, Missing):
        threads = records.compiled.threads
        rows.append(("compiled for", f"{records.compiled.target}, {plural(threads, 'thread')}"))
    for file, words in (("export.json", "exported with"), ("compile.json", "compiled with")):
        made = records.raw.get(file, {}).get("versions")
        if isinstance(made, Mapping):
            rows.append((words, ", ".join(f"{name} {version}" for name, version in made.items())))
    rows.append(("genome", " ".join(map(str, result.genome))))
    rows.append(("this page written with", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)))
    parts: list[str] = [facts(rows)]
    if isinstance(records.provenance, Missing):
        parts.append(missing(records.provenance, "How the model was trained is not known."))
    else:
        parts.append(tag("h3", None, "How the model was made"))
        steps = records.provenance
        parts.append(facts([(name, _step(step)) for name, step in steps.items()]))
        lacking = [name for name in STEPS if name not in steps]
        if lacking:
            words = ", ".join(f"apq-deploy {name}" for name in lacking)
            parts.append(note(f"Not recorded: {', '.join(lacking)} (written by {words})."))
    return joined(parts)


def _step(step: Step) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in step.versions.items())
    words = (step.command, step.date, _settings(step.settings), versions, step.notes)
    return "; ".join(word for word in words if word)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {'not set' if value is None else value}" for name, value in settings.items()
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def records_part(records: RunRecords) -> Markup:
    """The records as they are, for whoever wants to compute with them."""
    files = [
        folded(name, tag("pre", None, _compact(data)), printed=False) for name, data in sorted(records.raw.items())
    ]
    return joined(files)


def _compact(data: Mapping[str, Any]) -> str:
    """JSON with an entry of the outermost level on each line."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in data.items()]
    return "{\n" + ",\n".join(lines) + "\n}"
