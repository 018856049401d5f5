"""Callbacks that log more than the loss during training."""

from __future__ import annotations

from collections.abc import Mapping
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


class WrongRowsCallback(TrainerCallback):
    """Counts the training rows that are predicted wrong at the time they are trained, in each tenth of the training.

    On a row whose top logit is the label's, MaxSup and label smoothing of the same alpha are the same, so the share of these
    rows tells how far the two losses can differ on some data. Rows are those of the cross-entropies: tokens of a language
    model, pixels of a segmentation; ignored ones are not counted. It costs one pass over the logits of each step.

    Args:
        trainer: a Trainer with `MaxSupMixin`.

    Attributes:
        counts: `wrong` and `rows` of each tenth of the steps, summed over micro-batches and processes; filled at the end of
            the training. After early stopping the last tenths are 0.

    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
        >>> from maxsup_hf.trainer.callbacks import WrongRowsCallback
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        >>> rows = [{"input_ids": [1, 2, k], "labels": k % 2} for k in range(8)]
        >>> args = MaxSupTrainingArguments(mkdtemp(), max_steps=10, report_to="none", disable_tqdm=True)
        >>> trainer = MaxSupTrainer(model, args, train_dataset=rows)
        >>> trainer.add_callback(wrong := WrongRowsCallback(trainer))
        >>> _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> wrong.counts["rows"]
        [8, 8, 8, 8, 8, 8, 8, 8, 8, 8]
    """

    PARTS = 10

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.counts: dict[str, list[int]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._training.patch.counts_wrong = True
        self._sums = torch.zeros(self.PARTS, 2, dtype=torch.int64, device=args.device)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._add(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._add(state.global_step - 1, state.max_steps)

    def _add(self, steps_before: int, max_steps: int) -> None:
        part = min(self.PARTS - 1, self.PARTS * steps_before // max(1, max_steps))
        counted = self.trainer._training.wrong
        if counted is not None:
            self._sums[part] += counted.to(self._sums.device)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wrong, rows = self.trainer.accelerator.reduce(self._sums, reduction="sum").unbind(1)
        self.counts = {"wrong": wrong.tolist(), "rows": rows.tolist()}


def evaluated_split(metrics: Mapping[str, Any]) -> str | None:
    """`eval`, `test`, … if these are the metrics of an evaluation."""
    return next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), None)


def _prefix(metrics: Mapping[str, Any]) -> str:
    """`""` for metrics named eval_…, `"test_"` for metrics named test_…"""
    name = evaluated_split(metrics) or "eval"
    return "" if name == "eval" else f"{name.removeprefix('eval_')}_"
