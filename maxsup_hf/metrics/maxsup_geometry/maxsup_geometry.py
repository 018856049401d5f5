"""Geometry of penultimate features: class separability, neural collapse, effective rank.

A module of `evaluate` around `maxsup_hf.metrics.geometry`, which does the work.
"""

import evaluate
import numpy as np

from maxsup_hf.hub.evaluate_modules import metric_info
from maxsup_hf.metrics._rows import as_class_indices
from maxsup_hf.metrics.geometry import feature_geometry

INPUTS = """
Args:
    predictions: (N, D) penultimate features.
    references: (N,) labels, from 0 on.
    num_classes: number of classes; default: rows of `classifier`, or the greatest label plus 1.
    classifier: (K, D) weight of the last layer, for `nc2_weight_…` and `nc3_self_duality`.
    predicted: (N,) classes that the network predicts, for `nc4_agreement`.
    missing: what to do with classes without a sample: `"raise"`, or `"skip"` them and list them.
"""

CITATION = """@inproceedings{kornblith2021why,
  title={Why Do Better Loss Functions Lead to Less Transferable Features?},
  author={Kornblith, Simon and Chen, Ting and Lee, Honglak and Norouzi, Mohammad},
  booktitle={NeurIPS},
  year={2021}
}
@article{papyan2020prevalence,
  title={Prevalence of neural collapse during the terminal phase of deep learning training},
  author={Papyan, Vardan and Han, X. Y. and Donoho, David L.},
  journal={PNAS},
  year={2020}
}"""


class MaxsupGeometry(evaluate.Metric):
    def _info(self):
        return metric_info(__doc__, CITATION, INPUTS, predictions=["float64"], references="float64")

    def _compute(self, predictions, references, num_classes=None, classifier=None, predicted=None, missing="raise"):
        found = feature_geometry(
            predictions,
            as_class_indices(references, "references"),
            num_classes=num_classes,
            classifier=None if classifier is None else np.asarray(classifier, np.float64),
            predictions=predicted,
            missing=missing,
        )
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}
