"""The report page: its numbers, its markup, what it says of missing parts, and how a browser lays it out."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apq_deploy.deployment import describe_run
from apq_deploy.errors import UserError
from apq_deploy.predictor.collect import CollectSettings
from apq_deploy.predictor.model import Predictor
from apq_deploy.predictor.store import PointStore, planned_genome
from apq_deploy.report import write_report
from apq_deploy.report.evidence import front_of, hardware_costs
from apq_deploy.report.making import stage_costs
from apq_deploy.report.markup import data_table, tag
from apq_deploy.report.plot import Row, Scale, Series, bars, bounds, chart, ticks
from apq_deploy.report.quality import margin_percent
from apq_deploy.report.records import RunRecords
from apq_deploy.report.words import duration, energy_unit, number, size, time_unit
from apq_deploy.search import Budget, Evolution, Front, SearchResult, SpaceCosts, pareto_search, search
from apq_deploy.space import SearchSpace
from apq_deploy.workload import arch_layers
from hwmodels import load_hardware

SPACE = SearchSpace.load("fashion")
COSTS = SpaceCosts.from_hardware(SPACE, load_hardware("bitfusion"))
SHORT = Evolution(population=40, generations=12)
VOID = {"meta", "rect", "line", "path", "circle", "polygon", "polyline"}


def small_predictor(seed: int = 0) -> Predictor:
    """A random predictor of the width that the file format rounds: float16."""
    rng = np.random.default_rng(seed)

    def halves(*shape: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(shape)).astype(np.float16).astype(np.float32)

    weights = (halves(1, 16, SPACE.n_features), halves(1, 1, 16))
    return Predictor(SPACE, weights, (halves(1, 16), halves(1, 1)), 0.88, 0.05, True)


def export_record(result: SearchResult) -> dict[str, Any]:
    layers = [
        {
            "name": named.name,
            "kind": "Conv",
            "claimed_weight_bits": named.precision.weight_bits,
            "claimed_input_bits": named.precision.act_bits,
            "claimed_output_bits": 8,
            "used_weight_bits": named.precision.weight_bits,
            "used_input_bits": named.precision.act_bits,
            "used_output_bits": 8,
            "weights": named.layer.weights,
            "storage_bits": 4 if named.precision.weight_bits <= 4 else 8,
            "size_bytes": 1000 + index,
            "kernel": "QLinearConv",
            "is_integer": True,
        }
        for index, named in enumerate(arch_layers(SPACE, result.arch))
    ]
    return {
        "schema": "apq-deploy/export/2",
        "model": "model.onnx",
        "model_sha256": "ab" * 32,
        "space": SPACE.name,
        "genome": list(result.genome),
        "settings": {"finetune_steps": 20, "weight_method": None, "act_method": None, "seed": 3},
        "images": {"source": "sample images of the model", "train": 1999, "test": 1998},
        "predicted_accuracy_percent": 100 * result.predicted_accuracy,
        "accuracy_percent": {"float": 89.61, "calibrated": 88.17, "finetuned": 88.64, "onnxruntime": 87.53},
        "parity": {
            "network": "subnet",
            "images": 16,
            "compared": {"onnxruntime": 26, "torch": 26},
            "differences": [],
            "is_equal": True,
        },
        "file_bytes": 64981,
        "layers": layers,
        "false_claims": [],
        "torch_float_ms": {"median": 0.928, "low": 0.875, "high": 2.338},
        "cpu_seconds": 61.5,
    }


def compile_record() -> dict[str, Any]:
    difference = {"source": "TVM", "tensor": "t", "differing": 7, "total": 99, "largest": 1}
    timings = [("compiled", 0.01331, 0.0131, 0.0138), ("onnxruntime", 0.05287, 0.0516, 0.0587)]
    return {
        "schema": "apq-deploy/compile/2",
        "model": "model.onnx",
        "model_sha256": "ab" * 32,
        "library": "model.so",
        "target": "x86-64-vnni",
        "threads": 1,
        "compile_seconds": 11.96,
        "library_bytes": 260050,
        "agreement": {
            "images": 64,
            "source": "random images",
            "differing_logits": 5,
            "largest_difference_codes": 1,
            "same_class": 63,
            "accuracy_percent": 87.49,
            "tensors": {
                "network": "subnet",
                "images": 16,
                "compared": {"TVM": 26},
                "differences": [difference],
                "is_equal": False,
            },
        },
        "latency": {
            "timings": [
                {"runtime": n, "threads": 1, "median_ms": m, "low_ms": a, "high_ms": b, "cpu_ms": m, "repeats": 600}
                for n, m, a, b in timings
            ],
            "load": 0.5,
        },
    }


PROVENANCE = {
    "schema": "apq-deploy/provenance/1",
    "space": SPACE.name,
    "steps": {
        "train": {
            "command": "apq-deploy train --data DIR",
            "seconds": 900.0,
            "date": "2026-01-02",
            "settings": {"seed": 5},
            "versions": {"torch": "2.13.0"},
        },
        "collect": {
            "float": {"points": 100, "seconds_per_point": 0.5},
            "quantized": {"points": 50, "seconds_per_point": 3.0},
        },
        "fit": {
            "cpu_seconds": 40.0,
            "held_out_scores": {
                "quantized, transferred": {
                    "points": 60.0,
                    "pairwise_accuracy": 0.863,
                    "kendall_tau": 0.724,
                    "mean_absolute_error_points": 0.2606,
                }
            },
        },
    },
}


@dataclass(frozen=True)
class Case:
    """A whole run: its folder, the trained model's, and the search behind it."""

    run: Path
    model: Path
    result: SearchResult


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A run with every record; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("report")
    run, model = folder / "run", folder / "model"
    run.mkdir()
    model.mkdir()
    predictor = small_predictor()
    result = search(COSTS, predictor, Budget(latency_ms=0.05), seed=1, settings=SHORT)
    data = result.to_json() | {"cpu_seconds": 8.5}
    (run / "search.json").write_text(json.dumps(data))
    (run / "export.json").write_text(json.dumps(export_record(result)))
    (run / "compile.json").write_text(json.dumps(compile_record()))
    predictor.save(model / "predictor.safetensors")
    (model / "provenance.json").write_text(json.dumps(PROVENANCE))
    store = PointStore(model / "points.sqlite", SPACE, asdict(CollectSettings()))
    for index in range(100):
        genome = planned_genome(SPACE, "quantized", index, 0)
        store.add("quantized", index, genome, 0.85 + 0.0003 * index, 3.0)
    store.close()
    return Case(run, model, result)


