"""Trained classifiers side by side on one data set: `analysis.json`, figures, and a report that holds them all."""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from maxsup_hf.analysis import figures
from maxsup_hf.analysis.attribution import Attribution, attribute
from maxsup_hf.analysis.classes import match_classes
from maxsup_hf.analysis.features import Classifier, Rows, extract, find_classifier, forward
from maxsup_hf.analysis.measure import Measured, choose_triples, measure, plane, project, rows_of
from maxsup_hf.analysis.report import Picture, Section, Table, versions, write_report
from maxsup_hf.analysis.store import has_rows, load_rows, model_fingerprint, save_rows

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cached rows: another number, and those of before are not read
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


@dataclass(frozen=True)
class Subject:
    """A loaded model, with the data as it takes them.

    Attributes:
        name: for figures and tables; distinct.
        model: with `logits` (N, K) in its output.
        dataset: N examples, the same rows in the same order for all models side by side.
        collate: examples -> a batch: inputs of the model, and `labels` (N,) integers that count the classes of the data.
        classes: K names of the model's outputs. Default: `id2label` of its config.
        loss: that it was trained with, by its name in the registry; `None` where it is not known.
        about: what else a reader should know: name -> value.
        data_key: names all that the inputs depend on, see `store.data_fingerprint`; without it nothing is cached.
        pixel_scale: mean and standard deviation (of each channel) that images were normalised with, to show them.
    """

    name: str
    model: Any
    dataset: Any
    collate: Callable[[list[Any]], Mapping[str, Any]]
    classes: Sequence[str] | None = None
    loss: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    data_key: str | None = None
    pixel_scale: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found, and where it is.

    Attributes:
        folder: with `analysis.json`, `report.html` and `figures`.
        subjects: in the order of the report: that of their losses.
        classes: K names, in the order of every array of classes.
        measured: of each subject.
        triples: of classes that were looked at.
        notes: what a reader must not miss.
    """

    folder: Path
    subjects: Sequence[Subject]
    classes: Sequence[str]
    measured: Sequence[Measured]
    triples: Sequence[tuple[int, int, int]]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Seen:
    """A subject after its pass over the data: `rows` gives the batches, classes in the common order."""

    subject: Subject
    measured: Measured
    rows: Callable[[], Iterator[Rows]]
    weight: torch.Tensor
    layer: str


def analyze(
    subjects: Sequence[Subject],
    classes: Sequence[str],
    output_dir: str | Path,
    *,
    triples: Sequence[Sequence[str]] | None = None,
    images: int = 4,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    title: str = "Analysis",
    data: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Analysis:
    """Measure models on the same rows, and write what was found.

    Classes are matched by name: those of the data must be among those of every model, and all models must have the same
    ones, in any order. A class without a row is left out of the geometry, which the report says.

    Args:
        subjects: models, at least one.
        classes: names of the labels 0, 1, … of the data.
        output_dir: written to at the end, when all is measured.
        triples: of class names, for the projection of the features. Default: chosen by what is confused, see
            `choose_triples`.
        images: how many to draw attribution maps of, for models that take `pixel_values`.
        batch_size: rows in a forward pass.
        cache_dir: where features and logits of subjects with a `data_key` are kept. Default: nowhere.
        title: of the report.
        data: paragraphs on the data, for the report.
        notes: what a reader must not miss, beside what is found here.

    Returns:
        What was found.

    Raises:
        ValueError: no subject, names twice, classes that do not match, models that saw different rows, a single class among
            the labels, a model without a classifier layer, or features that are NaN; the message names the model.
        ImportError: captum is not installed, and there are images to look at.
    """
    if not subjects:
        raise ValueError("subjects: expected at least one model, got none")
    names = [subject.name for subject in subjects]
    if len(set(names)) != len(names):
        raise ValueError(f"the names of models side by side must be distinct, got {', '.join(names)}")
    subjects = sorted(subjects, key=lambda subject: _place(subject.loss))
    common = _classes(subjects[0])
    to_common = match_classes(classes, common, "the data", _whose(subjects[0]))
    chosen = None if triples is None else [_triple(triple, common) for triple in triples]
    notes = list(notes)

    with tempfile.TemporaryDirectory(prefix="maxsup_hf-") as scratch:
        kept = Path(scratch)
        seen: list[_Seen] = []
        for i, subject in enumerate(subjects):
            order = match_classes(common, _classes(subject), _whose(subjects[0]), _whose(subject))
            if len(order) != len(_classes(subject)):
                raise ValueError(
                    f"{_whose(subject)} has {len(_classes(subject))} classes, {_whose(subjects[0])} {len(order)}: models "
                    "side by side must have the same classes, or their numbers do not compare"
                )
            folder = kept / str(i) if cache_dir is None or subject.data_key is None else Path(cache_dir) / _key(subject)
            try:
                seen.append(_look(subject, folder, to_common, order, batch_size))
            except ValueError as error:
                raise ValueError(f"{_whose(subject)}: {error}") from error
            if not np.array_equal(seen[-1].measured.labels, seen[0].measured.labels):
                raise ValueError(f"{_whose(subject)} saw other rows than {_whose(subjects[0])}: their labels differ")
        measured = [each.measured for each in seen]
        notes += _notes(measured[0], common, to_common)
        chosen = choose_triples(np.mean([m.confusion for m in measured], axis=0)) if chosen is None else chosen
        maps = _attribute(seen, images)
        output_dir = Path(output_dir)  # from here on nothing is expected to fail, and only now something is written
        drawing = output_dir / "figures"
        sections = [
            _summary(seen, data),
            Section("Calibration", [CALIBRATION], figures=_compared(seen, common, drawing)),
            *_histograms(seen, drawing),
            *_planes(seen, chosen, common, drawing, notes),
            _maps(seen, maps, common, drawing),
        ]
    pictures = [picture for section in sections for picture in section.figures]
    result = Analysis(output_dir, subjects, common, measured, chosen, notes)
    found = {
        "title": title,
        "data": list(data),
        "classes": common,
        "triples": [[common[c] for c in triple] for triple in chosen],
        "models": [_plain(each) for each in seen],
        "notes": notes,
        "figures": [str(picture.path.relative_to(output_dir)) for picture in pictures],
        "versions": versions(),
    }
    text = json.dumps(_json(found), indent=1, ensure_ascii=False, allow_nan=False)
    (output_dir / "analysis.json").write_text(text + "\n", encoding="utf-8")
    write_report(output_dir / "report.html", title, [s for s in sections if s.figures or s.tables], notes=notes)
    return result


# ---- classes ----


def _classes(subject: Subject) -> list[str]:
    if subject.classes is not None:
        return [str(name) for name in subject.classes]
    names: Mapping[int, str] = getattr(getattr(subject.model, "config", None), "id2label", None) or {}
    if not names:
        raise ValueError(f"{_whose(subject)} does not say what its classes are called (no id2label in its config)")
    return [str(names[i]) for i in sorted(names)]


def _triple(names: Sequence[str], common: Sequence[str]) -> tuple[int, int, int]:
    if len(names) != 3:
        raise ValueError(f"triples: expected three class names, got {len(names)}: {', '.join(names)}")
    first, second, third = map(int, match_classes(names, common, "triples", "the models"))
    return first, second, third


def _place(loss: str | None) -> int:
    return list(figures.LOSS_STYLES).index(loss) if loss in figures.LOSS_STYLES else len(figures.LOSS_STYLES)


def _whose(subject: Subject) -> str:
    return f"model {subject.name!r}"


def _notes(measured: Measured, classes: Sequence[str], of_data: NDArray[np.int64]) -> list[str]:
    absent = [classes[c] for c in measured.geometry["classes_without_sample"]]
    if not absent:
        return []
    listed = ", ".join(absent[:10]) + (", …" if len(absent) > 10 else "")
    return [
        f"{len(absent)} of the {len(classes)} classes that the models know have no row in the data: {listed}. They are left "
        "out of the geometry; rows may still be predicted as one of them."
    ]


# ---- measuring ----


def _key(subject: Subject) -> str:
    return f"{FORMAT}-{model_fingerprint(subject.model)}-{subject.data_key}"


def _look(subject: Subject, folder: Path, to_common: NDArray, order: NDArray, batch_size: int) -> _Seen:
    kind = getattr(getattr(subject.model, "config", None), "problem_type", None)
    if kind not in (None, "single_label_classification"):
        raise ValueError(f"its head is for {kind.replace('_', ' ')}; what is measured needs one class a row")
    if not len(subject.dataset):
        raise ValueError("there are no rows to evaluate")
    loader = DataLoader(subject.dataset, batch_size=batch_size, collate_fn=subject.collate)
    if has_rows(folder):
        logger.info("%s: features and logits from %s", subject.name, folder)
        layer = json.loads((folder / "index.json").read_text(encoding="utf-8"))["classifier"]
        classifier = Classifier(layer, subject.model.get_submodule(layer))
    else:
        logger.info("%s: features and logits of %d rows", subject.name, len(subject.dataset))
        first = [subject.dataset[i] for i in range(min(batch_size, len(subject.dataset)))]
        classifier = find_classifier(subject.model, subject.collate(first))
        about = {"model": subject.name, "classifier": classifier.name, "rows": len(subject.dataset)}
        save_rows(folder, extract(subject.model, loader, classifier), about)
    columns, targets = torch.from_numpy(order), torch.from_numpy(to_common)
    if len(classifier.weight) != len(columns):
        raise ValueError(f"it has {len(classifier.weight)} outputs, but {len(columns)} names of classes")

    def rows() -> Iterator[Rows]:
        for features, logits, labels in load_rows(folder):
            yield Rows(features, logits[:, columns], targets[labels])

    weight = classifier.weight[columns]
    return _Seen(subject, measure(rows, weight, missing="skip"), rows, weight, classifier.name)


# ---- drawing ----

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


def _compared(seen: Sequence[_Seen], classes: Sequence[str], folder: Path) -> list[Picture]:
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


def _histograms(seen: Sequence[_Seen], folder: Path) -> list[Section]:
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


def _planes(
    seen: Sequence[_Seen], triples: Sequence[tuple[int, int, int]], classes: Sequence[str], folder: Path, notes: list[str]
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
class _Maps:
    """Images that were looked at: `rows` of the data, a batch of them for each model, and what each model's maps are."""

    rows: Sequence[int]
    batches: Sequence[Mapping[str, Any]]
    found: Sequence[Attribution | None]


