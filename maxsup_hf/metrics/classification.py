"""Accuracy of logits."""

from __future__ import annotations

from numpy.typing import ArrayLike

from maxsup_hf.metrics._records import Metric, register_metrics
from maxsup_hf.metrics._rows import check_rows

register_metrics(
    Metric(
        "accuracy",
        "accuracy",
        higher_is_better=True,
        rank=19,
        formula="share of rows whose greatest logit is the label's",
        meaning="share of rows that are predicted right",
    )
)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows whose greatest logit is the label's, in [0, 1]; of equal logits the first counts.

    Args:
        logits: (N, K), arrays or tensors as for all metrics. A class whose logit is −inf, or the lowest value of the dtype,
            is masked: it is excluded.
        labels: (N,) integers in [0, K).

    Raises:
        ValueError: no rows, wrong shapes, a label outside [0, K), NaN or infinite logits, or probabilities.
    """
    z, y = check_rows(logits, labels)
    return float((z.argmax(1) == y).mean())