@pytest.fixture(scope="session")
def page(whole: Case) -> str:
    return written(whole)


@pytest.fixture
def case(whole: Case, tmp_path: Path) -> Case:
    """A copy of the whole run that a test may change."""
    return Case(
        shutil.copytree(whole.run, tmp_path / "run"), shutil.copytree(whole.model, tmp_path / "model"), whole.result
    )


def written(case: Case, **options: Any) -> str:
    output = case.run.parent / "page.html"
    write_report(case.run, output, case.model, **options)
    return output.read_text(encoding="utf-8")


def changed(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


class Outline(HTMLParser):
    """Reads a page strictly: every element is closed in order, and what the page holds is kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.words = ""
        self._section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in VOID, f"<{tag}> is not closed"
        assert len(dict(attrs)) == len(attrs), f"<{tag}> says an attribute twice"
        self.open.append(tag)
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._section = str(dict(attrs)["id"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, f"<{tag}/> is not an empty element"
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data + " "
        if self._section:
            self.sections[self._section] = self.sections.get(self._section, "") + data + " "


def numbers(data: Any) -> Iterator[float]:
    """Every number of a record."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            yield from numbers(value)
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield data


# --- the pieces


@settings(deadline=None)
@given(st.text(), st.text())
def test_text_and_attributes_come_back_from_the_markup(words: str, attribute: str) -> None:
    words, attribute = (text.replace("\r", "").replace("\0", "") for text in (words, attribute))
    found = Outline(tag("p", {"class": attribute}, words))
    assert found.elements == [("p", {"class": attribute})]
    assert found.words == (words + " " if words else "")


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", None, tag("b", None, "a<b"), "&") == "<p><b>a&lt;b</b>&amp;</p>"
    assert tag("rect", {"x": 1.0, "y": 2.345}) == '<rect x="1" y="2.3"/>'


def test_a_table_sets_numbers_to_the_right() -> None:
    table = data_table(("name", "ms"), [("a", "1.5"), ("b", "2e-05")])
    assert '<td class="number">1.5</td>' in table
    assert '<th scope="row">a</th>' in table
    assert 'class="number"' not in data_table(("name", "bits"), [("a", "W8A8")])


def test_ticks_by_hand() -> None:
    assert ticks(0, 10) == [0, 2.5, 5, 7.5, 10]
    assert ticks(87.02, 87.29) == pytest.approx([87.05, 87.1, 87.15, 87.2, 87.25])
    assert ticks(3, 3) == [3]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    assume(span >= 1e-9 * abs(low))  # as `bounds` makes them
    high = low + span
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    assert all(low - 1e-6 * span <= value <= high + 1e-6 * span for value in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[:1], rtol=1e-6, atol=1e-9 * abs(low))


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_bounds_hold_all_values_and_are_never_empty(values: list[float]) -> None:
    low, high = bounds(values)
    assert low < high
    assert low <= min(values)
    assert max(values) <= high


def test_a_scale_maps_its_ends_and_its_middle() -> None:
    scale = Scale(10, 20, 100, 0)
    assert [scale(10), scale(15), scale(20)] == [100, 50, 0]


def test_bars_are_as_long_as_their_values() -> None:
    drawn = Outline(bars([Row("a", 4.0, "4"), Row("b", 1.0, "1")], "two bars", names=100.0, values=60.0))
    lengths = [float(str(a["width"])) for name, a in drawn.elements if name == "rect"]
    assert lengths == [200.0, 50.0]


def test_a_chart_places_its_points() -> None:
    drawn = Outline(chart([Series("s", [0, 1], [5, 7], "circles", 1)], "x", "y", "points"))
    (x0, y0), (x1, y1) = (
        (float(str(a["cx"])), float(str(a["cy"]))) for name, a in drawn.elements if name == "circle" and "dot" in str(a)
    )
    assert x0 < x1
    assert y0 > y1


def test_numbers_in_words() -> None:
    assert [number(0.04930412), number(18468.2), number(123456789)] == ["0.0493", "18468", "123456789"]
    assert time_unit([0.0049, 0.0012]).text(0.0012) == "1.2 µs"
    assert time_unit([8.4]).text(8.4) == "8.4 ms"
    assert energy_unit([0.00001]).text(0.00001) == "10 nJ"
    assert [size(999), size(64981), size(2.5e6)] == ["999 B", "64.98 kB", "2.5 MB"]
    assert [duration(12), duration(906), duration(9000)] == ["12 s", "15.1 min", "2.5 h"]


def test_margin_of_a_measured_accuracy() -> None:
    # 87.5 % of 2000 images: 1.96 * sqrt(0.875 * 0.125 / 2000) = 0.0144943
    assert margin_percent(87.5, 2000) == pytest.approx(1.44943, abs=1e-4)


# --- the page


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(page: str) -> None:
    found = Outline(page)
    assert page.startswith("<!DOCTYPE html>")
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in found.elements:
        assert name not in ("script", "img", "link", "iframe", "object", "embed", "use", "image")
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "xlink:href")]
        if "href" in attributes:
            assert str(attributes["href"]).removeprefix("#") in ids
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_every_drawing_is_named_for_those_who_cannot_see_it(page: str) -> None:
    drawings = [attributes for name, attributes in Outline(page).elements if name == "svg"]
    assert len(drawings) > 10
    assert all(each.get("aria-label") or each.get("aria-hidden") == "true" for each in drawings)


