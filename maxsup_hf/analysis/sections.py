"""The sections of the report of `maxsup-hf analyze`, with their figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maxsup_hf.analysis import figures, style
from maxsup_hf.analysis.attribution import Attribution, attribute
from maxsup_hf.analysis.measure import Measured, plane, project, rows_of
from maxsup_hf.analysis.report import Picture, Section
from maxsup_hf.analysis.seen import Seen
from maxsup_hf.metrics import Metric, get_metric
from maxsup_hf.output.tables import Table
from maxsup_hf.trainer.features import forward

CALIBRATION = (
    "Accuracy against confidence: on the dotted diagonal a model is right as often as its confidence says. Within-class "
    "variation: how far the features of a class spread, 1 − ‖mean direction‖²; 0 if all of them point the same way."
)
SHARES = "Each histogram shows shares of its own rows, right or wrong; vertical lines mark the means."
PLANES = (
    "Features projected on the plane through the classifier's rows of three classes (Müller et al. 2019). Marks with a "
    "white edge are these rows. Collapsed features lie in three points."
)
MAPS = (
    "The brighter a place, the more it contributed to the predicted class. Images that a model got wrong come first, the "
    "most confident one at the top; then images that all models got right."
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
    highest = max(float(each.measured.top.max()) for each in seen)
    sections = []
    for kind, title, text, label, limit in (
        ("top", "Logits", "The top logit minus the mean logit, which MaxSup penalizes.", "top logit − mean logit", highest),
        ("confidence", "Confidence", "The greatest probability.", "confidence", 1.0),
    ):
        pictures = []
        for i, each in enumerate(seen):
            values = getattr(each.measured, kind)
            drawn = figures.outcome_histogram(values, each.measured.right, label, each.subject.name, (0.0, limit))
            path = style.save(drawn, folder, f"{kind}-{_file_name(i, each)}")
            pictures.append(Picture(path, f"{each.subject.name}: {label}, right against wrong"))
        sections.append(Section(f"{title}, right against wrong", [f"{text} {SHARES}"], figures=pictures))
    return sections


def planes(
    seen: Sequence[Seen], triples: Sequence[tuple[int, int, int]], classes: Sequence[str], folder: Path, notes: list[str]
) -> list[Section]:
    sections = []
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
            drawn = figures.class_plane(
                points, which, [classes[c] for c in triple], project(templates, templates), each.subject.name
            )
            path = style.save(drawn, folder, f"plane-{t + 1}-{_file_name(i, each)}")
            pictures.append(Picture(path, f"{each.subject.name}: features of {listed}"))
        sections.append(Section(f"Features of {listed}", [PLANES], figures=pictures))
    return sections


@dataclass(frozen=True)
class Maps:
    """Attributed images: `rows` of the data, a batch of them for each model, and each model's maps."""

    rows: Sequence[int]
    batches: Sequence[Mapping[str, Any]]
    found: Sequence[Attribution | None]


def attribute_images(seen: Sequence[Seen], count: int) -> Maps:
    rows = choose_rows([each.measured for each in seen], count)
    batches = [each.subject.collate([each.subject.dataset[i] for i in rows]) for each in seen if rows]
    if not rows or not all("pixel_values" in batch for batch in batches):
        return Maps([], [], [])
    found = []
    for each, batch in zip(seen, batches, strict=True):
        found.append(attribute(each.subject.model, batch, forward(each.subject.model, batch).argmax(1)))
    return Maps(rows, batches, found)


def maps_section(seen: Sequence[Seen], maps: Maps, classes: Sequence[str], folder: Path) -> Section:
    text = [_describe_map(each, found) for each, found in zip(seen, maps.found, strict=False)]
    pictures = []
    for k, row in enumerate(maps.rows):
        label = classes[seen[0].measured.labels[row]]
        for image, group in _by_image(seen, maps.batches, k):
            predictions, heats = [], []
            for i in group:
                m, found = seen[i].measured, maps.found[i]
                confidence = f"{100 * m.confidence[row]:.0f} %"
                predictions.append(f"{seen[i].subject.name}:\n{classes[m.predicted[row]]}, {confidence}")
                heats.append(None if found is None else found.maps[k].numpy())
            name = f"map-{k + 1}"
            if len(group) < len(seen):
                name += f"-{_file_name(group[0], seen[group[0]])}"
            drawn = figures.heat_panels(image, heats, [f"{label} (row {row})", *predictions])
            pictures.append(Picture(style.save(drawn, folder, name), f"Row {row}, label {label}: {'; '.join(predictions)}"))
    return Section("Where the models looked", [MAPS, *text], figures=pictures)


