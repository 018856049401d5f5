"""Metrics as pure functions on arrays and tensors, independent of models and the Trainer.

`CalibrationMetrics`, `LogitMetrics` and `FeatureGeometry` take a data set in batches, and each is a `compute_metrics` for
the Trainer. The folders hold the same metrics as modules of the `evaluate` library:
`evaluate.load(f"{maxsup_hf.metrics.__path__[0]}/maxsup_geometry")`.

`METRICS` has a record of each metric (name, label, better end, formula, paper), from which tables, reports, model cards and
documentation take what they say.

To add a metric of classifiers, change the file that computes it, say `calibration.py`:

1. Write the function, on logits and labels.
2. Add its record to `register_metrics` in the same file. With a `rank` it becomes a column of comparisons, with a figure and
   paired tests; without one it stands in their table of all metrics.
3. Add its value, under the name of the record, to `compute` of the class in that file that takes batches (in `logits.py`,
   whose metrics are means over rows, to `add`).

Training then reports it as `eval_NAME`; model cards, `maxsup-hf compare` and `maxsup-hf analyze` show it. A test is due in
`tests/metrics`. A metric of your own `compute_metrics` needs a record only: `register_metrics(Metric("top5", "top-5"))`.
"""

from maxsup_hf.metrics._records import METRICS, Metric, get_metric, register_metrics
from maxsup_hf.metrics.answers import answer_f1, exact_match, normalize_answer
from maxsup_hf.metrics.calibration import (
    CalibrationMetrics,
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
from maxsup_hf.metrics.class_scores import ClassScores, balanced_accuracy, macro_f1, per_class
from maxsup_hf.metrics.classification import accuracy
from maxsup_hf.metrics.geometry import FeatureGeometry, feature_geometry
from maxsup_hf.metrics.logits import LogitMetrics, margin, near_zero_share, top_margin
from maxsup_hf.metrics.neural_collapse import NearestCentre
from maxsup_hf.metrics.probe import ProbeResult, knn_accuracy, linear_probe
from maxsup_hf.metrics.reliability import ReliabilityCurve
from maxsup_hf.metrics.robustness import CORRUPTIONS, corrupt, long_tailed_counts, long_tailed_subset, shot_accuracy
from maxsup_hf.metrics.segmentation import confusion_matrix, mean_iou, pixel_accuracy
from maxsup_hf.metrics.spans import entities, entity_f1, is_bio, per_entity
from maxsup_hf.metrics.spectrum import effective_rank
from maxsup_hf.metrics.temperature import apply_temperature, fit_temperature
from maxsup_hf.metrics.texts import chrf, perplexity

__all__ = [
    "CORRUPTIONS",
    "METRICS",
    "CalibrationMetrics",
    "ClassScores",
    "FeatureGeometry",
    "LogitMetrics",
    "Metric",
    "NearestCentre",
    "ProbeResult",
    "ReliabilityCurve",
    "accuracy",
    "adaptive_ece",
    "answer_f1",
    "apply_temperature",
    "balanced_accuracy",
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
    "get_metric",
    "is_bio",
    "knn_accuracy",
    "linear_probe",
    "long_tailed_counts",
    "long_tailed_subset",
    "macro_f1",
    "margin",
    "mce",
    "mean_iou",
    "near_zero_share",
    "nll",
    "normalize_answer",
    "ood_auroc",
    "per_class",
    "per_entity",
    "perplexity",
    "pixel_accuracy",
    "register_metrics",
    "reliability_curve",
    "shot_accuracy",
    "top_margin",
]
