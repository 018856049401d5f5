"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599): divide all logits by one temperature, fitted on validation data.

It changes confidences, never a prediction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.metrics._rows import as_logits, check_logits, check_rows, log_softmax, refuse_probabilities


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T > 0 with the least negative log-likelihood of softmax(z / T), exact to 1e-9 relative.

    Fit it on validation rows: fitted on the rows that are evaluated, calibration looks better than it is.

    Arguments as in `accuracy`.

    Raises:
        ValueError: as in `accuracy`, or there is no best T: every label has the greatest logit of its row (the likelihood
            keeps rising as T → 0), or the logits predict the labels no better than chance (it keeps rising as T → ∞).
    """
    from scipy.optimize import brentq

    z, y = check_rows(logits, labels)
    rows = np.arange(len(y))
    finite = np.where(np.isneginf(z), 0, z)
    if np.isneginf(z[rows, y]).any():
        raise ValueError("some labels have a logit of −inf: their likelihood is 0 at every temperature")

    def slope(beta: float) -> float:
        """Derivative of the NLL with respect to β = 1/T. It rises with β because the NLL is convex in β."""
        return float(((np.exp(log_softmax(beta * z)) * finite).sum(1) - z[rows, y]).mean())

    # At β = 0 all classes that are not masked are equally probable; as β → ∞ only the greatest logits remain.
    masked = np.isneginf(z)
    at_zero = (finite.sum(1) / (~masked).sum(1) - z[rows, y]).mean()
    at_infinity = (z.max(1) - z[rows, y]).mean()
    if at_infinity <= 0:
        raise ValueError("every label has the greatest logit of its row, so there is no best temperature; fit on more rows")
    if at_zero >= 0:
        raise ValueError("the logits of the labels are no greater than the others, so there is no best temperature")
    scale = max(float(np.abs(finite).max()), 1e-300)
    low, high = 1 / scale, 1 / scale
    while slope(low) >= 0:
        low /= 2
    while slope(high) <= 0:
        high *= 2
    return float(1 / brentq(slope, low, high, xtol=1e-10 * low, rtol=1e-10))


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Logits (…, K) divided by `temperature`, in float64.

    Raises:
        ValueError: a temperature that is not positive and finite, NaN or infinite logits, or probabilities.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    z = as_logits(logits)
    if z.ndim > 1 and z.size:
        rows = z.reshape(-1, z.shape[-1])
        check_logits(rows)
        refuse_probabilities(rows)
    return z / temperature
