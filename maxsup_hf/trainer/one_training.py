"""The loss of one training, with everything that is created when the training starts and removed when it ends.

A Trainer may train several times (a second `train()`, `model_init`, `hyperparameter_search`, `auto_find_batch_size`), each
time with another model, loss or batch size. No state may carry over from one training to the next.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from maxsup_hf.losses import Loss
from maxsup_hf.trainer.cross_entropy_patch import CrossEntropyCall, CrossEntropyPatch
from maxsup_hf.trainer.diagnosis import explain_error, explain_untrained, has_own_compute_loss
from maxsup_hf.trainer.lm_head_patch import NeedsLogitsError, lazy_output, output_embedding
from maxsup_hf.trainer.normalization import AccumulatedBatch
from maxsup_hf.trainer.validation import shifts_labels
from maxsup_hf.trainer.votes import Votes


class OneTraining:
    """The loss of one training, its patch and hooks, and the parts of the loss since the last log.

    Attributes:
        loss: the loss that is trained.
        patch: replaces the cross-entropy of each training step by it.
        samples: the micro-batches of the current accumulated batch.
        steps: number of training steps that ran with this loss.
        class_weights: (K,) class weights that were used, including those of a cross-entropy in the user's own code, or
            `None`.
        wrong: (2,) int64, rows of the last micro-batch that were predicted wrong, and all of its rows; `None` unless the
            patch counts them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        class_weights: Tensor | None = None,
        fused: bool = False,
        owner: type = object,
    ):
        """
        Args:
            model: the model, not wrapped for distributed training.
            loss: made for this training.
            class_weights: (K,) of the training arguments, or `None`.
            fused: whether the loss is computed from a language model's hidden states, without its logits.
            owner: the Trainer's class. Its files may have imported the cross-entropy by name.
        """
        self.model, self.loss, self.fused, self.owner = model, loss, fused, owner
        self.shifts = shifts_labels(model)
        self.patch = CrossEntropyPatch(loss, class_weights, self.shifts)
        self.votes = Votes(model) if loss.needs_votes else None
        self.patch.votes = self.votes
        self.steps = 0
        self.samples: Sequence[Any] | None = None
        self.wrong: Tensor | None = None
        self._is_checked = False  # whether this step was checked before its backward
        self._micro_batches_done = 0
        self._parts: dict[str, Tensor] = {}  # summed over the optimizer steps since the last log
        self._logged_steps = 0.0

    @property
    def class_weights(self) -> Tensor | None:
        return self.patch.weight_used

    def end(self) -> None:
        """Remove the hooks from the model."""
        if self.votes is not None:
            self.votes.remove()

    # ---- the training step ----

    @property
    def batch_is_done(self) -> bool:
        """Whether all micro-batches of the current accumulated batch were trained."""
        return self.samples is None or self._micro_batches_done >= len(self.samples)

    def begin_batch(self, samples: Sequence[Any], batch: AccumulatedBatch) -> None:
        """Go on to the next accumulated batch."""
        self.samples, self.patch.batch, self._micro_batches_done = samples, batch, 0

    def step(
        self,
        run: Callable[[], Tensor],
        model: nn.Module,
        targets: dict[str, Tensor],
        soft_labels: Tensor | None,
        progress: float,
        replicas: int = 1,
    ) -> Tensor:
        """Run one training step, forward and backward, with this loss, and check that the loss was trained.

        Args:
            run: the step. Returns its loss.
            model: as it is called in the step.
            targets: `class_targets` of the micro-batch.
            soft_labels: (..., K) class probabilities, or `None`.
            progress: fraction of the training that is done.
            replicas: number of replicas of the model under torch's DataParallel.

        Raises:
            ValueError: the loss was not trained, or its gradient depends on how the batch is split.
        """
        self._prepare(targets, soft_labels, progress)
        try:
            loss = self._run(run, model)
        except Exception as error:
            explanation = self._explain(error)
            if explanation is None:
                raise
            raise ValueError(explanation) from error
        finally:
            self.patch.soft_labels = None
        self.steps += 1
        trained = self.patch.trained_calls()
        if not self._is_checked:
            self._check_step(trained, replicas)
        self._add_parts([call for _, call in trained])
        counts = [call.wrong.to(loss.device) for _, call in trained if call.wrong is not None]
        self.wrong = torch.stack(counts).sum(0) if counts else None
        return loss

    def _prepare(self, targets: dict[str, Tensor], soft_labels: Tensor | None, progress: float) -> None:
        self.patch.set_progress(progress)
        self.patch.micro_batch, self.patch.soft_labels = targets, soft_labels
        self._is_checked = False

    def _run(self, run: Callable[[], Tensor], model: nn.Module) -> Tensor:
        fused = lazy_output(output_embedding(self.model)) if self.fused else nullcontext()
        with self.patch.opened(model, self.owner), fused:
            return run()

    def _explain(self, error: Exception) -> str | None:
        if isinstance(error, NeedsLogitsError):
            return f"fused_linear_loss cannot serve {type(self.model).__name__}, which {error}: leave fused_linear_loss out"
        return explain_error(error, self.model, self.patch)

    # ---- checks of a step ----

    def check_before_backward(self, loss: Tensor, replicas: int = 1) -> None:
        """The checks of `step`, for a backward that updates the weights itself (DeepSpeed, LOMO)."""
        self._check_step(self.patch.trained_calls(loss), replicas)
        self._is_checked = True

    def _check_step(self, trained: list[tuple[int, CrossEntropyCall]], replicas: int) -> None:
        try:
            self._check_is_trained([call for _, call in trained])
            self._check_normalization(trained, replicas)
        except ValueError:
            self.model.zero_grad()
            raise

    def _check_is_trained(self, trained: Sequence[CrossEntropyCall]) -> None:
        if not trained:
            raise ValueError(explain_untrained(self.patch, self.model, self.owner))
        if has_own_compute_loss(self.owner) and any(call.node is None for call in trained):
            warnings.warn(
                f"{self.owner.__name__}.compute_loss computes its own loss of a compiled model: whether that depends on the "
                f"cross-entropy inside the model's graph, which is loss={self.loss.spec.name!r}, cannot be checked",
                stacklevel=2,
            )
        if self.fused and not any(call.fused for call in trained):
            raise ValueError(
                f"fused_linear_loss cannot serve {type(self.model).__name__}, whose loss is not computed from the result of "
                "its output embedding: leave fused_linear_loss out"
            )

    def _check_normalization(self, trained: Sequence[tuple[int, CrossEntropyCall]], replicas: int) -> None:
        batch = self.patch.batch
        if batch is None or batch.is_undivided:
            return
        self._micro_batches_done += 1
        is_last = self._micro_batches_done == len(batch.micro_batches)
        for call_index, call in trained:
            index = call_index // replicas  # DataParallel computes each cross-entropy of the forward once per replica
            if call_index in self.patch.upstream:
                batch.check_upstream(index, self.patch.upstream[call_index], call.reduction, is_last)
            source, counted, expected, _ = call.label_count
            if source is not None and counted is not None and expected is not None:
                batch.report(index, source, counted, expected)
        if is_last:
            batch.check_counts()

    # ---- logging ----

    def _add_parts(self, calls: Sequence[CrossEntropyCall]) -> None:
        """Add the parts of this micro-batch's loss to the next log, weighted as the Trainer weights the loss itself."""
        parts = {
            "train_cross_entropy": [call.output.cross_entropy for call in calls],
            "train_penalty": [call.output.penalty for call in calls],
        }
        if "+" in self.loss.spec.name:
            for name in self.loss.spec.name.split("+"):
                parts[f"train_penalty_{name}"] = [call.output.penalties[name] for call in calls]
        share = 1 / (len(self.samples) if self.samples else 1)
        for name, values in parts.items():
            mean = torch.stack([value.mean() for value in values]).mean().float()
            self._parts[name] = self._parts.get(name, 0) + share * mean
        self._logged_steps += share

    def take_parts(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> Mapping[str, float]:
        """The parts of the loss since the last log, averaged over steps and ranks. Resets them."""
        if not self._logged_steps:  # the log of a loss that was not trained here
            return {}
        names = list(self._parts)
        values = mean_over_ranks(torch.stack([self._parts[name] for name in names]) / self._logged_steps).tolist()
        self._parts, self._logged_steps = {}, 0.0
        parameters = {f"loss_{name}": value.item() for name, value in self.patch.values.items()}
        return dict(zip(names, values, strict=True)) | parameters
