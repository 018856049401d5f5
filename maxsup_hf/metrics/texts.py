"""Metrics of language models and of generated texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from maxsup_hf.metrics._records import Metric, register_metrics

register_metrics(
    Metric(
        "chrf", "chrF", higher_is_better=True, rank=13,
        formula="F_β of character n-grams: (1 + β²)·precision·recall / (β²·precision + recall), β = 2",
        paper="Popović 2015, WMT",
    ),
    Metric(
        "bleu", "BLEU", higher_is_better=True, rank=14,
        formula="brevity penalty times geometric mean of the precisions of 1- to 4-grams, in percent (sacrebleu)",
        paper="Papineni et al. 2002, ACL",
    ),
    Metric(
        "loss", "loss", "cross-entropy", higher_is_better=False, rank=20,
        formula="mean cross-entropy of the evaluation, in nats, whatever loss the model is trained with",
        meaning="cross-entropy without any penalty",
    ),
    Metric(
        "perplexity", "perplexity", higher_is_better=False, rank=21,
        formula="exp of the mean cross-entropy",
        meaning="how many tokens the model hesitates between, on average",
    ),
    Metric(  # this and the next are computed by TRL
        "mean_token_accuracy", "token accuracy", "accuracy of the next token", higher_is_better=True,
        formula="mean over batches of the share of tokens that are predicted right",
        meaning="share of tokens that are predicted right",
    ),
    Metric(
        "entropy", "entropy", "entropy of the predictions",
        formula="mean over batches of −Σ_k q_k log q_k over the tokens, in nats",
        meaning="how undecided the model is about the next token: 0 if it is certain",
    ),
)  # fmt: skip


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats; infinite where that exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def chrf(predictions: Sequence[str], references: Sequence[str], order: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score (Popović 2015, WMT) of a set of texts, in [0, 1]; usually quoted in percent.

    White space is ignored. Matches are counted over all texts; precision and recall are averaged over the orders 1 to
    `order` that occur on both sides, then combined into F_beta, as sacrebleu's chrF2 does.

    Args:
        predictions: N texts.
        references: N texts.

    Raises:
        TypeError: a single text in place of a list.
        ValueError: no texts, or different numbers of predictions and references.
    """
    if isinstance(predictions, str) or isinstance(references, str):  # whose letters would be taken for texts
        raise TypeError("predictions and references must be lists of texts, got a single text; put it into a list")
    if len(predictions) != len(references) or not references:
        raise ValueError(
            f"expected as many predictions as references, at least one, got {len(predictions)} and {len(references)}"
        )
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
