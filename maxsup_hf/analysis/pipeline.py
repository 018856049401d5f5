"""Analyze trained classifiers on the same data set: `analysis.json`, figures, and a report that contains them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maxsup_hf.analysis import sections
from maxsup_hf.analysis.class_section import class_section, scores_of_classes
from maxsup_hf.analysis.classes import match_classes
from maxsup_hf.analysis.maps import attribute_images, maps_section
from maxsup_hf.analysis.measure import Measured, choose_triples
from maxsup_hf.analysis.paired import Difference, differences
from maxsup_hf.analysis.report import PACKAGES, Section, write_report
from maxsup_hf.analysis.seen import Seen, Subject, cache_name, look, names_of, whose
from maxsup_hf.analysis.style import LOSS_STYLES
from maxsup_hf.analysis.verdict import WrongRows, verdict, wrong_rows
from maxsup_hf.metrics import ClassScores
from maxsup_hf.metrics.class_scores import write_per_class
from maxsup_hf.output.files import write_json
from maxsup_hf.output.versions import versions


@dataclass(frozen=True)
class Analysis:
    """The result of `analyze`.

    Attributes:
        folder: with `analysis.json`, `per_class.csv`, `report.html` and `figures`.
        subjects: in the order of the report, which is that of their losses.
        classes: K names, in the order of all (K,) arrays.
        measured: of each subject.
        triples: classes whose features were projected.
        notes: what a reader must not miss.
    """

    folder: Path
    subjects: Sequence[Subject]
    classes: Sequence[str]
    measured: Sequence[Measured]
    triples: Sequence[tuple[int, int, int]]
    notes: Sequence[str]


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
    split: str | None = None,
) -> Analysis:
    """Measure models on the same rows, and write the results.

    Classes are matched by name: those of the data must be among those of every model, and all models must have the same
    classes, in any order. A class without a row is left out of the geometry, and the report says so.

    Args:
        subjects: models, at least one.
        classes: names of the labels 0, 1, … of the data.
        output_dir: written to at the end, after all measurements.
        triples: of class names, whose features are projected. Default: chosen by the confusions, see `choose_triples`.
        images: number of images with attribution maps, for models that take `pixel_values`.
        batch_size: rows in a forward pass.
        cache_dir: where features and logits of subjects with a `data_key` are cached. Default: nowhere.
        title: of the report.
        data: paragraphs on the data, for the report.
        notes: what a reader must not miss, in addition to what is found here.
        split: name of the split that the rows are of, if it is known.

    Raises:
        ValueError: no subjects, duplicate names, classes that do not match, models that saw different rows, a single class
            among the labels, a model without a classifier layer, or features that are NaN; the message names the model.
        ImportError: captum is not installed, and there are images.
    """
    if not subjects:
        raise ValueError("subjects: expected at least one model, got none")
    names = [subject.name for subject in subjects]
    if len(set(names)) != len(names):
        raise ValueError(f"the names of the models must be distinct, got {', '.join(names)}")
    subjects = sorted(subjects, key=lambda subject: _loss_index(subject.loss))
    common = names_of(subjects[0])
    to_common = match_classes(classes, common, "the data", whose(subjects[0]))
    given_triples = None if triples is None else [_triple(triple, common) for triple in triples]
    notes = list(notes)

    with tempfile.TemporaryDirectory(prefix="maxsup_hf-") as scratch:
        seen: list[Seen] = []
        for i, subject in enumerate(subjects):
            order = match_classes(common, names_of(subject), whose(subjects[0]), whose(subject))
            if len(order) != len(names_of(subject)):
                raise ValueError(
                    f"{whose(subject)} has {len(names_of(subject))} classes, {whose(subjects[0])} {len(order)}; only models "
                    "with the same classes can be compared"
                )
            folder = Path(scratch) / str(i)
            if cache_dir is not None and subject.data_key is not None:
                folder = Path(cache_dir) / cache_name(subject)
            try:
                seen.append(look(subject, folder, to_common, order, batch_size))
            except ValueError as error:
                raise ValueError(f"{whose(subject)}: {error}") from error
            if not np.array_equal(seen[-1].measured.labels, seen[0].measured.labels):
                raise ValueError(f"{whose(subject)} saw different rows than {whose(subjects[0])}: their labels differ")
        measured = [each.measured for each in seen]
        notes += _absent_classes_note(measured[0], common)
        chosen = given_triples
        if chosen is None:
            chosen = choose_triples(np.mean([m.confusion for m in measured], axis=0))
        wrong = [wrong_rows(m) for m in measured]
        paired = differences(measured)
        scores = scores_of_classes(seen, common)
        maps = attribute_images(seen, images)
        output_dir = Path(output_dir)  # nothing is written before this point, and nothing should fail after it
        drawing = output_dir / "figures"
        content = [
            sections.summary(seen, data),
            sections.metrics_section(seen, paired),
            class_section(seen, scores, common, drawing),
            Section("Calibration and features", [sections.CALIBRATION], figures=sections.compared(seen, common, drawing)),
            *sections.histograms(seen, drawing),
            *sections.planes(seen, chosen, common, drawing, notes),
            maps_section(seen, maps, common, drawing),
        ]
    pictures = [picture for section in content for picture in section.figures]
    result = Analysis(output_dir, subjects, common, measured, chosen, notes)
    found = {
        "title": title,
        "data": list(data),
        "classes": common,
        "triples": [[common[c] for c in triple] for triple in chosen],
        "models": [_model_entry(*each) for each in zip(seen, wrong, scores, strict=True)],
        "differences": _difference_entries(paired, seen),
        "notes": notes,
        "figures": [str(picture.path.relative_to(output_dir)) for picture in pictures],
        "versions": versions(*PACKAGES),
    }
    write_json(output_dir / "analysis.json", found)
    names = [each.subject.name for each in seen]
    write_per_class(output_dir / "per_class.csv", "model", zip(names, scores, strict=True))
    summary = verdict(wrong, names, split)
    shown = [section for section in content if section.figures or section.tables]
    write_report(output_dir / "report.html", title, shown, summary=summary, notes=notes)
    return result


def _triple(names: Sequence[str], common: Sequence[str]) -> tuple[int, int, int]:
    if len(names) != 3:
        raise ValueError(f"triples: expected three class names each, got {len(names)}: {', '.join(names)}")
    first, second, third = map(int, match_classes(names, common, "triples", "the models"))
    return first, second, third


def _loss_index(loss: str | None) -> int:
    return list(LOSS_STYLES).index(loss) if loss in LOSS_STYLES else len(LOSS_STYLES)


def _absent_classes_note(measured: Measured, classes: Sequence[str]) -> list[str]:
    absent = [classes[c] for c in measured.geometry["classes_without_sample"]]
    if not absent:
        return []
    listed = ", ".join(absent[:10]) + (", …" if len(absent) > 10 else "")
    return [
        f"{len(absent)} of the {len(classes)} classes of the models have no row in the data: {listed}. They are left out of "
        "the geometry, but rows may still be predicted as one of them."
    ]


def _difference_entries(found: Sequence[Difference], seen: Sequence[Seen]) -> list[dict[str, Any]]:
    names = [each.subject.name for each in seen]
    return [{**each._asdict(), "first": names[each.first], "second": names[each.second]} for each in found]


def _model_entry(each: Seen, wrong: WrongRows, scores: Sequence[ClassScores]) -> dict[str, Any]:
    m, subject = each.measured, each.subject
    return {
        "name": subject.name,
        "loss": subject.loss,
        "about": dict(subject.about),
        "classifier": each.layer,
        "metrics": m.metrics,
        "geometry": m.geometry,
        "reliability": m.curve._asdict(),
        "wrong_rows": wrong._asdict(),
        "per_class": [of_class._asdict() for of_class in scores],
    }
