"""The geometry of penultimate features: how tight classes are, how far apart, and how close to neural collapse.

Everything is computed from running class means and one scatter matrix in float64, so the features themselves, which may be
millions, are never in memory: with K classes and D dimensions the state is 2·K·D + D² values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxsup_hf.metrics._accumulator import Accumulator
from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import (
    as_array,
    check_class_indices,
    counted_rows,
    float64_chunks,
    float64_device,
    require_rows,
)
from maxsup_hf.metrics.neural_collapse import NearestCentre, neural_collapse
from maxsup_hf.metrics.spectrum import effective_rank, singular_values

FLAT = 1e-12  # a total variation below this is a rounding error: all features point the same way
KORNBLITH = "Kornblith et al. 2021, arXiv 2010.16402"

register_metrics(
    Metric(
        "d_within", "within-class variation", rank=50, aliases=("feature_within",),
        formula="1 − mean_k ‖μ_k‖², μ_k the mean direction x/‖x‖ of class k",
        paper=KORNBLITH,
        meaning="how much the features of a class differ from each other: 0 if they have collapsed into one direction",
    ),
    Metric(
        "d_total", "total variation", aliases=("feature_total",),
        formula="1 − ‖mean_k μ_k‖², μ_k the mean direction x/‖x‖ of class k",
        paper=KORNBLITH,
    ),
    Metric(
        "r2", "R²", "separability R²", rank=51, aliases=("feature_r2",),
        formula="1 − within-class variation / total variation",
        paper=KORNBLITH,
        meaning="how well the classes are separated in the features: 1 if each class is one direction",
    ),
)  # fmt: skip


def feature_metric(name: str) -> str:
    """The key under which results hold a measure of `FeatureGeometry`: `d_within` is `feature_within`."""
    return f"feature_{name.removeprefix('d_')}"


class FeatureGeometry(Accumulator):
    """Class separability and neural collapse of features that come in batches::

        geometry = FeatureGeometry(num_classes=1000)
        for features, labels in batches:
            geometry.update(features, labels)
        geometry.compute(classifier=model.classifier.weight)

    Order and size of the batches make no difference beyond rounding. Arithmetic is float64, on the features' device.

    Args:
        num_classes: K, at least 2.
        scatter: also keep the scatter matrix, which neural collapse and effective rank need: D² values, and 2·N·D²
            operations. Without it only the separability is computed.
        ignore_index: label of ignored rows. Default −100.
        next_token: as in `CalibrationMetrics`.

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(self, num_classes: int, *, scatter: bool = True, ignore_index: int = -100, next_token: bool | None = None):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}: geometry compares classes with each other")
        self.num_classes, self.scatter = num_classes, scatter
        super().__init__(ignore_index, next_token)

    def reset(self) -> None:
        self._counts: Tensor | None = None
        self._zeros = 0

    def update(self, values: Any, labels: Any) -> None:
        """Take in a batch of any size.

        Args:
            values: features (…, D), tensor or array, of any floating type; a NumPy memmap is read piece by piece.
            labels: (…) integers in [0, K), or `ignore_index`.

        Raises:
            ValueError: shapes that do not fit, a different D than before, a label out of range, NaN or infinite features.
        """
        features, labels = counted_rows(values, labels, self.ignore_index)
        if not len(labels):
            return
        check_class_indices(labels, self.num_classes)
        if self._counts is None:
            self._start(features)
        if features.shape[1] != self._means.shape[1]:
            raise ValueError(f"features had {self._means.shape[1]} dimensions so far, now {features.shape[1]}")
        for x, y in float64_chunks(features, labels, self._means.device):
            self._add(x, y)

    def _start(self, features: Any) -> None:
        dim = features.shape[1]
        self._counts = torch.zeros(self.num_classes, dtype=torch.float64, device=float64_device(features))
        self._directions = self._counts.new_zeros(self.num_classes, dim)  # Σ x/‖x‖ of each class
        self._means = self._counts.new_zeros(self.num_classes, dim)
        self._scatter = self._counts.new_zeros(dim, dim) if self.scatter else None

    def _add(self, x: Tensor, y: Tensor) -> None:
        assert self._counts is not None
        norms = x.norm(dim=1, keepdim=True)
        self._zeros += int((norms == 0).sum())
        self._directions.index_add_(0, y, x / norms.clamp_min(torch.finfo(x.dtype).tiny))

        # Chan et al. 1979: square the distances from the batch's own class means, and those between old and new means.
        # Subtracting the means from Σxxᵀ instead would cancel, most of all where features have collapsed onto their means.
        present, which, counts = y.unique(return_inverse=True, return_counts=True)
        added = counts.to(x.dtype)
        means = torch.zeros(len(present), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, which, x)
        means /= added[:, None]
        before = self._counts[present]
        delta = means - self._means[present]
        if self._scatter is not None:
            x = x - means[which]
            self._scatter.addmm_(x.T, x)
            self._scatter.addmm_((delta * (before * added / (before + added))[:, None]).T, delta)
        self._means[present] += delta * (added / (before + added))[:, None]
        self._counts[present] += added

    def class_means(self) -> Tensor:
        """(K, D) float64 means of the features of each class; NaN for a class without a sample."""
        counts, means = self._seen(), self._means.clone()
        means[counts == 0] = torch.nan
        return means

    def compute(self, classifier: Any = None, missing: str = "raise") -> dict[str, Any]:
        """The measures of all rows so far.

        Separability (Kornblith et al. 2021, arXiv 2010.16402, Eq. 11: classes count equally, and each feature is also
        paired with itself). With x̂ = x/‖x‖ and μ_k the mean of x̂ in class k (0 for x = 0, see `zero_features`):

        - `d_within` = 1 − mean_k ‖μ_k‖², `d_total` = 1 − ‖mean_k μ_k‖², `r2` = 1 − d_within/d_total, in [0, 1]; NaN where
          all features point the same way.
        - `d_within_per_class` = 1 − ‖μ_k‖² and `r2_per_class`, (K,) arrays.

        Neural collapse (Papyan, Han, Donoho 2020, arXiv 2008.08186), of the features as they are, with class means
        h_k and h, the mean of these. All go to 0 under collapse:

        - `nc1` = tr(Σ_W Σ_B^†)/C, Σ_W averaged over rows and Σ_B over classes; if all class means coincide it is infinite,
          and the others are NaN.
        - `nc2_equinorm` = std/mean of ‖h_k − h‖; `nc2_equiangular` = std of the cosines between different h_k − h;
          `nc2_max_angle` = `mean |cosine + 1/(C−1)|`.
        - with `classifier`, the same of its rows: `nc2_weight_equinorm`, `nc2_weight_equiangular`, `nc2_weight_max_angle`;
          and `nc3_self_duality` = ‖W/‖W‖ − M/‖M‖‖² (Frobenius norms), where the rows of M are h_k − h.
        - NC4 needs a second pass, see `NearestCentre`.

        Effective rank (Roy & Vetterli 2007): exp of the entropy of the singular values over their sum, of the (N, D)
        features (`effective_rank`) and of those minus their mean (`effective_rank_centered`). Singular values below about
        1e-7 of the greatest count as 0.

        Also `rows`, `zero_features` (number of rows x = 0, which have no direction), `count_per_class` (K,) and
        `classes_without_sample` (list).

        Args:
            classifier: (K, D) weight of the last layer.
            missing: `"raise"`, or `"skip"` classes without a sample: they are left out of all means, are NaN in (K,)
                arrays, and are listed in `classes_without_sample`.

        Raises:
            ValueError: no rows so far, a class without a sample (unless skipped), only one class with samples, a
                classifier of a wrong shape, with NaN or infinite weights, or given without `scatter`.
        """
        counts = self._seen()
        if missing not in ("raise", "skip"):
            raise ValueError(f"missing must be 'raise' or 'skip', got {missing!r}")
        if classifier is not None and self._scatter is None:
            raise ValueError("classifier is for the neural-collapse measures, which need FeatureGeometry(scatter=True)")
        weight = None if classifier is None else _check_classifier(classifier, self._means)
        present = counts > 0
        absent: list[int] = (~present).nonzero().flatten().tolist()
        if absent and missing == "raise":
            listed = ", ".join(map(str, absent[:10])) + (", …" if len(absent) > 10 else "")
            raise ValueError(
                f"{len(absent)} of {self.num_classes} classes have no sample: {listed}. Give more rows, or "
                "compute(missing='skip') to leave these classes out"
            )
        if present.sum() < 2:
            raise ValueError(f"all rows are of class {int(present.nonzero())}; geometry compares classes with each other")
        result = self._separability(counts, present)
        if self._scatter is not None:
            means = self._means[present]
            result |= neural_collapse(means, self._scatter / counts.sum(), None if weight is None else weight[present])
            result |= self._effective_ranks(counts, self._scatter)
        return result | {
            "count_per_class": counts.long().cpu().numpy(),
            "classes_without_sample": absent,
            "rows": int(counts.sum()),
            "zero_features": self._zeros,
        }

    def _separability(self, counts: Tensor, present: Tensor) -> dict[str, Any]:
        directions = self._directions[present] / counts[present, None]
        within = (1 - directions.square().sum(1)).clamp_min(0)  # only rounding makes it negative
        total = 1 - float(directions.mean(0).square().sum())
        r2, r2_per_class = float("nan"), within * torch.nan
        if total > FLAT:
            r2, r2_per_class = 1 - float(within.mean()) / total, 1 - within / total
        return {
            "d_within": float(within.mean()),
            "d_total": total,
            "r2": r2,
            "d_within_per_class": _of_all_classes(within, present),
            "r2_per_class": _of_all_classes(r2_per_class, present),
        }

    def _effective_ranks(self, counts: Tensor, scatter: Tensor) -> dict[str, float]:
        # The Gram matrix of the features is their scatter about the class means plus that of the class means themselves:
        # about 0 for the features as they are, about the mean of all rows for the centered ones.
        centered = self._means - (counts[:, None] * self._means).sum(0) / counts.sum()
        found = {}
        for name, means in (("effective_rank", self._means), ("effective_rank_centered", centered)):
            found[name] = effective_rank(singular_values(scatter + (means * counts[:, None]).T @ means))
        return found

    def _seen(self) -> Tensor:
        require_rows(self._counts is not None)
        assert self._counts is not None
        return self._counts


