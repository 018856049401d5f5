"""Accuracy of classes with many, medium and few training rows, for models trained on long-tailed data.

A module of `evaluate` around `maxsup_hf.metrics.robustness`, which does the work.
"""

import evaluate

from maxsup_hf.hub.evaluate_modules import metric_info
from maxsup_hf.metrics._rows import as_class_indices
from maxsup_hf.metrics.robustness import shot_accuracy

INPUTS = """
Args:
    predictions: (N,) predicted classes of a test set, in [0, K).
    references: (N,) labels.
    train_counts: (K,) training rows of each class.
    many: a class with more training rows than this has many.
    few: a class with fewer training rows than this has few.
"""

CITATION = """@inproceedings{liu2019large,
  title={Large-Scale Long-Tailed Recognition in an Open World},
  author={Liu, Ziwei and Miao, Zhongqi and Zhan, Xiaohang and Wang, Jiayun and Gong, Boqing and Yu, Stella X.},
  booktitle={CVPR},
  year={2019}
}"""


class MaxsupRobustness(evaluate.Metric):
    def _info(self):
        return metric_info(__doc__, CITATION, INPUTS, predictions="float64", references="float64")

    def _compute(self, predictions, references, train_counts, many=100, few=20):
        guesses, truths = as_class_indices(predictions, "predictions"), as_class_indices(references, "references")
        return shot_accuracy(guesses, truths, train_counts, many=many, few=few)