def _describe_map(each: Seen, found: Attribution | None) -> str:
    if found is None:
        return f"{each.subject.name}: no layer has a map laid out like the image."
    height, width = found.maps.shape[1:]
    return f"{each.subject.name}: {found.method} of {found.layer}, {height} × {width} places."


def _by_image(
    seen: Sequence[Seen], batches: Sequence[Mapping[str, Any]], k: int
) -> Iterator[tuple[NDArray[np.float64], list[int]]]:
    """Image k as (H, W, 3) in [0, 1] and the models that see it so: some may crop it, or take a different size."""
    groups: list[tuple[NDArray[np.float64], list[int]]] = []
    for i, (each, batch) in enumerate(zip(seen, batches, strict=True)):
        image = _image(batch["pixel_values"][k], each.subject.pixel_scale)
        for other, group in groups:
            if other.shape == image.shape and np.allclose(other, image, atol=1e-3):
                group.append(i)
                break
        else:
            groups.append((image, [i]))
    yield from groups


def _image(pixels: torch.Tensor, scale: tuple[Sequence[float], Sequence[float]] | None) -> NDArray[np.float64]:
    image = pixels.detach().double().cpu().movedim(0, -1).numpy()
    if scale is None:  # the normalization is not known: stretch the image over the full range
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-12)
    else:
        image = np.clip(image * np.asarray(scale[1]) + np.asarray(scale[0]), 0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def choose_rows(measured: Sequence[Measured], count: int) -> list[int]:
    """Rows to show: half of them wrong for some model, the most confident first, then right ones of distinct classes.

    Args:
        measured: of each model, on the same rows.
        count: number of rows. More are wrong if too few are right; there are fewer if rows or classes run out.
    """
    right: NDArray[np.bool_] = np.logical_and.reduce([m.right for m in measured])
    order = np.argsort(-np.mean([m.confidence for m in measured], axis=0), kind="stable")
    wrong = [int(i) for i in order[~right[order]]]
    first_of_class: dict[int, int] = {}
    for i in order[right[order]]:
        first_of_class.setdefault(int(measured[0].labels[i]), int(i))
    shown_right = list(first_of_class.values())[: count - min(len(wrong), count // 2)]
    return wrong[: count - len(shown_right)] + shown_right


def summary(seen: Sequence[Seen], data: Sequence[str]) -> Section:
    header = ["", *(each.subject.name for each in seen)]
    facts = dict.fromkeys(key for each in seen for key in each.subject.about)
    models = [
        ["loss", *(each.subject.loss or "not known" for each in seen)],
        *([key, *(str(each.subject.about.get(key, "")) for each in seen)] for key in facts),
        ["classifier layer", *(each.layer for each in seen)],
        ["features", *(f"{each.weight.shape[1]:,}" for each in seen)],
    ]
    return Section("Models", data, [Table(header, models), _metrics_table(header, seen)])


def _metrics_table(header: Sequence[str], seen: Sequence[Seen]) -> Table:
    """A row for each metric that a model has."""
    by_model = [_scalars(each) for each in seen]
    names = dict.fromkeys(name for scalars in by_model for name in scalars)
    rows: list[list[str]] = []
    bold: list[tuple[int, int]] = []
    for name in names:
        metric = get_metric(name)
        values = [scalars.get(name, math.nan) for scalars in by_model]
        if len(seen) > 1:
            bold += [(len(rows), 1 + i) for i in _best(metric, values)]
        rows.append([metric.full_name, *("–" if math.isnan(value) else f"{value:.4g}" for value in values)])
    return Table(header, rows, "Bold: the best value of metrics that have a better end.", bold)


def _best(metric: Metric, values: Sequence[float]) -> list[int]:
    """Indices of the best values; empty for a metric without a better end."""
    if metric.higher_is_better is None or not np.isfinite(values).any():
        return []
    best = np.nanmax(values) if metric.higher_is_better else np.nanmin(values)
    return [i for i, value in enumerate(values) if value == best]


def _scalars(each: Seen) -> dict[str, float]:
    measured = {**each.measured.metrics, **each.measured.geometry}
    return {name: value for name, value in measured.items() if isinstance(value, float)}


def _file_name(i: int, each: Seen) -> str:
    return f"{i + 1}-" + re.sub(r"[^\w.-]+", "-", each.subject.name)