def feature_geometry(
    features: Any,
    labels: Any,
    *,
    num_classes: int | None = None,
    classifier: Any = None,
    predictions: Any = None,
    missing: str = "raise",
) -> dict[str, Any]:
    """`FeatureGeometry.compute` for features that fit into memory (or a memmap).

    Args:
        features: (N, D).
        labels: (N,) integers.
        num_classes: K. Default: the rows of `classifier`, or else the greatest label plus 1.
        classifier: (K, D) weight of the last layer, for NC2 and NC3 of its rows.
        predictions: (N,) predicted classes, for `nc4_agreement` with the nearest class centre.
        missing: as in `FeatureGeometry.compute`.

    Raises:
        ValueError: as in `FeatureGeometry`.
    """
    y = as_array(labels)
    if num_classes is None:
        require_rows(y.size)
        num_classes = int(y.max()) + 1 if classifier is None else len(classifier)
    geometry = FeatureGeometry(num_classes)
    geometry.update(features, y)
    result = geometry.compute(classifier, missing)
    if predictions is not None:
        nearest = NearestCentre(geometry.class_means())
        nearest.update(features, predictions)
        result |= nearest.compute()
    return result


def _of_all_classes(values: Tensor, present: Tensor) -> NDArray[np.float64]:
    """(K,) array with `values` at the classes that are present and NaN elsewhere."""
    found = torch.full(present.shape, torch.nan, dtype=torch.float64)
    found[present.cpu()] = values.cpu()
    return found.numpy()


def _check_classifier(classifier: Any, means: Tensor) -> Tensor:
    weight = torch.as_tensor(classifier).detach().to(means)
    if weight.shape != means.shape:
        raise ValueError(
            f"classifier must be {tuple(means.shape)}, one row for each class in the space of the features, got "
            f"{tuple(weight.shape)}"
        )
    if not weight.isfinite().all():
        raise ValueError("classifier has NaN or infinite weights")
    return weight