def test_every_number_of_the_records_is_on_the_page(whole: Case, page: str) -> None:
    words = Outline(page).sections["records"]
    for folder, name in (
        (whole.run, "search"),
        (whole.run, "export"),
        (whole.run, "compile"),
        (whole.model, "provenance"),
    ):
        data = json.loads((folder / f"{name}.json").read_text())
        tokens = set(words.replace("[", " ").replace("]", " ").replace("}", " ").replace(",", " ").split())
        missing = [value for value in numbers(data) if json.dumps(value) not in tokens]
        assert missing == []


def test_the_parts_show_what_the_records_say(whole: Case, page: str) -> None:
    parts = Outline(page).sections
    costs = whole.result.costs["full"]
    predicted = f"{100 * whole.result.predicted_accuracy:.2f} %"
    expected = {
        "result": [f"{costs['latency_ms']:.4g} ms", f"{costs['energy_mj']:.4g} mJ", "87.53 %", predicted, "≤ 0.05"],
        "front": ["front,", "chosen, as predicted", "budget"],
        "search": [f"{whole.result.evaluations:,}", whole.result.stop_reason, "seed 1", "Diversity"],
        "accuracy": ["89.61 %", "88.17 %", "88.64 %", "87.53 %", "87.49 %", predicted, "1,998 test images"],
        "agreement": ["7 codes, 26 tensors", "0 codes, 26 tensors", "5 logits", "63 of 64", "✗ no", "✓ yes"],
        "size": ["64.98 kB", "260.1 kB", "0.928 ms", "0.0133 ms", "0.0529 ms"],
        "versions": [whole.result.hardware_sha256, " ".join(map(str, whole.result.genome)), "seed 3", "seed 5"],
    }
    for name, words in expected.items():
        for word in words:
            assert word in parts[name], f"{word!r} is not in the part {name!r}"
    hardware = load_hardware("bitfusion")
    for named in arch_layers(SPACE, whole.result.arch):
        assert str(named.layer) in parts["layers"]
        assert number(hardware.layer_cost(named.layer, named.precision).latency_ms) in parts["layers"]


