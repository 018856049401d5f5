"""The geometry of penultimate features: how tight classes are, how far apart, and how close to neural collapse.

Everything comes from running class means and one scatter matrix in float64, so the features themselves, which may be
millions, are never held: with K classes and D dimensions the state is 2·K·D + D² numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maxsup_hf.metrics._rows import Accumulator, as_array, chunks, counted_rows

FLAT = 1e-12  # a total variation below this is rounding: all features point the same way


class FeatureGeometry(Accumulator):
    """Class separability and neural collapse of features that come in batches::

        geometry = FeatureGeometry(num_classes=1000)
        for features, labels in batches:
            geometry.update(features, labels)
        geometry.compute(classifier=model.classifier.weight)

    Order and size of the batches make no difference beyond rounding. Arithmetic is float64, on the features' device.

    Args:
        num_classes: K, at least 2.
        scatter: keep what the neural-collapse measures and the effective rank need, too: D² numbers, and a product of
            2·N·D² operations. Without it only the separability is computed.
        ignore_index: label of ignored rows. Default −100.

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(self, num_classes: int, *, scatter: bool = True, ignore_index: int = -100):
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}: geometry compares classes with each other")
        self.num_classes, self.scatter, self.ignore_index = num_classes, scatter, ignore_index
        self.reset()

    def reset(self) -> None:
        self._counts: Tensor | None = None
        self._zeros = 0

    def update(self, values: Any, labels: Any) -> None:
        """Take in a batch of any size.

        Args:
            values: features (…, D), tensor or array, of any floating type; a NumPy memmap is read piece by piece.
            labels: (…) integers in [0, K), or `ignore_index`.

        Raises:
            ValueError: shapes that do not fit, another D than before, a label out of range, NaN or infinite features.
        """
        features, labels = counted_rows(values, labels, self.ignore_index)
        if not len(labels):
            return
        check_labels(labels, self.num_classes)
        if self._counts is None:
            self._start(features)
        if features.shape[1] != self._means.shape[1]:
            raise ValueError(f"features had {self._means.shape[1]} dimensions so far, now {features.shape[1]}")
        for x, y in _double(features, labels, self._means.device):
            self._add(x, y)

    def _start(self, features: Any) -> None:
        dim = features.shape[1]
        self._counts = torch.zeros(self.num_classes, dtype=torch.float64, device=_device(features))
        self._directions = self._counts.new_zeros(self.num_classes, dim)  # Σ x/‖x‖ of each class
        self._means = self._counts.new_zeros(self.num_classes, dim)
        self._scatter = self._counts.new_zeros(dim, dim) if self.scatter else None

    def _add(self, x: Tensor, y: Tensor) -> None:
        assert self._counts is not None
        norms = x.norm(dim=1, keepdim=True)
        self._zeros += int((norms == 0).sum())
        self._directions.index_add_(0, y, x / norms.clamp_min(torch.finfo(x.dtype).tiny))

        # Chan et al. 1979: what is squared is the distance from the batch's own class mean, and that of the two means. Σxxᵀ
        # minus the means would cancel, and most of all where features have collapsed onto their means.
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

        Separability (Kornblith et al. 2021, arXiv 2010.16402, Eq. 11: classes count equally, a feature is a pair with
        itself too). With x̂ = x/‖x‖ and μ_k the mean of x̂ in class k (0 for x = 0, see `zero_features`):

        - `d_within` = 1 − mean_k ‖μ_k‖², `d_total` = 1 − ‖mean_k μ_k‖², `r2` = 1 − d_within/d_total, in [0, 1]; NaN where
          all features point the same way.
        - `d_within_per_class` = 1 − ‖μ_k‖² and `r2_per_class`, (K,) arrays.

        Neural collapse (Papyan, Han, Donoho 2020, arXiv 2008.08186), of the features as they are, with class means
        h_k and h their mean over classes. All go to 0 under collapse:

        - `nc1` = tr(Σ_W Σ_B^†)/C, Σ_W averaged over rows and Σ_B over classes; infinite where all class means coincide,
          and the others NaN.
        - `nc2_equinorm` = std/mean of ‖h_k − h‖; `nc2_equiangular` = std of the cosines between different h_k − h;
          `nc2_max_angle` = `mean |cosine + 1/(C−1)|`.
        - with `classifier`, the same of its rows: `nc2_weight_equinorm`, `nc2_weight_equiangular`, `nc2_weight_max_angle`;
          and `nc3_self_duality` = ‖W/‖W‖ − M/‖M‖‖² (Frobenius norms), where the rows of M are h_k − h.
        - NC4 needs a second pass, see `NearestCentre`.

        Effective rank (Roy & Vetterli 2007): exp of the entropy of the singular values over their sum, of the (N, D)
        features (`effective_rank`) and of those minus their mean (`effective_rank_centered`). Singular values below about
        1e-7 of the greatest count as 0.

        Also `rows`, `zero_features` (rows x = 0, which have no direction), `count_per_class` (K,) and
        `classes_without_sample` (list).

        Args:
            classifier: (K, D) weight of the last layer.
            missing: `"raise"`, or `"skip"`: classes without a sample are left out of all means, NaN in arrays of classes
                and listed in `classes_without_sample`.

        Raises:
            ValueError: no rows so far, a class without a sample (unless skipped), only one class with samples, a
                classifier of another shape or that is not finite, or one without `scatter`.
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
            some = ", ".join(map(str, absent[:10])) + (", …" if len(absent) > 10 else "")
            raise ValueError(
                f"{len(absent)} of {self.num_classes} classes have no sample: {some}. Give more rows, or "
                "compute(missing='skip') to leave these classes out"
            )
        if present.sum() < 2:
            raise ValueError(f"all rows are of class {int(present.nonzero())}; geometry compares classes with each other")

        directions = self._directions[present] / counts[present, None]
        within = (1 - directions.square().sum(1)).clamp_min(0)  # rounding alone makes it negative
        total = 1 - float(directions.mean(0).square().sum())
        result: dict[str, Any] = {
            "d_within": float(within.mean()),
            "d_total": total,
            "r2": 1 - float(within.mean()) / total if total > FLAT else float("nan"),
        }
        if self._scatter is not None:
            means = self._means[present]
            result |= neural_collapse(means, self._scatter / counts.sum(), None if weight is None else weight[present])
            centred = self._means - (counts[:, None] * self._means).sum(0) / counts.sum()
            for name, about in (("effective_rank", self._means), ("effective_rank_centered", centred)):
                result[name] = effective_rank(_singular_values(self._scatter + (about * counts[:, None]).T @ about))
        return result | {
            "d_within_per_class": _spread(within, present),
            "r2_per_class": _spread(1 - within / total if total > FLAT else within * torch.nan, present),
            "count_per_class": counts.long().cpu().numpy(),
            "classes_without_sample": absent,
            "rows": int(counts.sum()),
            "zero_features": self._zeros,
        }

    def _seen(self) -> Tensor:
        if self._counts is None:
            raise ValueError("there are no rows to evaluate")
        return self._counts


