"""Neural collapse (Papyan, Han, Donoho 2020, arXiv 2008.08186): how close features and classifier come to a simplex."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maxsup_hf.metrics._accumulator import Accumulator
from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import (
    check_class_indices,
    chunks,
    counted_rows,
    float64_chunks,
    float64_device,
    require_rows,
)

PAPYAN = "Papyan et al. 2020, arXiv 2008.08186"


def _measure(name: str, label: str, title: str, formula: str) -> Metric:
    return Metric(name, label, title, formula=formula, paper=PAPYAN, aliases=(f"feature_{name}",))


register_metrics(
    _measure("nc1", "NC1", "NC1: variation within classes against between them", "tr(Σ_W Σ_B^†)/C"),
    _measure("nc2_equinorm", "NC2 norms", "NC2: class means of unequal length", "std/mean of ‖h_k − h‖"),
    _measure("nc2_equiangular", "NC2 angles", "NC2: class means at unequal angles", "std of cos(h_j − h, h_k − h)"),
    _measure(
        "nc2_max_angle", "NC2 max angle", "NC2: class means away from the greatest equal angles",
        "mean |cos(h_j − h, h_k − h) + 1/(C−1)|",
    ),
    _measure("nc2_weight_equinorm", "NC2 weight norms", "NC2: classifier rows of unequal length", "std/mean of ‖w_k‖"),
    _measure(
        "nc2_weight_equiangular", "NC2 weight angles", "NC2: classifier rows at unequal angles", "std of cos(w_j, w_k)"
    ),
    _measure(
        "nc2_weight_max_angle", "NC2 weight max angle", "NC2: classifier rows away from the greatest equal angles",
        "mean |cos(w_j, w_k) + 1/(C−1)|",
    ),
    _measure("nc3_self_duality", "NC3", "NC3: classifier away from the class means", "‖W/‖W‖ − M/‖M‖‖², M_k = h_k − h"),
    _measure(
        "nc4_agreement", "NC4", "NC4: prediction is the nearest class mean",
        "share of rows predicted as the class whose mean is nearest to the feature",
    ),
)  # fmt: skip


def neural_collapse(means: Tensor, within: Tensor, classifier: Tensor | None = None) -> dict[str, float]:
    """NC1 to NC3 from class means, as `FeatureGeometry.compute` describes them.

    Args:
        means: (C, D) float64.
        within: (D, D) covariance of the features about their class means.
        classifier: (C, D) float64.
    """
    centred = means - means.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    # At most C − 1 singular values are not 0; the others are rounding errors of the means, and are dropped.
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


def _simplex(rows: Tensor) -> dict[str, float]:
    """How far rows (C, D) are from equal lengths and equal, greatest possible angles between them."""
    count = len(rows)
    norms = rows.norm(dim=1)
    units = rows / norms.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    target = -1 / (count - 1)
    # Squaring deviations from the target rather than the cosines avoids cancellation; chunks avoid C² cosines at once.
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


class NearestCentre(Accumulator):
    """NC4 in a second pass: does the network predict the class whose centre is nearest to the feature?

    ::

        nearest = NearestCentre(geometry.class_means())
        for features, logits in batches:
            nearest.update(features, logits.argmax(-1))

    Papyan et al. 2020 take the centres of the training data and the rows of the test data.

    Args:
        centres: (K, D); a class whose centre is NaN is never the nearest.
        ignore_index: prediction of ignored rows. Default −100.

    Raises:
        ValueError: a wrong shape, or fewer than two centres.
    """

    def __init__(self, centres: Any, *, ignore_index: int = -100):
        centres = torch.as_tensor(centres)
        self._known = ~centres.isnan().any(-1)
        if centres.ndim != 2 or self._known.sum() < 2:
            raise ValueError(f"expected centres (K, D) of at least two classes, got {tuple(centres.shape)}")
        centres = centres.to(float64_device(centres), torch.float64)
        self._origin = centres[self._known].mean(0)  # this keeps the digits of the distances
        self._centres = (centres - self._origin).nan_to_num()
        super().__init__(ignore_index)

    def reset(self) -> None:
        self._rows = self._agree = 0

    def update(self, values: Any, labels: Any) -> None:
        """Take in features (…, D) and the network's predictions (…), integers in [0, K). Errors as in `FeatureGeometry`."""
        features, predictions = counted_rows(values, labels, self.ignore_index)
        if not len(predictions):
            return
        check_class_indices(predictions, len(self._centres), "predictions")
        if features.shape[1] != self._centres.shape[1]:
            raise ValueError(f"the centres have {self._centres.shape[1]} dimensions, the features {features.shape[1]}")
        half_square = self._centres.square().sum(1) / 2
        half_square[~self._known] = torch.inf
        for x, y in float64_chunks(features, predictions, self._centres.device, width=len(self._centres)):
            nearest = ((x - self._origin) @ self._centres.T - half_square).argmax(1)
            self._agree += int((nearest == y).sum())
            self._rows += len(y)

    def compute(self) -> dict[str, float]:
        """`nc4_agreement`: share of the rows predicted as the class of the nearest centre, in [0, 1]; 1 under collapse.

        Raises:
            ValueError: no rows so far.
        """
        require_rows(self._rows)
        return {"nc4_agreement": self._agree / self._rows}