def test_where_bits_do_not_pay(page: str) -> None:
    # In the file 6 bits take a byte, as 8 do.
    words = Outline(page).sections["bits"]
    assert "6 bits do not pay in size in the file" in words
    assert "does not pay" in words
    assert "_weight" not in words


def test_the_network_is_drawn_block_by_block(whole: Case, page: str) -> None:
    words = Outline(page).sections["network"]
    times = "\N{MULTIPLICATION SIGN}"
    for block in whole.result.arch.blocks:
        assert f"dw {block.kernel_size}{times}{block.kernel_size}, {block.mid_channels}" in words
    shown = [word for word in words.split() if word[:1] in "WA" and word[1:].isdigit()]
    bits = [named.precision for named in arch_layers(SPACE, whole.result.arch)]
    assert shown == [word for each in bits for word in (f"W{each.weight_bits}", f"A{each.act_bits}")]


def test_design_cost_by_hand(whole: Case, page: str) -> None:
    records = RunRecords.load(whole.run, whole.model)
    found = {stage.name: (stage.is_once, stage.seconds, stage.clock) for stage in stage_costs(records)}
    assert found == {
        "train": (True, 900.0, "wall"),
        "collect": (True, 100 * 0.5 + 50 * 3.0, "wall"),
        "fit": (True, 40.0, "processor"),
        "search": (False, 8.5, "processor"),
        "export": (False, 61.5, "processor"),
        "compile": (False, 11.96, "wall"),
    }
    # once: 900 + 200 + 40 = 1140 s = 19 min; each: 8.5 + 61.5 + 11.96 = 81.96 s; for 10: 114 + 81.96 s = 3.27 min
    words = Outline(page).sections["cost"]
    assert "N deployments take 19.0 min + N · 82 s" in words
    assert "3.3 min" in words


def test_refinement_counts_where_it_was_done(case: Case) -> None:
    steps = PROVENANCE["steps"] | {"refine": {"cpu_seconds": 360.0, "by_round": []}}  # type: ignore[operator]
    (case.model / "provenance.json").write_text(json.dumps(PROVENANCE | {"steps": steps}))
    words = Outline(written(case)).sections["cost"]
    assert "N deployments take 25.0 min + N · 82 s" in words


