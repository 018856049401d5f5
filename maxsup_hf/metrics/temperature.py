"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number, fitted on validation data, that all logits are
divided by. It changes confidences and never a prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._rows import as_array, check_rows, log_softmax


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T > 0 with the least negative log-likelihood of softmax(z / T), exact to 1e-9 relative.

    Give it validation rows: fitted on the rows that are evaluated, calibration looks better than it is.

    Arguments as in `accuracy`.

    Raises:
        ValueError: as in `accuracy`, or there is no best T: every label has the greatest logit of its row (the likelihood
            rises for ever as T → 0), or the logits say no more of the labels than chance (it rises as T → ∞).
    """
    z, y = check_rows(logits, labels)
    rows = np.arange(len(y))
    finite = np.where(np.isneginf(z), 0, z)
    if np.isneginf(z[rows, y]).any():
        raise ValueError("some labels have a logit of −inf: their likelihood is 0 at every temperature")

    def slope(beta: float) -> float:
        """Derivative of the NLL with respect to β = 1/T. It rises with β, for the NLL is convex in β."""
        return float(((np.exp(log_softmax(beta * z)) * finite).sum(1) - z[rows, y]).mean())

    # At β = 0 every class that is not masked is as probable as the others; as β → ∞ the greatest logits have it all.
    masked = np.isneginf(z)
    at_zero = (finite.sum(1) / (~masked).sum(1) - z[rows, y]).mean()
    at_infinity = (z.max(1) - z[rows, y]).mean()
    if at_infinity <= 0:
        raise ValueError("every label has the greatest logit of its row, so no temperature is the best: fit on more rows")
    if at_zero >= 0:
        raise ValueError("the logits of the labels are no greater than the others, so no temperature is the best")
    scale = max(float(np.abs(finite).max()), 1e-300)
    low, high = 1 / scale, 1 / scale
    while slope(low) >= 0:
        low /= 2
    while slope(high) <= 0:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Logits of any shape divided by `temperature`, in float64.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    return as_array(logits).astype(np.float64) / temperature
