"""Transfer of frozen features: a linear probe, and nearest neighbours.

A module of `evaluate` around `maxsup_hf.metrics.probe`, which does the work.
"""

import evaluate
import numpy as np

from maxsup_hf.hub.evaluate_modules import metric_info
from maxsup_hf.metrics._rows import as_class_indices
from maxsup_hf.metrics.probe import L2_GRID, knn_accuracy, linear_probe

INPUTS = """
Args:
    predictions: (N, D) frozen features.
    references: (N,) labels.
    split: (N,) `"train"`, `"validation"` or `"test"`, of each row.
    l2: strengths to choose from on the validation rows; default: 45 log-spaced values in 1e-6…1e5.
    k: number of neighbours.
"""

CITATION = """@inproceedings{kornblith2021why,
  title={Why Do Better Loss Functions Lead to Less Transferable Features?},
  author={Kornblith, Simon and Chen, Ting and Lee, Honglak and Norouzi, Mohammad},
  booktitle={NeurIPS},
  year={2021}
}"""


class MaxsupProbe(evaluate.Metric):
    def _info(self):
        return metric_info(__doc__, CITATION, INPUTS, predictions=["float64"], references="float64", split="string")

    def _compute(self, predictions, references, split, l2=None, k=20):
        predictions, split = np.asarray(predictions), np.asarray(split)
        references = as_class_indices(references, "references")
        if unknown := set(split.tolist()) - {"train", "validation", "test"}:
            raise ValueError(f"split must be 'train', 'validation' or 'test', got {sorted(unknown)}")
        parts = {name: (predictions[split == name], references[split == name]) for name in ("train", "validation", "test")}
        probe = linear_probe(*parts["train"], *parts["validation"], *parts["test"], l2=L2_GRID if l2 is None else l2)
        return {
            "linear_probe_accuracy": probe.accuracy,
            "l2": probe.l2,
            "knn_accuracy": knn_accuracy(*parts["train"], *parts["test"], k=k),
        }
