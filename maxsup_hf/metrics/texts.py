"""Metrics of language models and of texts that a model writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats; infinite where that is more than a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def chrf(predictions: Sequence[str], references: Sequence[str], order: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score (Popović 2015, WMT) of a whole set of texts, in [0, 1]; usually quoted in percent.

    Spaces do not count. Matches are counted over all texts; precision and recall are averaged over the orders 1 to `order`
    that occur on both sides, then joined in F_beta, as sacrebleu's chrF2 does.

    Args:
        predictions: N texts.
        references: N texts.

    Raises:
        ValueError: no texts, or not as many of the one as of the other.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"expected as many predictions as references, got {len(predictions)} and {len(references)}")
    counts = np.zeros((order, 3))  # n-grams in both, in the predictions, in the references
    for prediction, reference in zip(predictions, references, strict=True):
        for n in range(1, order + 1):
            found, wanted = _ngrams(prediction, n), _ngrams(reference, n)
            counts[n - 1] += (found & wanted).total(), found.total(), wanted.total()
    both, found_all, wanted_all = counts[counts[:, 1:].min(1) > 0].T
    if both.sum() == 0:
        return 0.0
    precision, recall = (both / found_all).mean(), (both / wanted_all).mean()
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def _ngrams(text: str, n: int) -> Counter[str]:
    characters = "".join(text.split())
    return Counter(characters[i : i + n] for i in range(len(characters) - n + 1))