class NearestCentre(Accumulator):
    """NC4 in a second pass: does the network predict the class whose centre is nearest to the feature?

    ::

        nearest = NearestCentre(geometry.class_means())
        for features, logits in batches:
            nearest.update(features, logits.argmax(-1))

    Papyan et al. 2020 take the centres from the training data and the rows from the test data.

    Args:
        centres: (K, D); a class whose centre is NaN is never the nearest.
        ignore_index: prediction of ignored rows. Default −100.

    Raises:
        ValueError: another shape, or fewer than two centres.
    """

    def __init__(self, centres: Any, *, ignore_index: int = -100):
        centres = torch.as_tensor(centres)
        self._known = ~centres.isnan().any(-1)
        if centres.ndim != 2 or self._known.sum() < 2:
            raise ValueError(f"expected centres (K, D) of at least two classes, got {tuple(centres.shape)}")
        centres = centres.to(_device(centres), torch.float64)
        self._origin = centres[self._known].mean(0)  # distances do not change, but their digits stay
        self._centres = (centres - self._origin).nan_to_num()
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        self._rows = self._agree = 0

    def update(self, values: Any, labels: Any) -> None:
        """Take in features (…, D) and the network's predictions (…), integers in [0, K). Errors as in `FeatureGeometry`."""
        features, predictions = counted_rows(values, labels, self.ignore_index)
        if not len(predictions):
            return
        check_labels(predictions, len(self._centres), "predictions")
        if features.shape[1] != self._centres.shape[1]:
            raise ValueError(f"the centres have {self._centres.shape[1]} dimensions, the features {features.shape[1]}")
        half_square = self._centres.square().sum(1) / 2
        half_square[~self._known] = torch.inf
        for x, y in _double(features, predictions, self._centres.device, width=len(self._centres)):
            nearest = ((x - self._origin) @ self._centres.T - half_square).argmax(1)
            self._agree += int((nearest == y).sum())
            self._rows += len(y)

    def compute(self) -> dict[str, float]:
        """`nc4_agreement`: share of the rows predicted as the class of the nearest centre, in [0, 1]; 1 under collapse.

        Raises:
            ValueError: no rows so far.
        """
        if not self._rows:
            raise ValueError("there are no rows to evaluate")
        return {"nc4_agreement": self._agree / self._rows}


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
        if not y.size:
            raise ValueError("there are no rows to evaluate")
        num_classes = int(y.max()) + 1 if classifier is None else len(classifier)
    geometry = FeatureGeometry(num_classes)
    geometry.update(features, y)
    result = geometry.compute(classifier, missing)
    if predictions is not None:
        nearest = NearestCentre(geometry.class_means())
        nearest.update(features, predictions)
        result |= nearest.compute()
    return result


