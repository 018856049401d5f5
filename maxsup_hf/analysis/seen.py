"""A model to analyze, and its single pass over the data, from which its part of the report is made."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from maxsup_hf.analysis.measure import Measured, measure
from maxsup_hf.analysis.photos import Photos
from maxsup_hf.analysis.store import has_rows, load_rows, model_fingerprint, save_rows
from maxsup_hf.trainer.features import Classifier, FeatureRows, extract, find_classifier

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cached rows; a new number makes old ones unused


@dataclass(frozen=True)
class Subject:
    """A loaded model, with the data as it takes them.

    Attributes:
        name: for figures and tables; distinct.
        model: with `logits` (N, K) in its output.
        dataset: N examples, the same rows in the same order for all models.
        collate: examples -> a batch: inputs of the model, and `labels` (N,), indices of the data's classes.
        classes: K names of the model's outputs. Default: `id2label` of its config.
        loss: registered name of the loss that the model was trained with; `None` if it is not known.
        about: what else a reader should know: name -> value.
        data_key: identifies everything that the inputs depend on, see `store.data_fingerprint`. Default: nothing is cached.
        pixel_scale: mean and standard deviation (of each channel) that images were normalized with, to show them.
        photos: the images as the data have them, to show them instead of what the model is given.
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
    photos: Photos | None = None


@dataclass(frozen=True)
class Seen:
    """A subject after its pass over the data: `rows` returns the batches, with classes in the common order."""

    subject: Subject
    measured: Measured
    rows: Callable[[], Iterator[FeatureRows]]
    weight: torch.Tensor
    layer: str


def whose(subject: Subject) -> str:
    return f"model {subject.name!r}"


def names_of(subject: Subject) -> list[str]:
    if subject.classes is not None:
        return [str(name) for name in subject.classes]
    names: Mapping[int, str] = getattr(getattr(subject.model, "config", None), "id2label", None) or {}
    if not names:
        raise ValueError(f"{whose(subject)} does not name its classes; set id2label in its config")
    return [str(names[i]) for i in sorted(names)]


def cache_name(subject: Subject) -> str:
    return f"{FORMAT}-{model_fingerprint(subject.model)}-{subject.data_key}"


def look(subject: Subject, folder: Path, to_common: NDArray, order: NDArray, batch_size: int) -> Seen:
    kind = getattr(getattr(subject.model, "config", None), "problem_type", None)
    if kind not in (None, "single_label_classification"):
        raise ValueError(f"its head is for {kind.replace('_', ' ')}; an analysis needs a classifier with one class a row")
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
        raise ValueError(f"it has {len(classifier.weight)} outputs, but {len(columns)} class names")

    def rows() -> Iterator[FeatureRows]:
        for features, logits, labels in load_rows(folder):
            yield FeatureRows(features, logits[:, columns], targets[labels])

    weight = classifier.weight[columns]
    return Seen(subject, measure(rows, weight, missing="skip"), rows, weight, classifier.name)
