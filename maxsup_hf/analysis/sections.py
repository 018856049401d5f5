"""The sections of the report of `maxsup-hf analyze`, with their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maxsup_hf.analysis import figures, model_figures, style
from maxsup_hf.analysis.measure import plane, project, rows_of
from maxsup_hf.analysis.paired import LEVEL, TESTED, Difference, best_model, resamples
from maxsup_hf.analysis.report import Picture, Section, file_name
from maxsup_hf.analysis.seen import Seen
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.metrics import get_metric
from maxsup_hf.output.tables import Table, minus

CALIBRATION = (
    "Accuracy against confidence: on the dotted diagonal a model is right as often as its confidence says. Bars are 95 % "
    f"intervals (Wilson); bins of fewer than {figures.FEW} rows are faded. Within-class variation: how far the features of "
    "a class spread, 1 − ‖mean direction‖²; 0 if all of them point the same way."
)
SHARES = "Each histogram shows shares of its own rows, right or wrong; vertical lines mark the means."
PLANES = (
    "Features projected on the plane through the classifier's rows of three classes (Müller et al. 2019). The large "
    "outlined marks are these rows. Collapsed features lie in three points."
)


def compared(seen: Sequence[Seen], classes: Sequence[str], folder: Path) -> list[Picture]:
    names, losses = [each.subject.name for each in seen], [each.subject.loss for each in seen]
    curves = figures.reliability([each.measured.curve for each in seen], names, losses)
    within = [each.measured.geometry["d_within_per_class"] for each in seen]
    return [
        Picture(style.save(curves, folder, "reliability"), "Reliability diagram"),
        Picture(
            style.save(figures.within_class(within, names, losses, classes), folder, "within_class"),
            "Within-class variation of each class",
        ),
    ]


def histograms(seen: Sequence[Seen], folder: Path) -> list[Section]:
    right = [each.measured.right for each in seen]
    sections = []
    for kind, title, text, label, least, most in (
        (
            "top",
            "Logits",
            "The top logit minus the mean logit, which MaxSup penalizes.",
            "top logit − mean logit",
            0.0,
            None,
        ),
        ("confidence", "Confidence", "The greatest probability.", "confidence", 1 / len(seen[0].weight), 1.0),
    ):
        values = [getattr(each.measured, kind) for each in seen]
        shared = model_figures.histogram_axes(values, right, (least, most or max(float(v.max()) for v in values)))
        pictures = []
        for i, (each, v) in enumerate(zip(seen, values, strict=True)):
            drawn = model_figures.outcome_histogram(v, each.measured.right, label, each.subject.name, shared)
            path = style.save(drawn, folder, f"{kind}-{file_name(i, each.subject.name)}")
            pictures.append(Picture(path, f"{each.subject.name}: {label}, right against wrong"))
        sections.append(Section(f"{title}, right against wrong", [f"{text} {SHARES}"], figures=pictures))
    return sections


def planes(
    seen: Sequence[Seen], triples: Sequence[tuple[int, int, int]], classes: Sequence[str], folder: Path, notes: list[str]
) -> list[Section]:
    sections: list[Section] = []
    for t, triple in enumerate(triples):
        listed = ", ".join(classes[c] for c in triple)
        pictures = []
        for i, each in enumerate(seen):
            templates = each.weight[list(triple)].numpy()
            try:
                plane(templates)
            except ValueError as error:
                notes.append(f"{each.subject.name}: no projection for {listed}: {error}.")
                continue
            found = rows_of(each.rows(), triple)
            points = np.concatenate([project(found[c], templates) for c in triple])
            which = np.repeat(np.arange(3), [len(found[c]) for c in triple])
            drawn = model_figures.class_plane(
                points, which, [classes[c] for c in triple], project(templates, templates), each.subject.name
            )
            path = style.save(drawn, folder, f"plane-{t + 1}-{file_name(i, each.subject.name)}")
            pictures.append(Picture(path, f"{each.subject.name}: features of {listed}"))
        sections.append(Section(f"Features of {listed}", [] if sections else [PLANES], figures=pictures))
    return sections


def summary(seen: Sequence[Seen], data: Sequence[str]) -> Section:
    header = ["", *(each.subject.name for each in seen)]
    facts = dict.fromkeys(key for each in seen for key in each.subject.about)
    models = [
        ["loss", *(loss_label(each.subject.loss) if each.subject.loss else "not known" for each in seen)],
        *([key, *(str(each.subject.about.get(key, "")) for each in seen)] for key in facts),
        ["classifier layer", *(each.layer for each in seen)],
        ["features", *(f"{each.weight.shape[1]:,}" for each in seen)],
    ]
    return Section("Models", data, [Table(header, models)])


def metrics_section(seen: Sequence[Seen], found: Sequence[Difference]) -> Section:
    """All metrics, and between several models the differences that were tested."""
    names = [each.subject.name for each in seen]
    by_model = [_scalars(each) for each in seen]
    rows: list[list[str]] = []
    bold: list[tuple[int, int]] = []
    for key in dict.fromkeys(key for scalars in by_model for key in scalars):
        values = [scalars.get(key, math.nan) for scalars in by_model]
        best = best_model(key, values, found)
        if best is not None:
            bold.append((len(rows), 1 + best))
        cells = ("–" if math.isnan(value) else minus(f"{value:.4g}") for value in values)
        rows.append([get_metric(key).full_heading, *cells])
    table = Table(["metric", *names], rows, bold=bold)
    if len(seen) == 1:
        return Section("Metrics", tables=[table])
    return Section(
        "Metrics", [_tested(len(seen), len(seen[0].measured.labels), bool(bold))], [table, _differences_table(names, found)]
    )


def _tested(models: int, rows: int, any_bold: bool) -> str:
    pairs = models * (models - 1) // 2
    correction = f", corrected for {pairs} pairs of models (Bonferroni)" if pairs > 1 else ""
    *others, last = (get_metric(key).label for key in TESTED[1:])
    text = (
        "The models are compared on the same rows: accuracy by McNemar's exact test, "
        f"{', '.join(others)} and {last} by a paired bootstrap over the rows ({resamples(rows):,} resamples), "
        f"two-sided{correction}. Other metrics are not tested. "
    )
    if any_bold:
        return text + f"Bold: a model that differs from every other one for the better, p < {LEVEL}."
    return text + f"No model differs from every other one for the better (p < {LEVEL}), so nothing is bold."


def _differences_table(names: Sequence[str], found: Sequence[Difference]) -> Table:
    """A row for each metric and pair of models; a single pair is named above the table."""
    pairs = [f"{names[each.first]} − {names[each.second]}" for each in found]
    is_one = len(set(pairs)) == 1
    rows = []
    for each, pair in zip(found, pairs, strict=True):
        p = "< 0.001" if each.p < 0.001 else f"{each.p:.3f}"
        interval = f"{each.low:+.4f} to {each.high:+.4f}"
        cells = [minus(f"{each.value:+.4f}"), minus(interval), p]
        rows.append([get_metric(each.metric).heading, *([] if is_one else [pair]), *cells])
    header = ["metric", *([] if is_one else ["models"]), "difference", "95 % interval", "p"]
    return Table(header, rows, f"Differences: {pairs[0]}" if is_one else "Differences")


def _scalars(each: Seen) -> dict[str, float]:
    measured = {**each.measured.metrics, **each.measured.geometry}
    return {name: value for name, value in measured.items() if isinstance(value, float)}
