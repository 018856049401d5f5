"""Measure a model by its features and logits on a data set, choose classes to look at, and project their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from maxsup_hf.metrics import CalibrationMetrics, FeatureGeometry, LogitMetrics, NearestCentre, ReliabilityCurve
from maxsup_hf.trainer.features import FeatureRows


@dataclass(frozen=True)
class Measured:
    """One model on one data set of N rows and K classes.

    Attributes:
        metrics: name -> value: those of `CalibrationMetrics` and `LogitMetrics`.
        geometry: what `FeatureGeometry.compute` returns, and `nc4_agreement`.
        curve: the reliability curve.
        labels, predicted: (N,) classes.
        confidence: (N,) greatest probabilities.
        nll, brier: (N,) scores of the rows, whose means are the metrics.
        top: (N,) greatest logit minus the mean of all logits: what MaxSup penalizes. Shifts of the logits do not change it.
        gap: (N,) greatest logit minus the label's: what MaxSup penalizes in addition to label smoothing, 0 where a row is
            predicted right.
        confusion: (K, K) mean probability of each class over the rows of each label; NaN rows for classes without a sample.
    """

    metrics: dict[str, float]
    geometry: dict[str, Any]
    curve: ReliabilityCurve
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    nll: NDArray[np.float64]
    brier: NDArray[np.float64]
    top: NDArray[np.float64]
    gap: NDArray[np.float64]
    confusion: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.predicted == self.labels


def measure(rows: Callable[[], Iterator[FeatureRows]], weight: Tensor, missing: str = "raise") -> Measured:
    """All metrics and per-row statistics that are reported of a model.

    Features are never in memory all at once; of each row's logits a few statistics are kept.

    Args:
        rows: returns the batches; it is called twice.
        weight: (K, D) weight of the classifier.
        missing: how to treat classes without a sample, as in `FeatureGeometry.compute`.

    Raises:
        ValueError: as in the metrics: no rows, a class without a sample, a single class, NaN.
    """
    classes = len(weight)
    calibration, logit_metrics, geometry = CalibrationMetrics(), LogitMetrics(), FeatureGeometry(classes)
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    kept: list[tuple[Tensor, ...]] = []
    for features, logits, labels in rows():
        calibration.update(logits, labels)
        logit_metrics.update(logits, labels)
        geometry.update(features, labels)
        z = logits.double()
        q = z.softmax(1)
        confusion.index_add_(0, labels, q)
        top, of_label = z.amax(1), z.gather(1, labels[:, None]).squeeze(1)
        q_label = q.gather(1, labels[:, None]).squeeze(1)
        brier = q.square().sum(1) - 2 * q_label + 1
        kept.append((
            labels, z.argmax(1), q.amax(1), z.logsumexp(1) - of_label, brier, top - z.mean(1), top - of_label,
        ))  # fmt: skip
    found = geometry.compute(classifier=weight, missing=missing)
    nearest = NearestCentre(geometry.class_means())
    for features, logits, _ in rows():
        nearest.update(features, logits.argmax(1))
    of_rows = [torch.cat(parts).numpy() for parts in zip(*kept, strict=True)]
    with np.errstate(invalid="ignore"):
        mean_confusion = confusion.numpy() / found["count_per_class"][:, None]
    return Measured(
        metrics=calibration.compute() | logit_metrics.compute(),
        geometry=found | nearest.compute(),
        curve=calibration.curve(),
        labels=of_rows[0],
        predicted=of_rows[1],
        confidence=of_rows[2],
        nll=of_rows[3],
        brier=of_rows[4],
        top=of_rows[5],
        gap=of_rows[6],
        confusion=mean_confusion,
    )


def choose_triples(confusion: ArrayLike) -> list[tuple[int, int, int]]:
    """Triples of classes to look at: the two confused most, with the class nearest to them, and with the farthest one.

    Müller et al. 2019 (arXiv 1906.02629) likewise show two similar classes and a different one. To compare models, give the
    mean of their confusions, so that all are shown by the same triples.

    Args:
        confusion: (K, K), as in `Measured`.

    Returns:
        Two triples; one if only three classes have rows, none if fewer have.
    """
    mean = np.asarray(confusion, dtype=np.float64)
    near = (mean + mean.T) / 2
    np.fill_diagonal(near, np.nan)
    present = np.flatnonzero(~np.isnan(mean).any(1))
    if len(present) < 3:
        return []
    first, second = (int(i) for i in np.unravel_index(np.nanargmax(near), near.shape))
    others = [int(c) for c in present if c not in (first, second)]
    to_pair = [max(near[first, c], near[second, c]) for c in others]
    thirds = dict.fromkeys((others[int(np.argmax(to_pair))], others[int(np.argmin(to_pair))]))
    return [(first, second, third) for third in thirds]


def plane(templates: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The plane through three points: its origin (D,), the mean of the three, and an orthonormal basis (2, D).

    The first direction goes from the first point to the second (Gram-Schmidt).

    Args:
        templates: (3, D), the classifier's rows of three classes.

    Raises:
        ValueError: a wrong shape, or three points on one line, which do not define a plane.
    """
    w = np.asarray(templates, dtype=np.float64)
    if w.ndim != 2 or len(w) != 3 or w.shape[1] < 2:
        raise ValueError(f"templates must be (3, D), D at least 2, got {w.shape}")
    basis, triangle = np.linalg.qr((w[1:] - w[0]).T)
    sizes = np.abs(np.diag(triangle))
    if not sizes.min() > 1e-6 * np.abs(triangle).max():  # less is a rounding error of float32 weights
        raise ValueError("the templates of these three classes lie on one line, so they do not define a plane")
    return w.mean(0), (basis * np.sign(np.diag(triangle))).T


def project(features: ArrayLike, templates: ArrayLike) -> NDArray[np.float64]:
    """Features (N, D) as (N, 2) coordinates in the plane through three templates (3, D); see `plane`.

    Source: Müller, Kornblith, Hinton 2019, arXiv 1906.02629, Sec. 2.
    """
    origin, basis = plane(templates)
    return (np.asarray(features, dtype=np.float64) - origin) @ basis.T


def rows_of(rows: Iterator[FeatureRows], classes: Sequence[int], most: int = 300) -> dict[int, NDArray[np.float32]]:
    """The features of the first `most` rows of each of some classes: class -> (n, D)."""
    found: dict[int, list[Tensor]] = {c: [] for c in classes}
    counts = dict.fromkeys(classes, 0)
    for features, _, labels in rows:
        for c in found:
            chosen = features[labels == c][: most - counts[c]]
            counts[c] += len(chosen)
            found[c].append(chosen)
        if min(counts.values()) >= most:
            break
    return {c: torch.cat(parts).numpy() for c, parts in found.items()}
