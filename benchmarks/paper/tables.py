"""What docs/results.md says, from the measurements: a section each as lines of Markdown, and its rows for CSV files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from apq_deploy.predictor.store import KINDS, Kind, Points, PointStore
from apq_deploy.search.budget import metric_words, unit
from apq_deploy.search.costs import Metric
from apq_deploy.supernet.train import PHASES
from benchmarks.paper.joint import LIMITED, REFINED, UNTRANSFERRED, WITH_REFINED, limit, methods
from benchmarks.paper.ledger import Ledger, Value
from benchmarks.paper.plan import ARMS, MAIN, Plan
from benchmarks.paper.points import repeated
from benchmarks.paper.shrinking import arch_of
from benchmarks.paper.statistics import Mean, bootstrap, noise_std, pairwise_ceiling

PREDICTORS = (
    "scratch",
    "ridge",
    "full precision alone",
    "transferred",
    "corrected",
    "calibrated alone",
    "corrected twice",
    "mean with scratch",
)


NONE = "-"


@dataclass(frozen=True)
class Section:
    """Lines of Markdown, and the rows behind them, the first one with the names."""

    lines: list[str]
    rows: list[Sequence[object]]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table and an empty line."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines, ""]


def arm_words(arm: str) -> str:
    return "{" + ", ".join(map(str, ARMS[arm])) + "}"


def points_of(plan: Plan, arm: str) -> dict[Kind, Points]:
    """The points of an arm by kind."""
    store = PointStore(plan.model(arm).points, plan.space(arm))
    found: dict[Kind, Points] = {kind: store.points(kind) for kind in KINDS}
    store.close()
    return found


def shrinking(plan: Plan, ledger: Ledger) -> Section:
    """Shrinking, plain sampling, and subnets alone."""
    found, alone = ledger.of("subnets"), ledger.of("alone")
    rows, of_random = [], {}
    for how, words in (("shrinking", "progressive shrinking"), ("plain", "plain random sampling")):
        random = np.array([found[how, n]["percent"] for n in range(2, 2 + plan.random_subnets)])
        of_random[how] = random
        low, high = bootstrap(random, "std")
        spread = f"{random.std(ddof=1):.2f} ({low:.2f} to {high:.2f})"
        largest, smallest = (f"{found[how, n]['percent']:.2f}" for n in range(2))
        rows.append((words, largest, smallest, Mean.of(random).text(), spread))
    difference = Mean.of(of_random["shrinking"] - of_random["plain"])
    lines = table(("training", "largest", "smallest", f"{plan.random_subnets} random, mean", "their std"), rows)
    lines += [
        f"Shrinking less plain sampling, over the same {difference.n} random subnets: {difference.signed()} points.",
        "",
    ]
    if alone:
        numbers = [int(key[0]) for key in alone]
        each = {how: [found[how, n]["percent"] for n in numbers] for how in ("shrinking", "plain")}
        own = [alone[n,]["percent"] for n in numbers]
        lines += [
            f"{len(own)} of these subnets, each trained alone from random weights for {plan.alone_steps} steps:",
            "",
            *table(
                ("", "mean", "less alone"),
                [
                    ("alone", Mean.of(own).text(), ""),
                    *(
                        (words, Mean.of(each[how]).text(), Mean.of(np.subtract(each[how], own)).signed())
                        for how, words in (
                            ("shrinking", "out of the shrunk supernet"),
                            ("plain", "out of the plain one"),
                        )
                    ),
                ],
            ),
        ]
    out: list[Sequence[object]] = [("training", "subnet", "blocks", "test_percent")]
    every = found | {("alone", key[0]): value for key, value in alone.items()}
    for (how, n), value in every.items():
        out.append((how, n, len(arch_of(plan, int(n)).blocks), round(value["percent"], 2)))
    return Section(lines, out)


def noise(plan: Plan, ledger: Ledger, arm: str) -> tuple[float, float, float]:
    """Std of the labels, std of their noise, and the pairwise accuracy that this noise allows."""
    points, again = points_of(plan, arm)["quantized"], ledger.of("repeats")
    labels = dict(zip(points.index.tolist(), points.accuracy.tolist(), strict=True))
    repeats = [
        np.array([labels[n], *(again[arm, n, r]["accuracy"] for r in range(1, plan.repeats + 1))])
        for n in repeated(plan, arm)
    ]
    own, label = noise_std(repeats), float(points.accuracy.std(ddof=1))
    return label, own, pairwise_ceiling(label, own)


def transfer(plan: Plan, ledger: Ledger) -> Section:
    """Pairwise accuracy and Kendall tau against the number of points."""
    found = ledger.of("transfer")
    lines: list[str] = []
    out: list[Sequence[object]] = [
        ("bits", "split", "points", "predictor", "pairwise_accuracy", "kendall_tau", "mae_points")
    ]
    for arm in ARMS:
        mine = {key: value["scores"] for key, value in found.items() if key[0] == arm}
        sizes, splits = sorted({int(key[2]) for key in mine}), sorted({int(key[1]) for key in mine})
        points = points_of(plan, arm)
        label, own, ceiling = noise(plan, ledger, arm)
        correlation = float(np.corrcoef(points["calibrated"].accuracy, points["quantized"].accuracy)[0, 1])
        cheap, dear = (float(np.median(points[kind].seconds)) for kind in ("calibrated", "quantized"))
        held_out = next(iter(found[key]["held_out"] for key in mine), 0)
        lines += [
            f"### Bits {arm_words(arm)}",
            "",
            f"{len(points['quantized'])} quantized networks: {100 * points['quantized'].accuracy.mean():.2f} %, std "
            f"{100 * label:.2f}; without fine-tuning {100 * points['calibrated'].accuracy.mean():.2f} %, std "
            f"{100 * points['calibrated'].accuracy.std():.2f}, correlation {correlation:.3f}. Fine-tuning again gives "
            f"labels with a std of {100 * own:.2f} points ({plan.repeated_points} networks, "
            f"{plan.repeats + 1} times each), so that a predictor which knew the truth would rank "
            f"{100 * ceiling:.1f} % of pairs as their labels do. Median time of a point on one core: calibrated "
            f"{cheap:.1f} s, fine-tuned {dear:.1f} s.",
            "",
            f"Pairwise accuracy, %, on {held_out} held-out networks (whole groups), {len(splits)} splits, mean ± 95 %:",
            "",
        ]
        for what, digits, factor in (("pairwise_accuracy", 1, 100), ("kendall_tau", 3, 1)):
            if what == "kendall_tau":
                lines += ["Kendall tau:", ""]
            rows = []
            for name in PREDICTORS:
                each = [[factor * mine[arm, s, n][name][what] for s in splits] for n in sizes]
                rows.append((name, *(Mean.of(values).text(digits) for values in each)))
            lines += table(("predictor", *(f"{n} points" for n in sizes)), rows)
        rows = []
        for name, other in (
            ("transferred", "scratch"),
            ("transferred", "full precision alone"),
            ("corrected", "transferred"),
            ("corrected twice", "transferred"),
            ("corrected twice", "ridge"),
            ("mean with scratch", "corrected twice"),
        ):
            each = [
                [
                    100 * (mine[arm, s, n][name]["pairwise_accuracy"] - mine[arm, s, n][other]["pairwise_accuracy"])
                    for s in splits
                ]
                for n in sizes
            ]
            rows.append((f"{name} less {other}", *(Mean.of(values).signed(1) for values in each)))
        lines += ["Differences, paired by split, in points:", "", *table(("", *(f"{n} points" for n in sizes)), rows)]
        for (_, split, size), scores in mine.items():
            for name in PREDICTORS:
                s = scores[name]
                out.append(
                    (arm_words(arm), split, size, name, round(s["pairwise_accuracy"], 4), round(s["kendall_tau"], 4),
                     round(s["mean_absolute_error_points"], 4))
                )  # fmt: skip
    return Section(lines, out)


@dataclass(frozen=True)
class Found:
    """A searched network and the test accuracies of its files, one per seed."""

    arm: str
    metric: str
    share: float
    method: str
    limit: float
    value: Value
    percent: list[float]


def searched(plan: Plan, ledger: Ledger) -> list[Found]:
    """Every search with what its networks reached."""
    finals = ledger.of("final")
    found = []
    for key, value in ledger.of("search").items():
        arm, metric, share, method = str(key[0]), str(key[1]), float(key[2]), str(key[3])
        percent: list[float] = []
        if "genome" in value:
            name = " ".join(map(str, value["genome"]))
            percent = [finals[arm, name, s]["percent"] for s in range(plan.seeds) if (arm, name, s) in finals]
        found.append(Found(arm, metric, share, method, value["limit"], value, percent))
    return found


def joint(plan: Plan, ledger: Ledger) -> Section:
    """Test accuracies at every budget, and how far joint search is ahead."""
    found = searched(plan, ledger)
    lines: list[str] = []
    for arm in ARMS:
        lines += [f"### Bits {arm_words(arm)}", ""]
        of_arm = [f for f in found if f.arm == arm]
        columns: list[tuple[Metric, float]] = [(metric, share) for metric in LIMITED for share in plan.budget_shares]
        at = {(f.metric, f.share, f.method): f for f in of_arm}
        head = ["%", *(f"{limit(plan, arm, metric, share):.3g} {unit(metric)}" for metric, share in columns)]
        rows = []
        for method in methods(arm):
            cells = [at[metric, share, method].percent for metric, share in columns]
            rows.append((method, *(Mean.of(c).text() if c else NONE for c in cells)))
        lines += [
            f"Test accuracy of the ONNX file, {plan.seeds} seeds of fine-tuning, mean ± 95 %; {NONE} where no network "
            "of the kind meets the budget:",
            "",
            *table(head, rows),
        ]
        refined_joint, *others = WITH_REFINED
        own = [name for name in methods(arm) if name not in WITH_REFINED]
        for base, compared in (("joint", own[1:]), (refined_joint, ["joint", *others, "bits of the middle"])):
            lines += [
                f"*{base}* less the other, paired by seed; last the mean over the budgets that both meet, its interval "
                "over them and their number:",
                "",
                *table((*head, "over budgets"), _differences(at, columns, base, compared)),
            ]
    out: list[Sequence[object]] = [("bits", "cost", "limit", "method", "predicted_percent", "latency_ms", "energy_mj",
                                    "bitops_g", "test_percent_by_seed")]  # fmt: skip
    for f in found:
        known = "genome" in f.value
        costs = [f"{f.value['costs'][m]:.5g}" for m in LIMITED] if known else [""] * len(LIMITED)
        out.append(
            (arm_words(f.arm), metric_words(f.metric), f.limit, f.method,  # type: ignore[arg-type]
             round(100 * f.value["predicted"], 3) if known else "", *costs,
             " ".join(f"{p:.2f}" for p in f.percent))
        )  # fmt: skip
    return Section(lines, out)


def _differences(
    at: Mapping[tuple[str, float, str], Found],
    columns: Sequence[tuple[Metric, float]],
    base: str,
    others: Sequence[str],
) -> list[Sequence[object]]:
    """How far `base` is ahead of each of the others, by budget and on average."""
    rows: list[Sequence[object]] = []
    for method in others:
        cells, means = [], []
        for metric, share in columns:
            ours, theirs = at[metric, share, base].percent, at[metric, share, method].percent
            if not theirs:
                cells.append(NONE)
                continue
            difference = Mean.of(np.subtract(ours, theirs))
            means.append(difference.mean)
            cells.append(difference.signed())
        over = Mean.of(means).signed() + f" ({len(means)})" if len(means) > 1 else NONE
        rows.append((method, *cells, over))
    return rows


def predicted(plan: Plan, ledger: Ledger) -> Section:
    """Predicted against measured accuracy of all networks that a predictor chose."""
    rows = []
    for arm, by_refined in product(ARMS, (False, True)):
        pairs = {
            tuple(f.value["genome"]): (100 * f.value["predicted"], float(np.mean(f.percent)))
            for f in searched(plan, ledger)
            if f.arm == arm and f.percent and f.method != UNTRANSFERRED and f.method.endswith(REFINED) == by_refined
        }
        x, y = np.array(list(pairs.values())).T
        error = x - y
        centred = np.abs(error - error.mean()).mean()
        rho, tau = (np.asarray(rank(x, y))[0] for rank in (stats.spearmanr, stats.kendalltau))
        rows.append(
            (arm_words(arm), "refined" if by_refined else "the paper's", len(x), f"{np.abs(error).mean():.2f}",
             Mean.of(error).signed(), f"{centred:.2f}", f"{rho:.3f}", f"{tau:.3f}")
        )  # fmt: skip
    head = (
        "bits",
        "predictor",
        "networks",
        "mean absolute error",
        "predicted less measured",
        "error without that offset",
        "Spearman",
        "Kendall",
    )
    return Section(table(head, rows), [])


def refined(plan: Plan) -> Section:
    """What the rounds of refinement told."""
    rows = []
    for arm in ARMS:
        for number, each in enumerate(plan.model(arm).recorded("refine")["by_round"], 1):
            figures = ("predicted_percent", "measured_percent", "mean_absolute_error_points")
            rows.append((arm_words(arm), number, each["points"], *(f"{each[name]:.2f}" for name in figures)))
    return Section(table(("bits", "round", "points", "predicted before", "measured", "mean absolute error"), rows), [])


def cost(plan: Plan, ledger: Ledger) -> Section:
    """What every stage takes, and one deployment more."""
    seconds: dict[str, list[float]] = {}
    units = ledger.of("cost")
    for key, used in ledger.cpu_seconds("cost").items():
        if int(key[1]) >= 0:
            seconds.setdefault(str(key[0]), []).append(used / units[key]["units"])
    each = {name: Mean.of(values) for name, values in seconds.items()}
    settings, arms = plan.train, points_of(plan, MAIN)
    training = sum(settings.steps(phase) * each[f"training step, {phase}"].mean for phase in PHASES)
    n_float, n_quantized, n_chosen = (len(arms[kind]) for kind in ("float", "quantized", "chosen"))
    once = {
        f"supernet, {sum(map(settings.steps, PHASES))} steps": training,
        f"{n_float} full-precision points": n_float * each["float"].mean,
        f"{n_quantized} quantized points": n_quantized * each["quantized"].mean,
        f"{n_chosen} chosen points": n_chosen * each["quantized"].mean,
        f"predictors, {1 + plan.rounds} times": (1 + plan.rounds) * each["fit"].mean,
    }
    more = {"search": each["search"].mean, f"calibrate, {plan.final_steps} steps, export, test": each["finish"].mean}
    rows = [(name, f"{value:.0f}", "") for name, value in once.items()]
    rows += [("once, together", f"{sum(once.values()):.0f}", ""), *((n, "", f"{v:.1f}") for n, v in more.items())]
    rows += [("one deployment more, together", "", f"{sum(more.values()):.1f}")]
    hours, added = (sum(values.values()) / 3600 for values in (once, more))
    lines = table(("", "once, CPU s", "per deployment, CPU s"), rows)
    lines += [
        f"For N deployments: {hours:.2f} + {added:.4f} N CPU hours; {training / 3600:.2f} N CPU hours for training "
        "alone, if each had its own. As arithmetic from assumptions, not as a measurement: at 10 W per busy core "
        f"and 0.4 kg CO2e per kWh, {10 * hours:.0f} + {10 * added:.2f} N Wh, that is {4 * hours:.0f} + {4 * added:.2f} "
        "N g CO2e.",
    ]
    return Section(lines, [])


def unmeasured(plan: Plan, ledger: Ledger) -> int:
    """How many networks were found but not measured with every seed."""
    return sum("genome" in f.value and len(f.percent) < plan.seeds for f in searched(plan, ledger))
