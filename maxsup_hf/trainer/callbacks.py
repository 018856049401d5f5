"""Callbacks that log more than the loss during training."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from maxsup_hf.metrics import FeatureGeometry
from maxsup_hf.trainer.features import extract


class FeatureGeometryCallback(TrainerCallback):
    """Logs the feature geometry of a classifier at each evaluation, so that feature collapse becomes a curve.

    It logs `feature_within` (within-class variation) and `feature_r2` (separability), described in
    `maxsup_hf.metrics.FeatureGeometry`, and adds them to the metrics that `evaluate` returns. After
    `trainer.evaluate(..., metric_key_prefix="test")` they are named `test_feature_within` and `test_feature_r2`. It supports
    heads with one class for each row (texts, images, audio).

    It costs one more forward pass over the evaluation data, which distributed processes share.

    Args:
        trainer: any `transformers.Trainer`.

    Raises:
        ValueError: (at the first evaluation) the model has no classifier layer, the evaluation data has fewer than two
            classes, or the features are NaN.

    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> from maxsup_hf.trainer.callbacks import FeatureGeometryCallback
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        >>> rows = [{"input_ids": [1, 2, k], "labels": k % 2} for k in range(6)]
        >>> trainer = Trainer(model, TrainingArguments(mkdtemp()), eval_dataset=rows)
        >>> trainer.add_callback(FeatureGeometryCallback(trainer))
        >>> [name for name in trainer.evaluate() if "feature" in name]
        ['feature_within', 'feature_r2']
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        trainer = self.trainer
        batches = map(trainer._prepare_inputs, kwargs["eval_dataloader"])
        geometry: FeatureGeometry | None = None
        # Iterating over a data loader draws a seed. Training must continue as if that had not happened.
        with torch.random.fork_rng(devices=[]), trainer.compute_loss_context_manager():
            for rows in extract(kwargs["model"], batches):
                features, labels = (x.to(args.device) for x in (rows.features, rows.labels))
                features, labels = trainer.accelerator.gather_for_metrics((features, labels))
                geometry = geometry or FeatureGeometry(rows.logits.shape[1], scatter=False)
                geometry.update(features, labels)
        if geometry is None:
            return
        computed = geometry.compute(missing="skip")
        prefix = _prefix(metrics or {})
        logs = {f"{prefix}feature_within": computed["d_within"], f"{prefix}feature_r2": computed["r2"]}
        if metrics is not None:
            metrics |= logs
        trainer.log(dict(logs))


def _prefix(metrics: dict[str, float]) -> str:
    """`""` for metrics named eval_…, `"test_"` for metrics named test_…"""
    name = next((key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")), "eval")
    return "" if name == "eval" else f"{name.removeprefix('eval_')}_"
