"""Exact match and F1 of answers, as SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250) defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from maxsup_hf.metrics._records import Metric, register_metrics

_PUNCTUATION = str.maketrans("", "", string.punctuation)

register_metrics(  # the record of `f1`, which entities have too, is in spans.py
    Metric(
        "exact_match", "exact match", higher_is_better=True, rank=15,
        formula="share of predictions that equal an answer, after lower-casing and without punctuation and articles",
        paper="Rajpurkar et al. 2016, arXiv 1606.05250",
    )
)  # fmt: skip


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and superfluous white space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, after `normalize_answer`, else 0. No answers: 1 for an empty prediction.

    Raises:
        TypeError: a single text in place of a list of answers.
    """
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in _listed(answers)})


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that the prediction shares with an answer, in [0, 1]; of several answers the best one counts.

    Words are those of `normalize_answer`. If prediction or answer has no words, F1 is 1 if neither has any, else 0. No
    answers count as an empty one. Errors as in `exact_match`.
    """
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(answer).split()) for answer in _listed(answers))


def _listed(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str):  # whose letters would be taken for answers
        raise TypeError(f"answers must be a list of texts, got the text {answers!r}; put it into a list")
    return answers or [""]


def _f1(guess: list[str], truth: list[str]) -> float:
    if not guess or not truth:
        return float(guess == truth)
    shared = sum((Counter(guess) & Counter(truth)).values())
    return 2 * shared / (len(guess) + len(truth))
