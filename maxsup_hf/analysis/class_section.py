"""The section of the report on single classes: confusion matrices, and precision, recall and F1 of each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maxsup_hf.analysis import model_figures, style
from maxsup_hf.analysis.report import Picture, Section, file_name
from maxsup_hf.analysis.seen import Seen
from maxsup_hf.metrics import ClassScores, confusion_matrix, per_class
from maxsup_hf.output.tables import Table

SHOWN = 20  # classes of a confusion matrix
LISTED = 30  # classes of a table
ENDS = 10  # of more classes: as many with the lowest F1, and with the highest

TEXT = (
    "Confusion matrix: rows with the label on the left that were predicted as the class below, shaded by their share of the "
    "label's rows."
)


def scores_of_classes(seen: Sequence[Seen], classes: Sequence[str]) -> list[list[ClassScores]]:
    """The scores of the classes, in their order, for each model."""
    return [per_class(each.measured.labels, each.measured.predicted, classes) for each in seen]


def class_section(
    seen: Sequence[Seen], scores: Sequence[Sequence[ClassScores]], classes: Sequence[str], folder: Path
) -> Section:
    counts = [
        confusion_matrix(each.measured.predicted, each.measured.labels, len(classes), ignore_index=-100) for each in seen
    ]
    chosen = most_confused(counts)
    names = [classes[k] for k in chosen]
    text = [TEXT]
    if len(chosen) < len(classes):
        names.append(f"{len(classes) - len(chosen)} others")
        text = [f"{TEXT} It shows the {len(chosen)} of {len(classes)} classes that are confused most."]
    pictures = []
    for i, (each, table) in enumerate(zip(seen, counts, strict=True)):
        drawn = model_figures.confusion(grouped(table, chosen), names, each.subject.name)
        path = style.save(drawn, folder, f"confusion-{file_name(i, each.subject.name)}")
        wide = len(names) > model_figures.FIT_A_PHONE
        pictures.append(Picture(path, f"{each.subject.name}: confusion matrix", wide=wide))

    f1 = np.array([[of_class.f1 for of_class in of_model] for of_model in scores])
    order = [k for k in np.argsort(f1.mean(0), kind="stable") if scores[0][k].support]
    text.append(_worst_and_best(order, f1, classes))
    rows = [_row(k, scores, counts, classes) for k in order]
    if len(seen) == 1:
        header = ["class", "rows", "F1", "precision", "recall", "most often taken for"]
    else:
        header = ["class", "rows", *(f"F1, {each.subject.name}" for each in seen)]
    if len(rows) <= LISTED:
        return Section("Classes", text, [Table(header, rows, "Lowest F1 first")], pictures)
    ends = [
        Table(header, rows[:ENDS], f"The {ENDS} classes with the lowest F1"),
        Table(header, rows[: -ENDS - 1 : -1], f"The {ENDS} classes with the highest F1"),
    ]
    return Section("Classes", text, ends, pictures, folded=[Table(header, rows, f"All {len(rows)} classes")])


def most_confused(counts: Sequence[NDArray[np.int64]]) -> list[int]:
    """The classes of a confusion matrix that is still readable: all, or those of the most wrong predictions.

    Args:
        counts: (K, K) of each model; row: label, column: prediction.
    """
    total = np.sum(counts, axis=0)
    if len(total) <= SHOWN:
        return list(range(len(total)))
    wrong = total - np.diag(total.diagonal())
    involved = wrong.sum(0) + wrong.sum(1)
    return sorted(int(k) for k in np.argsort(-involved, kind="stable")[:SHOWN])


def grouped(counts: NDArray[np.int64], chosen: Sequence[int]) -> NDArray[np.int64]:
    """A confusion matrix of some classes, with all others, if there are any, as one more class at the end."""
    group = np.full(len(counts), len(chosen))
    group[list(chosen)] = np.arange(len(chosen))
    size = int(group.max()) + 1
    found = np.zeros((size, size), dtype=np.int64)
    np.add.at(found, (group[:, None], group[None, :]), counts)
    return found


def _row(
    k: int, scores: Sequence[Sequence[ClassScores]], counts: Sequence[NDArray[np.int64]], classes: Sequence[str]
) -> list[str]:
    first = scores[0][k]
    if len(scores) > 1:
        return [first.name, f"{first.support:,}", *(f"{of_model[k].f1:.3f}" for of_model in scores)]
    others = counts[0][k].copy()
    others[k] = 0
    taken_for = f"{classes[int(others.argmax())]} ({others.max():,})" if others.any() else "–"
    return [first.name, f"{first.support:,}", *(f"{v:.3f}" for v in (first.f1, first.precision, first.recall)), taken_for]


def _worst_and_best(order: Sequence[int], f1: NDArray[np.float64], classes: Sequence[str]) -> str:
    def listed(some: Sequence[int]) -> str:
        return ", ".join(f"{classes[k]} ({f1[:, k].mean():.2f})" for k in some)

    count = min(3, len(order) // 2)
    of = "F1" if len(f1) == 1 else "F1, mean over the models"
    return f"Lowest {of}: {listed(order[:count])}. Highest: {listed(order[: -count - 1 : -1])}."
