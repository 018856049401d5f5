"""The sections of a report on models side by side, and their figures."""

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

from maxsup_hf.analysis import figures
from maxsup_hf.analysis.attribution import Attribution, attribute
from maxsup_hf.analysis.measure import Measured, plane, project, rows_of
from maxsup_hf.analysis.report import Picture, Section
from maxsup_hf.analysis.seen import Seen
from maxsup_hf.output.tables import Table
from maxsup_hf.trainer.features import forward

# What is said of each metric, and which end of it is better, where one is whatever else the model does.
DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "accuracy": ("accuracy", "greater"),
    "nll": ("negative log-likelihood", "less"),
    "brier": ("Brier score", "less"),
    "ece": ("expected calibration error (15 bins)", "less"),
    "adaptive_ece": ("… of bins with equally many rows", "less"),
    "classwise_ece": ("… of each class's own probability", "less"),
    "mce": ("maximum calibration error", "less"),
    "confidence_when_right": ("confidence when right", ""),
    "confidence_when_wrong": ("confidence when wrong", ""),
    "error_auroc": ("AUROC of confidence, right against wrong", "greater"),
    "margin": ("logit margin of the label", ""),
    "top_margin": ("logit margin of the top", ""),
    "near_zero_share": ("share of logits near zero", ""),
    "ls_regularization": ("regularisation term of label smoothing", ""),
    "ls_error_amplification": ("error-amplification term of label smoothing", ""),
    "d_within": ("within-class variation", ""),
    "d_total": ("total variation", ""),
    "r2": ("separability R²", ""),
    "nc1": ("NC1: within against between classes", ""),
    "nc2_equinorm": ("NC2: class means of unequal length", ""),
    "nc2_equiangular": ("NC2: class means at unequal angles", ""),
    "nc3_self_duality": ("NC3: classifier away from class means", ""),
    "nc4_agreement": ("NC4: prediction is the nearest class mean", ""),
    "effective_rank": ("effective rank of the features", ""),
    "effective_rank_centered": ("… minus their mean", ""),
}
CALIBRATION = (
    "Accuracy against confidence: on the dotted diagonal a model is right as often as it says. Within-class variation: how "
    "far the features of a class spread, 1 − ‖mean direction‖²; 0 where all rows of the class point the same way."
)
SHARES = "Rows predicted right and rows predicted wrong are shares of their own number; lines stand at their means."
PLANES = (
    "Features in the plane through the classifier's rows of three classes (Müller et al. 2019), which the marks with a "
    "white edge stand for. Features that have collapsed lie in three points."
)
MAPS = (
    "What spoke for the class that was predicted, the brighter the more. First images that some model got wrong, the most "
    "confident first, then images that all got right."
)


def compared(seen: Sequence[Seen], classes: Sequence[str], folder: Path) -> list[Picture]:
    names, losses = [each.subject.name for each in seen], [each.subject.loss for each in seen]
    curves = figures.reliability([each.measured.curve for each in seen], names, losses)
    within = [each.measured.geometry["d_within_per_class"] for each in seen]
    return [
        Picture(figures.save(curves, folder, "reliability"), "Reliability diagram"),
        Picture(
            figures.save(figures.within_class(within, names, losses, classes), folder, "within_class"),
            "Within-class variation of each class",
        ),
    ]


def histograms(seen: Sequence[Seen], folder: Path) -> list[Section]:
    high = max(float(each.measured.top.max()) for each in seen)
    sections = []
    for kind, title, text, label, limits in (
        ("top", "Logits", "The top logit minus the mean of all, which MaxSup holds down.", "top logit − mean logit", high),
        ("confidence", "Confidence", "The greatest probability.", "confidence", 1.0),
    ):
        pictures = []
        for i, each in enumerate(seen):
            values = getattr(each.measured, kind)
            drawn = figures.outcome_histogram(values, each.measured.right, label, each.subject.name, (0.0, limits))
            path = figures.save(drawn, folder, f"{kind}-{_slug(i, each)}")
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
            path = figures.save(drawn, folder, f"plane-{t + 1}-{_slug(i, each)}")
            pictures.append(Picture(path, f"{each.subject.name}: features of {listed}"))
        sections.append(Section(f"Features of {listed}", [PLANES], figures=pictures))
    return sections


@dataclass(frozen=True)
class Maps:
    """Images that were looked at: `rows` of the data, a batch of them for each model, and what each model's maps are."""

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
    text = [
        f"{each.subject.name}: no layer has a map in the shape of the image."
        if found is None
        else f"{each.subject.name}: {found.method} of {found.layer}, {found.maps.shape[1]} × {found.maps.shape[2]} places."
        for each, found in zip(seen, maps.found, strict=False)
    ]
    pictures = []
    for k, row in enumerate(maps.rows):
        label = classes[seen[0].measured.labels[row]]
        for image, group in _by_image(seen, maps.batches, k):
            said = []
            for i in group:
                m = seen[i].measured
                said.append(f"{seen[i].subject.name}:\n{classes[m.predicted[row]]}, {100 * m.confidence[row]:.0f} %")
            heats = [None if (found := maps.found[i]) is None else found.maps[k].numpy() for i in group]
            name = f"map-{k + 1}" + ("" if len(group) == len(seen) else f"-{_slug(group[0], seen[group[0]])}")
            drawn = figures.heat_panels(image, heats, [f"{label} (row {row})", *said])
            pictures.append(Picture(figures.save(drawn, folder, name), f"Row {row}, label {label}: {'; '.join(said)}"))
    return Section("Where the models looked", [MAPS, *text], figures=pictures)


def _by_image(
    seen: Sequence[Seen], batches: Sequence[Mapping[str, Any]], k: int
) -> Iterator[tuple[NDArray[np.float64], list[int]]]:
    """Image k as (H, W, 3) in [0, 1], and the models that it looks the same to: others may crop it, or take another size."""
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
    if scale is None:  # it is only known that it was some affine map: stretched over the whole range
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-12)
    else:
        image = np.clip(image * np.asarray(scale[1]) + np.asarray(scale[0]), 0, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def choose_rows(measured: Sequence[Measured], count: int) -> list[int]:
    """Rows to show: half of them wrong for some model, the most confident first, then right ones of distinct classes.

    Args:
        measured: of each model, on the same rows.
        count: how many. Where too few are right, more are wrong; fewer where there are not so many rows or classes.
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
    rows: list[list[str]] = []
    bold: list[tuple[int, int]] = []
    for name, (description, better) in DESCRIPTIONS.items():
        values = [_numbers(each).get(name, math.nan) for each in seen]
        best = {"greater": np.nanmax, "less": np.nanmin}.get(better) if np.isfinite(values).any() else None
        if best is not None and len(seen) > 1:
            bold += [(len(rows), i + 1) for i, value in enumerate(values) if value == best(values)]
        rows.append([description, *("–" if math.isnan(value) else f"{value:.4g}" for value in values)])
    return Section(
        "Models", data, [Table(header, models), Table(header, rows, "Bold: the best, where less or more is better.", bold)]
    )


def _numbers(each: Seen) -> dict[str, float]:
    return {name: v for name, v in {**each.measured.metrics, **each.measured.geometry}.items() if isinstance(v, float)}


def _slug(i: int, each: Seen) -> str:
    return f"{i + 1}-" + re.sub(r"[^\w.-]+", "-", each.subject.name)