def test_times_that_nobody_recorded_are_said_to_be_missing(case: Case) -> None:
    (case.model / "provenance.json").write_text(json.dumps(PROVENANCE | {"steps": {"train": {"seconds": 600.0}}}))
    words = Outline(written(case)).sections["cost"]
    assert "What is paid once takes 10.0 min and what collect and fit took, which is not recorded." in words
    assert "apq-deploy collect, apq-deploy fit" in words


def test_the_predictor_on_held_out_points(page: str) -> None:
    # Of 100 quantized points in groups of 20, every fifth group is held out: 20 points.
    words = Outline(page).sections["accuracy"]
    assert "On 20 networks held out of its training" in words
    assert "network held out of the training" in words
    for word in ("quantized, transferred", "86.3 %", "0.724", "0.26"):
        assert word in words


def test_the_same_run_gives_the_same_page_and_stays_as_it_is(case: Case) -> None:
    def state() -> dict[str, str]:
        files = [*case.run.iterdir(), *case.model.iterdir()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = state()
    assert written(case) == written(case)
    assert state() == before


HOSTILE = "<script>alert('1')</script>&\"</style><b onclick=x>"


def test_hostile_words_in_records_stay_words(case: Case) -> None:
    changed(case.run / "search.json", stop_reason=HOSTILE, freeze=[HOSTILE])
    changed(case.run / "export.json", false_claims=[HOSTILE], settings={HOSTILE: HOSTILE})
    changed(case.run / "compile.json", target=HOSTILE, library=HOSTILE)
    changed(case.model / "provenance.json", steps={HOSTILE: {"command": HOSTILE, "settings": {HOSTILE: 1}}})
    # the front in the folder, as a search with the hostile freeze cannot be run
    save_front(case)
    text = written(case)
    found = Outline(text)
    assert not [name for name, attributes in found.elements if name in ("script", "b") and "onclick" in attributes]
    assert "<script" not in text
    assert found.words.count(HOSTILE) >= 6
    assert escape(HOSTILE, quote=False) in text


def save_front(case: Case) -> Front:
    front = pareto_search(COSTS, small_predictor(), ("latency_ms", "energy_mj"), seed=2, settings=SHORT)
    front.save(case.run / "front.json")
    return front


def test_a_front_in_the_run_folder_is_shown_as_it_is(case: Case) -> None:
    front = save_front(case)
    words = Outline(written(case)).sections["front"]
    assert f"front, {len(front)} networks" in words
    assert "Accuracy against latency" in words
    assert "Accuracy against energy" in words
    assert "Made for this page" not in words
    assert f"{100 * front.accuracy[0]:.2f}" in words


def test_a_front_of_other_hardware_is_not_mixed_in(case: Case) -> None:
    front = save_front(case)
    replace(front, hardware_sha256="0" * 64).save(case.run / "front.json")
    assert "of another space or hardware" in Outline(written(case)).sections["front"]


# --- what is missing, and what is wrong


def test_a_run_that_has_only_searched_says_which_commands_go_on(case: Case) -> None:
    (case.run / "export.json").unlink()
    (case.run / "compile.json").unlink()
    for path in case.model.iterdir():
        path.unlink()
    parts = Outline(written(case)).sections
    for name in ("accuracy", "agreement", "size"):
        assert f"apq-deploy export model.onnx --run {case.run}" in parts[name]
    for name in ("agreement", "size"):
        assert f"apq-deploy compile model.onnx -o model.so --run {case.run}" in parts[name]
    assert "apq-deploy fit --space fashion" in parts["front"]
    assert "apq-deploy train --space fashion --data DIR" in parts["cost"]
    assert "predicted; not measured yet" in parts["result"]
    assert "expand" in parts["layers"]


def test_records_of_another_network_are_not_mixed_in(case: Case) -> None:
    """A later search, or a later export, in the same folder."""
    changed(case.run / "compile.json", model_sha256="cd" * 32)
    parts = Outline(written(case)).sections
    assert "apq-deploy compile model.onnx" in parts["agreement"]
    assert "64.98 kB" in parts["size"]
    assert "onnxruntime's time" not in describe_run(case.run)
    assert f"not shown: {case.run / 'compile.json'}, which is of another network" in describe_run(case.run)
    other = search(COSTS, small_predictor(), Budget(latency_ms=0.04), seed=1, settings=SHORT)
    (case.run / "search.json").write_text(json.dumps(other.to_json()))
    parts = Outline(written(case)).sections
    assert "apq-deploy export model.onnx" in parts["accuracy"]
    assert "64.98 kB" not in "".join(parts.values())
    assert f"not shown: {case.run / 'export.json'}, which is of another network" in describe_run(case.run)


def test_the_pages_own_front_holds_what_the_search_held(case: Case) -> None:
    """Of the network that --network named, not of the largest."""
    predictor, genes = small_predictor(), SPACE.sample(1, np.random.default_rng(4))[0]
    result = search(COSTS, predictor, Budget(), seed=1, settings=SHORT, freeze=("architecture",), network=genes)
    (case.run / "search.json").write_text(json.dumps(result.to_json()))
    records = RunRecords.load(case.run, case.model)
    front, is_own = front_of(records, predictor, hardware_costs(result, None, None))
    assert isinstance(front, Front) and is_own
    macs = {SpaceCosts.of(COSTS, genome)["macs_m"] for genome in front.genes}
    assert macs == {result.costs["full"]["macs_m"]}


def test_the_predictor_of_another_model_is_not_taken_for_the_one_of_the_search(case: Case) -> None:
    small_predictor(seed=9).save(case.model / "predictor.safetensors")
    parts = Outline(written(case)).sections
    for name in ("front", "accuracy"):
        assert "it is another one" in parts[name]


def test_costs_of_other_hardware_are_not_shown(case: Case) -> None:
    changed(case.run / "search.json", hardware_sha256="0" * 64)
    parts = Outline(written(case)).sections
    for name in ("layers", "bits", "front"):
        assert "--hardware FILE.toml" in parts[name]
    changed(case.run / "search.json", hardware="somewhere")
    assert "The search used somewhere, which is no preset." in Outline(written(case)).sections["layers"]


def test_a_library_for_another_machine(case: Case) -> None:
    changed(case.run / "compile.json", agreement=None, latency=None, target="aarch64")
    parts = Outline(written(case)).sections
    assert "The library is for aarch64" in parts["agreement"]
    assert "260.1 kB" in parts["size"]


DAMAGES = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "another schema": lambda text: text.replace('"apq-deploy/', '"others/', 1),
    "a list": lambda text: "[]",
    "no more than its schema": lambda text: json.dumps({"schema": json.loads(text)["schema"]}),
    "words for numbers": lambda text: text.replace(": 0", ': "x').replace(": 1", ': "y'),
}


