"""A registered loss with its parameters, as a module on logits and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maxsup_hf.losses._compute import Batch, Reduction, evaluate, in_one_call
from maxsup_hf.losses._inputs import check_inputs, check_supported, in_layout, labels_in_layout, normalized
from maxsup_hf.losses._output import LossOutput
from maxsup_hf.losses._reduction import check_reduction, split_ignored, summed_weight
from maxsup_hf.losses._registry import get_spec
from maxsup_hf.losses._schedules import SCHEDULES, interpolate
from maxsup_hf.losses._spec import LossSpec, prefix_of
from maxsup_hf.ops import backends
from maxsup_hf.ops.inputs import NONE_IGNORED, gathered
from maxsup_hf.ops.row_stats import as_rows, masked_classes, upcast


class Loss(nn.Module):
    """A registered loss, made by `create_loss`. It has no learnable parameters and no buffers.

    Attributes:
        spec: the registry's description of the loss.
        kwargs: every keyword argument of `create_loss`, with defaults filled in.
        options: those that are strings or booleans.
        state: what the loss keeps between batches (online label smoothing), or `None`. It belongs to the loss, and is in no
            model's state_dict.

    Example:
        >>> import torch
        >>> from maxsup_hf import create_loss
        >>> loss = create_loss("maxsup", alpha=0.1, alpha_end=None)
        >>> print(f"{loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1])):.3f}")
        1.508
    """

    def __init__(self, spec: LossSpec, **kwargs: Any):
        super().__init__()
        self.spec = spec
        self.kwargs = spec.resolve(kwargs)
        self.options = {name: self.kwargs[name] for name in spec.options}
        self.state = spec.state() if spec.state else None
        self._constant: dict[str, float] | None = None
        values = self.values(0.0)  # raises an error if a schedule lacks an argument
        if not self.is_scheduled:
            self._constant = values

    def extra_repr(self) -> str:
        given = [f"{key}={value!r}" for key, value in self.kwargs.items() if value is not None]
        return ", ".join([repr(self.spec.name), *given])

    def values(self, progress: float) -> dict[str, float]:
        """The values of the parameters at a point of training.

        Args:
            progress: fraction of training that is done, in [0, 1].

        Raises:
            ValueError: `progress` outside [0, 1], or an epoch-wise schedule without `epochs`.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], the fraction of training that is done, got {progress!r}")
        if self._constant is not None:
            return dict(self._constant)
        return {name: self._value(name, progress) for name in self.spec.parameters}

    def _value(self, name: str, progress: float) -> float:
        start, end, prefix = self.kwargs[name], self.kwargs[f"{name}_end"], prefix_of(name)
        if end is None:
            return start
        schedule, epochs, warmup = (self.kwargs[f"{prefix}{key}"] for key in ("schedule", "epochs", "warmup_ratio"))
        return interpolate(start, end, SCHEDULES[schedule](progress, epochs, warmup))

    @property
    def needs_votes(self) -> bool:
        """Whether `forward` needs votes of the last feature map."""
        return any(option is None or self.options[option] for option in self.spec.votes)

    def require_row_statistics(self, what: str) -> None:
        """Reject this loss in a computation that has only row statistics, if it needs the logits.

        Args:
            what: name of the computation, for the message.

        Raises:
            ValueError: the loss needs the logits.
        """
        if self.spec.needs_logits:
            raise ValueError(
                f"{what} computes a loss from row statistics, but {self.spec.name!r} needs the logits themselves: use "
                f"another loss, or do without {what}"
            )

    def end_epoch(self, epochs: int, all_reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Tell a loss with a state how many epochs are complete; for other losses this does nothing.

        Args:
            epochs: complete epochs so far. Each epoch is learned from once, however often this is called.
            all_reduce: sums a tensor over ranks, if there are several. All ranks must then call this together.
        """
        if self.state is not None:
            values = self.values(0.0) | self.options
            self.state.end_epoch(epochs, {key.rpartition(".")[2]: value for key, value in values.items()}, all_reduce)

    @property
    def is_scheduled(self) -> bool:
        """Whether any parameter changes over training."""
        return self.values(0.0) != self.values(1.0)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        progress: float = 0.0,
        num_items_in_batch: Tensor | float | None = None,
        reduction: str = "mean",
        *,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        votes: Tensor | None = None,
        kernel: str = "auto",
    ) -> Tensor:
        """The loss of a batch. In training mode (`loss.train()`, the default) a loss with a state also learns from it.

        Args:
            logits: (..., K), classes last as in transformers; floating. Arithmetic is float32 (float64 for float64). A
                DTensor is gathered (`vocab_parallel_loss` avoids this).
            labels: (...) integer class indices, or (..., K) class probabilities.
            progress: fraction of training that is done, in [0, 1]; sets scheduled parameters.
            num_items_in_batch: divides the sum, instead of the number of rows of this batch that are not ignored.
            reduction: `"mean"`, `"sum"`, or `"none"` for one value per row.
            ignore_index: label of ignored rows.
            weight: (K,) class weights w. Cross-entropy and label smoothing are then those of
                `torch.nn.functional.cross_entropy(weight=w, label_smoothing=α)`: for integer labels the mean divides their
                sum by Σ w_label. Penalties are not weighted, except one that may be negative (`ls_error_amplification`).
            votes: (..., P) class indices that the P positions of the last feature map vote for; only for a loss that needs
                them (`zipf_label_smoothing` with `dense=True`).
            kernel: `"auto"`, the fastest that supports the inputs, or the value of the environment variable
                MAXSUP_HF_KERNEL; `"plain"`, the reference implementation; `"cpu"`, compiled by numba (torch operations if
                numba is missing); `"triton"`, for tensors on an NVIDIA GPU. Under torch.compile `"auto"` is an operator in
                the graph.

        Returns:
            float32 (float64 for float64 logits); the gradient of `logits` has their dtype.

        Raises:
            TypeError, ValueError: invalid shapes, dtypes or labels, or a kernel that does not support the inputs; the
                message says what was expected.
        """
        return self.compute(
            logits,
            labels,
            self.values(progress),
            num_items_in_batch=num_items_in_batch,
            reduction=reduction,
            ignore_index=ignore_index,
            weight=weight,
            votes=votes,
            kernel=kernel,
        ).loss

    def compute(
        self,
        logits: Tensor,
        labels: Tensor,
        values: Mapping[str, Any],
        *,
        num_items_in_batch: Tensor | float | None = None,
        reduction: str = "mean",
        ignore_index: int = -100,
        weight: Tensor | None = None,
        weight_in_batch: Tensor | float | None = None,
        votes: Tensor | None = None,
        kernel: str = "auto",
    ) -> LossOutput:
        """As `forward`, with given values of the parameters, and returning the cross-entropy beside the loss.

        Args:
            values: floats, or 0-dim tensors, with which one compiled graph is enough for a complete schedule.
            weight_in_batch: with `weight` and integer labels, divides the weighted sum, while `num_items_in_batch` divides
                the sum of the penalties. Default: `num_items_in_batch` divides both.
        """
        check_reduction(reduction, num_items_in_batch, weight_in_batch)
        values = {**values, **self.options}
        if kernel == "auto" == backends.DEFAULT and weight is None and weight_in_batch is None:
            made = in_one_call(self.spec, values, logits, labels, num_items_in_batch, reduction, ignore_index)
            if made is not None:
                return LossOutput(*made, self.spec.name)
        logits, labels, weight, votes = (gathered(x) for x in (logits, labels, weight, votes))
        labels, weight = normalized(labels, weight, logits)
        none_ignored = check_inputs(logits, labels, ignore_index, weight)
        check_supported(self.spec, labels, weight, weight_in_batch, kernel)
        rows = in_layout(logits)
        target = labels_in_layout(labels, rows)
        valid = None if none_ignored else target != ignore_index
        row_weight = None
        if weight is not None and not labels.is_floating_point():
            row_weight = weight[target if valid is None else torch.where(valid, target, 0)]
        backend = backends.choose(kernel, logits)
        inputs: dict[str, Any] = {}
        if self.spec.needs_logits:
            rows, target, inputs = self._with_logits(logits, target, ignore_index, votes)
            ignore_index = NONE_IGNORED  # ignored rows hold zeros and a valid label now, and `valid` excludes them
        if weight is not None and labels.is_floating_point():
            target = target * (weight if rows.ndim == 2 else weight[:, None])
        reduced = Reduction(reduction, valid, row_weight, num_items_in_batch, weight_in_batch)
        batch = Batch(rows, target, reduced, inputs, ignore_index, backend)
        output = self._evaluate(values, batch, weight)
        if reduction == "none":
            output = output.map(lambda term: term.reshape(logits.shape[:-1]))
        return output

    def _evaluate(self, values: Mapping[str, Any], batch: Batch, weight: Tensor | None) -> LossOutput:
        spec, weighted = self.spec, weight is not None
        formula = spec.weighted if weighted else spec.formula
        loss, cross_entropy, summands = evaluate(formula, spec.arguments, values, batch, spec.summands(weighted))
        if weight is not None and spec.smoothing_term is not None:
            loss = loss + self._smoothing_term(weight, values, batch)
        return LossOutput(loss, cross_entropy, spec.name, summands if len(spec.parts) > 1 else None)

    def _with_logits(
        self, logits: Tensor, target: Tensor, ignore_index: int, votes: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Rows, target and inputs of a formula that takes the logits: −inf for masked classes, zeros in ignored rows.

        The logits are upcast once, so that the parts of their gradient are added before they are rounded.
        """
        rows = logits.reshape(-1, logits.shape[-1])
        target = target if target.ndim == 1 else as_rows(target)
        valid, target = split_ignored(target, ignore_index)
        z = torch.where(valid[:, None], upcast(rows), 0)
        masked = masked_classes(z)
        if not target.is_floating_point():  # a label is never masked: its loss is large, but not infinite
            masked = masked.scatter(1, target[:, None], False)
        z = z.masked_fill(masked, -torch.inf)
        if self.state is not None and self.training:
            self.state.add(z.detach(), target, valid)
        votes = None if votes is None else votes.reshape(-1, votes.shape[-1])
        return z, target, {"logits": z, "target": target, "labels": target, "votes": votes, "state": self.state}

    def _smoothing_term(self, weight: Tensor, values: Mapping[str, Any], batch: Batch) -> Tensor:
        """What a loss that smooths the label adds with class weights: cross-entropy against the target weight/K."""
        formula, reduced = self.spec.smoothing_term, batch.reduction
        assert formula is not None
        rows = as_rows(batch.rows)
        if reduced.valid is not None:
            rows = torch.where(reduced.valid[:, None], rows, 0)
        kept = ~masked_classes(rows)
        uniform = torch.where(kept, weight, 0) / kept.sum(-1, keepdim=True).clamp_min(1)
        # The weights are already in the target; the divisor is that of the weighted cross-entropy.
        items = reduced.items if reduced.weight_in_batch is None else reduced.weight_in_batch
        if items is None and reduced.row_weight is not None and reduced.kind == "mean":
            items = summed_weight(reduced.row_weight, reduced.valid)
        reduced = Reduction(reduced.kind, reduced.valid, items=items)
        smoothed = Batch(rows, uniform, reduced, {}, batch.ignore_index, batch.backend)
        return evaluate(formula, ("cross_entropy", "classes"), values, smoothed, {})[0]


def create_loss(name: str, **kwargs: Any) -> Loss:
    """Make a registered loss.

    Args:
        name: one of `list_losses()`, or a sum of losses such as `"maxsup+z_loss"`.
        **kwargs: parameters and options of the loss. Every numeric parameter `p` also has `p_end`, the value it reaches at
            the end of training (`None` keeps it constant). `schedule` says how: `"linear"`, `"cosine"`, `"warmup"` (linear
            for the first `warmup_ratio` of training, then constant), or epoch-wise `"epoch/T"` (also `"epoch"`) and
            `"epoch/(T-1)"`, where `epochs` is T; `"constant"` keeps all parameters at their start. For a sum of losses,
            the arguments of each: `maxsup={"alpha": 0.1}, z_loss={"lam": 1e-4}`.

    Raises:
        ValueError: an unknown name (the message suggests the closest), or a value that is NaN, infinite or out of bounds.
        TypeError: a parameter that the loss does not have, or a value of the wrong type.

    Example:
        >>> import torch
        >>> from maxsup_hf import create_loss
        >>> loss = create_loss("maxsup", alpha=0.1, alpha_end=0.2)
        >>> print(f"{loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]), progress=0.5):.3f}")
        1.558
    """
    return Loss(get_spec(name), **kwargs)
