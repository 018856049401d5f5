"""Accuracy, proper scores and calibration errors of logits, and whether confidence tells right from wrong.

A module of `evaluate` around `maxsup_hf.metrics.calibration`, which does the work.
"""

import evaluate

from maxsup_hf.hub.evaluate_modules import metric_info
from maxsup_hf.metrics._rows import as_class_indices
from maxsup_hf.metrics.calibration import CalibrationMetrics

INPUTS = """
Args:
    predictions: (N, K) logits; probabilities are refused.
    references: (N,) labels in [0, K).
    bins: number of bins of confidence.
"""

CITATION = """@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={ICML},
  year={2017}
}"""


class MaxsupCalibration(evaluate.Metric):
    def _info(self):
        return metric_info(__doc__, CITATION, INPUTS, predictions=["float64"], references="float64")

    def _compute(self, predictions, references, bins=15):
        metrics = CalibrationMetrics(bins)
        metrics.update(predictions, as_class_indices(references, "references"))
        return metrics.compute()
