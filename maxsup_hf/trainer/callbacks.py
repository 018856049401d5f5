"""What may be watched during training beside the loss."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from maxsup_hf.metrics import FeatureGeometry
from maxsup_hf.trainer.features import extract


class FeatureGeometryCallback(TrainerCallback):
    """Logs how far the features of a class have collapsed, at each evaluation, so that collapse is a curve.

        trainer.add_callback(FeatureGeometryCallback(trainer))

    Logged are `feature_within` (within-class variation) and `feature_r2` (separability), see
    `maxsup_hf.metrics.FeatureGeometry`; after `trainer.evaluate(..., metric_key_prefix="test")` `test_feature_within` and
    `test_feature_r2`. They are in what `evaluate` returns, too. For heads with one class a row (texts, images, audio).

    It takes one more forward pass over the evaluation data. Of several processes each does its share, and all know the
    result.

    Args:
        trainer: any `transformers.Trainer`.

    Raises:
        ValueError: (at the first evaluation) the model has no classifier layer, fewer than two classes are in the
            evaluation data, or its features are NaN.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        trainer = self.trainer
        batches = map(trainer._prepare_inputs, kwargs["eval_dataloader"])
        geometry: FeatureGeometry | None = None
        # A data loader draws a seed when it starts: training goes on as if it had not been started once more.
        with torch.random.fork_rng(devices=[]), trainer.compute_loss_context_manager():
            for rows in extract(kwargs["model"], batches):
                features, labels = (x.to(args.device) for x in (rows.features, rows.labels))
                features, labels = trainer.accelerator.gather_for_metrics((features, labels))
                geometry = geometry or FeatureGeometry(rows.logits.shape[1], scatter=False)
                geometry.update(features, labels)
        if geometry is None:
            return
        found = geometry.compute(missing="skip")
        prefix = _prefix(metrics or {})
        logs = {f"{prefix}feature_within": found["d_within"], f"{prefix}feature_r2": found["r2"]}
        if metrics is not None:
            metrics |= logs
        trainer.log(dict(logs))


def _prefix(metrics: dict[str, float]) -> str:
    """`""` for the evaluation data, `"test_"` where all metrics are called test_…"""
    name = next((key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")), "eval")
    return "" if name == "eval" else f"{name.removeprefix('eval_')}_"