def _attribute(seen: Sequence[_Seen], count: int) -> _Maps:
    rows = choose_rows([each.measured for each in seen], count)
    batches = [each.subject.collate([each.subject.dataset[i] for i in rows]) for each in seen if rows]
    if not rows or not all("pixel_values" in batch for batch in batches):
        return _Maps([], [], [])
    found = []
    for each, batch in zip(seen, batches, strict=True):
        found.append(attribute(each.subject.model, batch, forward(each.subject.model, batch).argmax(1)))
    return _Maps(rows, batches, found)


def _maps(seen: Sequence[_Seen], maps: _Maps, classes: Sequence[str], folder: Path) -> Section:
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
    seen: Sequence[_Seen], batches: Sequence[Mapping[str, Any]], k: int
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


# ---- writing ----


def _summary(seen: Sequence[_Seen], data: Sequence[str]) -> Section:
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


def _numbers(each: _Seen) -> dict[str, float]:
    return {name: v for name, v in {**each.measured.metrics, **each.measured.geometry}.items() if isinstance(v, float)}


def _plain(each: _Seen) -> dict[str, Any]:
    m, subject = each.measured, each.subject
    return {
        "name": subject.name,
        "loss": subject.loss,
        "about": dict(subject.about),
        "classifier": each.layer,
        "metrics": m.metrics,
        "geometry": m.geometry,
        "reliability": m.curve._asdict(),
    }


def _json(value: Any) -> Any:
    """As JSON can say it: arrays as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _slug(i: int, each: _Seen) -> str:
    return f"{i + 1}-" + re.sub(r"[^\w.-]+", "-", each.subject.name)
