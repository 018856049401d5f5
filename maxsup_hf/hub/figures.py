"""The figures of a model card, and their captions."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any

# Name of a figure of `maxsup-hf analyze`, without the number and the model that may follow -> caption.
CAPTIONS = {
    "reliability": (
        "Accuracy against confidence. On the dotted diagonal, the model is right as often as its confidence says; above it, "
        "the model is too cautious, and below it, overconfident."
    ),
    "confidence": (
        "Confidence of right and of wrong predictions, as shares of each. Vertical lines mark the means. The less the two "
        "overlap, the better the confidence reveals errors."
    ),
    "top": "The top logit minus the mean logit, which MaxSup penalizes, for right and for wrong predictions.",
    "within_class": (
        "How much the features of each class differ from each other: 0 if they have collapsed into one direction."
    ),
    "confusion": (
        "Confusion matrix: rows with the label on the left that were predicted as the class below, shaded by their share of "
        "the label's rows."
    ),
    "plane": (
        "Features of three classes, projected on the plane through the classifier's weights for them (marks with a white "
        "edge). Collapsed features lie in three points."
    ),
    "map": "Where the model looked: the brighter a place, the more it contributed to the predicted class.",
}


def figures(folder: Path) -> list[dict[str, Any]]:
    """The figures in `folder/figures`, in groups of one kind: `files`, each with `path` and `title`, and their `caption`,
    which is empty for figures that `maxsup-hf analyze` does not draw."""
    paths = sorted(folder.glob("figures/*.png"), key=lambda path: (_rank(_kind(path)), path.stem))
    found = []
    for kind, group in groupby(paths, _kind):
        files = [{"path": path.relative_to(folder).as_posix(), "title": path.stem.replace("_", " ")} for path in group]
        found.append({"files": files, "caption": CAPTIONS.get(kind, "")})
    return found


def _kind(path: Path) -> str:
    return re.sub(r"-\d+.*", "", path.stem)


def _rank(kind: str) -> int:
    """In the order of the captions; other figures last."""
    kinds = list(CAPTIONS)
    return kinds.index(kind) if kind in kinds else len(kinds)