@pytest.mark.parametrize("name", ["search", "export", "compile"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_one_line_and_leaves_the_earlier_page(case: Case, name: str, damage: str) -> None:
    output = case.run.parent / "page.html"
    output.write_text("earlier")
    path = case.run / f"{name}.json"
    path.write_text(DAMAGES[damage](path.read_text()))
    with pytest.raises(UserError) as error:
        write_report(case.run, output, case.model)
    assert "\n" not in str(error.value)
    assert output.read_text() == "earlier"
    assert sorted(each.name for each in case.run.parent.iterdir()) == ["model", "page.html", "run"]


@pytest.mark.parametrize("steps", [[], {"train": 3}, {"collect": {"float": {"points": 5}}}, {"fit": {"seconds": "x"}}])
def test_a_provenance_of_another_kind_is_one_line(case: Case, steps: Any) -> None:
    changed(case.model / "provenance.json", steps=steps)
    with pytest.raises(UserError, match=r"provenance\.json: expected a whole record"):
        written(case)


def test_a_search_that_contradicts_itself_is_one_line(case: Case) -> None:
    genome = list(case.result.genome)
    for wrong in (genome[:-1], [100, *genome[1:]], [(genome[0] + 1) % 3, *genome[1:]]):
        changed(case.run / "search.json", genome=wrong)
        with pytest.raises(UserError, match=r"search\.json: .*genome"):
            written(case)
    changed(case.run / "search.json", genome=genome, costs={"full": {}})
    with pytest.raises(UserError, match=r"search\.json: .*latency_ms"):
        written(case)


def test_a_front_that_contradicts_itself_is_one_line(case: Case) -> None:
    front = save_front(case)
    for wrong in ({"accuracy": front.accuracy.tolist()[1:]}, {"objectives": ["size"]}, {"genes": [[1], [2, 3]]}):
        save_front(case)
        changed(case.run / "front.json", **wrong)
        with pytest.raises(UserError, match=r"front\.json: "):
            written(case)


@pytest.mark.parametrize("missing", ["compared", "images"])
def test_a_record_with_a_part_missing_names_its_file(case: Case, missing: str) -> None:
    data = json.loads((case.run / "export.json").read_text())
    del data["parity"][missing]
    (case.run / "export.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"export\.json: .*run `apq-deploy export` again"):
        written(case)


def test_wrong_calls(whole: Case, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no search in .*apq-deploy search"):
        write_report(tmp_path, tmp_path / "page.html")
    (tmp_path / "front.json").write_text("{}")
    with pytest.raises(UserError, match=r"no chosen network; choose one with `apq-deploy pick`"):
        write_report(tmp_path, tmp_path / "page.html")
    with pytest.raises(UserError, match=r"expected the name of an \.html file"):
        write_report(whole.run, tmp_path / "page.pdf")
    with pytest.raises(UserError, match="does not exist"):
        write_report(whole.run, tmp_path / "page.html", tmp_path / "nowhere")
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(whole.run, blocker / "page.html", whole.model)


# --- in a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
WIDTHS = (390, 1280)

# What is wrong with the layout of each frame: a page wider than its window, boxes that stick out of it, words of a
# drawing that leave it or lie on each other, tables that have to be scrolled although they are not folded away.
INSPECT = """
window.addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = frame.contentWindow.innerWidth, wrong = [];
    const root = page.documentElement;
    if (root.scrollWidth > width) wrong.push(`the page is ${root.scrollWidth} wide`);
    for (const box of page.querySelectorAll("body *:not(svg *)")) {
      const place = box.getBoundingClientRect();
      if (!place.width || box.closest("details:not([open])")) continue;
      if (!box.closest(".scroll *") && (place.right > width + 0.5 || place.left < -0.5))
        wrong.push(`${box.tagName} ${box.textContent.slice(0, 30)} ends at ${place.right}`);
      if (box.matches(".scroll") && box.scrollWidth > box.clientWidth + 1)
        wrong.push(`a table is ${box.scrollWidth} wide in ${box.clientWidth}: ${box.textContent.slice(0, 30)}`);
    }
    let texts = 0;
    for (const drawing of page.querySelectorAll("figure svg[viewBox]")) {
      const frame = drawing.getBoundingClientRect(), places = [];
      for (const text of drawing.querySelectorAll("text")) {
        const place = text.getBoundingClientRect(), words = text.textContent;
        texts += 1;
        if (place.left < frame.left - 1 || place.right > frame.right + 1 || place.bottom > frame.bottom + 1)
          wrong.push(`"${words}" leaves its drawing`);
        for (const [other, theirs] of places)
          if (place.left < other.right - 1 && other.left < place.right - 1 &&
              place.top < other.bottom - 3 && other.top < place.bottom - 3)
            wrong.push(`"${words}" lies on "${theirs}"`);
        places.push([place, words]);
      }
    }
    found[frame.width] = {width, height: root.scrollHeight, texts, wrong};
  }
  document.body.innerHTML = "";
  document.body.append(Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)}));
});
"""


def browse(folder: Path, page: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    profile = folder / "profile"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout


def inspected(folder: Path, page: str) -> dict[str, Any]:
    """What the inspection finds at each width."""
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{escape(page)}"></iframe>' for width in WIDTHS)
    bench = folder / "bench.html"
    bench.write_text(f"<!DOCTYPE html><body><script>{INSPECT}</script>{frames}</body>", encoding="utf-8")
    dom = browse(folder, bench, "--dump-dom")
    text = dom.split("<pre>", 1)[1].split("</pre>", 1)[0]
    return json.loads(text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@in_browser
def test_nothing_overflows_or_overlaps(case: Case, tmp_path: Path) -> None:
    save_front(case)  # the page with the most on it
    found = inspected(tmp_path, written(case))
    for width in WIDTHS:
        assert found[str(width)]["width"] == width
        assert found[str(width)]["texts"] > 150
        assert found[str(width)]["wrong"] == []


@in_browser
def test_the_inspection_sees_what_is_wrong(page: str, tmp_path: Path) -> None:
    wide = '<p style="width: 600px">wide</p>'
    text = '<svg viewBox="0 0 360 40"><text x="0" y="20">one word</text><text x="5" y="20">another</text>'
    text += '<text x="340" y="20">leaves its frame</text></svg>'
    broken = page.replace("</main>", f"{wide}<figure>{text}</figure></main>")
    found = inspected(tmp_path, broken)
    complaints = "; ".join(found["390"]["wrong"])
    assert "the page is" in complaints
    assert '"another" lies on "one word"' in complaints
    assert '"leaves its frame" leaves its drawing' in complaints
    assert "the page is" not in "; ".join(found["1280"]["wrong"])


@in_browser
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("theme", "setting", "ground"), [("dark", 0, (20, 23, 27)), ("light", 1, (255, 255, 255))])
def test_screenshots(page: str, tmp_path: Path, width: int, theme: str, setting: int, ground: tuple[int, ...]) -> None:
    from PIL import Image

    path, shot = tmp_path / "page.html", tmp_path / f"{theme}-{width}.png"
    path.write_text(page, encoding="utf-8")
    browse(
        tmp_path,
        path,
        f"--window-size={width},1500",
        f"--blink-settings=preferredColorScheme={setting}",
        f"--screenshot={shot}",
    )
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (1500, width, 3)
    assert tuple(pixels[2, 2]) == ground
    # Words and drawings all the way down, and none of them at the right edge.
    assert (pixels.reshape(3, 500, width, 3) != np.array(ground)).any(axis=3).any(axis=2).sum(axis=1).min() > 100
    assert (pixels[:, -4:] == np.array(ground)).all()


def test_the_page_is_for_phones_for_dark_rooms_and_for_paper(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1"/>' in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "@media print" in page
    policies = [attributes for _, attributes in Outline(page).elements if "http-equiv" in attributes]
    assert [str(each["content"]).split(";")[0] for each in policies] == ["default-src 'none'"]


def luminance(colour: str) -> float:
    """Relative luminance. Source: WCAG 2.1, "relative luminance"."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return math.fsum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_words_and_marks_stand_out_from_their_ground() -> None:
    from apq_deploy.report.style import STYLE

    themes = [block.split("}")[0] for block in STYLE.split(":root {")[1:]]
    assert len(themes) == 3
    for theme in themes:
        entries = [entry.split(":") for entry in theme.split(";") if "--" in entry]
        colours = {name.strip(): value.strip() for name, value in entries}
        for name in ("--ink", "--faint", "--good", "--bad"):
            assert contrast(colours[name], colours["--ground"]) >= 4.5
            assert contrast(colours[name], colours["--panel"]) >= 4.5
        for name in ("--t1", "--t2", "--t3", "--t4", "--frame"):
            assert contrast(colours[name], colours["--ground"]) >= 3.0
    chips = dict(re.findall(r"(\.b\d) \{ fill: (#\w{6}); \}", STYLE))
    assert set(chips) == {f".b{bits}" for bits in range(2, 9)}
    for name, colour in chips.items():
        assert contrast(colour, "#ffffff" if name == ".b8" else "#000000") >= 4.5