def neural_collapse(means: Tensor, within: Tensor, classifier: Tensor | None = None) -> dict[str, float]:
    """NC1 to NC3 from class means, as `FeatureGeometry.compute` describes them.

    Args:
        means: (C, D) float64.
        within: (D, D) covariance of the features about their class means.
        classifier: (C, D) float64.
    """
    centred = means - means.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    # At most C − 1 singular values are not 0; what the rounding of the means makes of the others does not count.
    real = singular > max(means.shape) * torch.finfo(means.dtype).eps * float(means.norm(dim=1).max())
    directions, singular = directions[real], singular[real]
    spread = ((directions @ within) * directions).sum(1)
    nc1 = float((spread / singular.square()).sum()) if len(singular) else float("inf")
    result = {"nc1": nc1} | {f"nc2_{name}": value for name, value in _simplex(centred).items()}
    if classifier is not None:
        result |= {f"nc2_weight_{name}": value for name, value in _simplex(classifier).items()}
        apart = classifier / classifier.norm() - centred / centred.norm()
        result["nc3_self_duality"] = float(apart.square().sum())
    return result


def effective_rank(singular_values: Any) -> float:
    """exp of the entropy of p = σ/Σσ (Roy & Vetterli, EUSIPCO 2007); between 1 and the rank; 0 where all are 0.

    Args:
        singular_values: (R,), none negative, in any order.

    Raises:
        ValueError: a negative or NaN value, or none at all.
    """
    s = as_array(singular_values).astype(np.float64)
    if s.ndim != 1 or not s.size or not (s >= 0).all():
        raise ValueError(f"expected singular values (R,), none negative, got {s.shape}: {s[:5]}…")
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if p.size else 0.0


def check_labels(labels: Any, num_classes: int, name: str = "labels") -> None:
    """Raises ValueError for labels that are not integers, or lie outside [0, K)."""
    y = as_array(labels)
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {y.dtype}")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"{name} must lie in [0, {num_classes}), got {y.min()} to {y.max()}")


def _simplex(rows: Tensor) -> dict[str, float]:
    """How far rows (C, D) are from equal lengths and equal, greatest possible angles."""
    count = len(rows)
    norms = rows.norm(dim=1)
    units = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    target = -1 / (count - 1)
    # Deviations from the target are what is squared, so that nothing cancels; and never C² cosines at once.
    first = second = away = 0.0
    for i in chunks(count, count):
        off = units[i] @ units.T - target
        off[torch.arange(len(off)), torch.arange(count)[i]] = 0
        first, second, away = first + float(off.sum()), second + float(off.square().sum()), away + float(off.abs().sum())
    pairs = count * (count - 1)
    return {
        "equinorm": float(norms.std(correction=0) / norms.mean()),
        "equiangular": max(second / pairs - (first / pairs) ** 2, 0.0) ** 0.5,
        "max_angle": away / pairs,
    }


def _singular_values(gram: Tensor) -> Tensor:
    """Singular values of X from XᵀX. What is below the rounding of its entries is 0."""
    values = torch.linalg.eigvalsh(gram)
    values[values < values[-1] * len(gram) * torch.finfo(gram.dtype).eps] = 0
    return values.sqrt()


def _spread(values: Tensor, present: Tensor) -> NDArray[np.float64]:
    """(K,) array with `values` at the classes that are present and NaN elsewhere."""
    whole = torch.full(present.shape, torch.nan, dtype=torch.float64)
    whole[present.cpu()] = values.cpu()
    return whole.numpy()


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


def _device(values: Any) -> torch.device:
    if not isinstance(values, Tensor) or values.device.type == "mps":  # which has no float64
        return torch.device("cpu")
    return values.device


def _double(features: Any, labels: Any, device: torch.device, width: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a batch in float64, small enough that copies of them do not count."""
    for i in chunks(len(labels), max(features.shape[1], width)):
        x, y = (torch.as_tensor(np.array(v[i]) if not isinstance(v, Tensor) else v[i].detach()) for v in (features, labels))
        x, y = x.to(device, torch.float64), y.to(device, torch.int64)
        broken = ~x.isfinite().all(1)
        if broken.any():
            row = i.start + int(broken.nonzero()[0])
            raise ValueError(
                f"features of {int(broken.sum())} rows are NaN or infinite, the first in row {row} of this batch; has the "
                "model diverged?"
            )
        yield x, y
