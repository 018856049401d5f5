"""Accuracy, proper scores and calibration errors of logits, and whether confidence tells right from wrong.

A module of `evaluate` around `maxsup_hf.metrics.calibration`, which does the work.
"""

import datasets
import evaluate

from maxsup_hf.metrics.calibration import CalibrationMetrics

INPUTS = """
Args:
    predictions: (N, K) logits.
    references: (N,) labels in [0, K).
    bins: bins of confidence.
"""

CITATION = """@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={ICML},
  year={2017}
}"""


class MaxsupCalibration(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, bins=15):
        metrics = CalibrationMetrics(bins)
        metrics.update(predictions, references)
        return metrics.compute()
