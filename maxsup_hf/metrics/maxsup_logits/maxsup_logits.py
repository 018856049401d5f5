"""Logits over an evaluation set: near-zero share, margins, and the two parts of label smoothing.

A module of `evaluate` around `maxsup_hf.metrics.logits`, which does the work.
"""

import evaluate

from maxsup_hf.hub.evaluate_modules import metric_info
from maxsup_hf.metrics._rows import as_class_indices
from maxsup_hf.metrics.logits import LogitMetrics

INPUTS = """
Args:
    predictions: (N, K) logits; probabilities are refused.
    references: (N,) labels in [0, K).
    alpha: smoothing of the decomposition, in [0, 1].
    threshold: a logit with |z| below this is near zero.
"""

CITATION = """@inproceedings{zhou2025maxsup,
  title={MaxSup: Overcoming Representation Collapse in Label Smoothing},
  author={Zhou, Yuxuan and Li, Heng and Cheng, Zhi-Qi and Yan, Xudong and Dong, Yifei and Fritz, Mario and Keuper, Margret},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025}
}"""


class MaxsupLogits(evaluate.Metric):
    def _info(self):
        return metric_info(__doc__, CITATION, INPUTS, predictions=["float64"], references="float64")

    def _compute(self, predictions, references, alpha=0.1, threshold=0.01):
        metrics = LogitMetrics(alpha, threshold)
        metrics.update(predictions, as_class_indices(references, "references"))
        return metrics.compute()
