"""Metrics as pure functions on arrays; nothing here knows of a model or a Trainer."""

from maxsup_hf.metrics.answers import answer_f1, exact_match, normalize_answer
from maxsup_hf.metrics.classification import accuracy, ece, nll
from maxsup_hf.metrics.segmentation import confusion_matrix, mean_iou, pixel_accuracy
from maxsup_hf.metrics.spans import entities, entity_f1, is_bio
from maxsup_hf.metrics.texts import chrf, perplexity

__all__ = [
    "accuracy",
    "answer_f1",
    "chrf",
    "confusion_matrix",
    "ece",
    "entities",
    "entity_f1",
    "exact_match",
    "is_bio",
    "mean_iou",
    "nll",
    "normalize_answer",
    "perplexity",
    "pixel_accuracy",
]
