"""Metrics as pure functions on arrays and tensors; nothing here knows of a model or a Trainer.

`CalibrationMetrics`, `LogitMetrics` and `FeatureGeometry` take a data set in batches, and are a `compute_metrics` for the
Trainer as they stand. The folders are the same metrics as modules of the `evaluate` library:
`evaluate.load(f"{maxsup_hf.metrics.__path__[0]}/maxsup_geometry")`.
"""

from maxsup_hf.metrics.answers import answer_f1, exact_match, normalize_answer
from maxsup_hf.metrics.calibration import (
    CalibrationMetrics,
    ReliabilityCurve,
    adaptive_ece,
    brier,
    classwise_ece,
    confidence_when_wrong,
    ece,
    error_auroc,
    mce,
    nll,
    ood_auroc,
    reliability_curve,
)
from maxsup_hf.metrics.classification import accuracy
from maxsup_hf.metrics.geometry import FeatureGeometry, NearestCentre, effective_rank, feature_geometry
from maxsup_hf.metrics.logits import LogitMetrics, margin, near_zero_share, top_margin
from maxsup_hf.metrics.probe import ProbeResult, knn_accuracy, linear_probe
from maxsup_hf.metrics.robustness import CORRUPTIONS, corrupt, long_tailed_counts, long_tailed_subset, shot_accuracy
from maxsup_hf.metrics.segmentation import confusion_matrix, mean_iou, pixel_accuracy
from maxsup_hf.metrics.spans import entities, entity_f1, is_bio
from maxsup_hf.metrics.temperature import apply_temperature, fit_temperature
from maxsup_hf.metrics.texts import chrf, perplexity

__all__ = [
    "CORRUPTIONS",
    "CalibrationMetrics",
    "FeatureGeometry",
    "LogitMetrics",
    "NearestCentre",
    "ProbeResult",
    "ReliabilityCurve",
    "accuracy",
    "adaptive_ece",
    "answer_f1",
    "apply_temperature",
    "brier",
    "chrf",
    "classwise_ece",
    "confidence_when_wrong",
    "confusion_matrix",
    "corrupt",
    "ece",
    "effective_rank",
    "entities",
    "entity_f1",
    "error_auroc",
    "exact_match",
    "feature_geometry",
    "fit_temperature",
    "is_bio",
    "knn_accuracy",
    "linear_probe",
    "long_tailed_counts",
    "long_tailed_subset",
    "margin",
    "mce",
    "mean_iou",
    "near_zero_share",
    "nll",
    "normalize_answer",
    "ood_auroc",
    "perplexity",
    "pixel_accuracy",
    "reliability_curve",
    "shot_accuracy",
    "top_margin",
]
