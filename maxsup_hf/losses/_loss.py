"""A registered formula with its parameters, as a module on logits and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maxsup_hf.losses._compute import Reduction, evaluate, in_one_call
from maxsup_hf.losses._inputs import check_inputs, in_layout, normalized
from maxsup_hf.losses._reduction import check_reduction, split_ignored, summed_weight
from maxsup_hf.losses._registry import get_spec
from maxsup_hf.losses._schedules import SCHEDULES, interpolate
from maxsup_hf.losses._spec import LossSpec, prefix_of
from maxsup_hf.ops import backends
from maxsup_hf.ops.inputs import NONE_IGNORED, gathered
from maxsup_hf.ops.row_stats import masked_classes, upcast


class _Reduced(NamedTuple):
    loss: Tensor
    cross_entropy: Tensor


class LossOutput(_Reduced):
    """A reduced loss and, detached, the plain cross-entropy in it; what is left is the penalty.

    Attributes:
        name: of the loss.
        summands: for a sum of losses, the penalty of each.
    """

    name: str
    summands: Mapping[str, Tensor] | None

    def __new__(
        cls, loss: Tensor, cross_entropy: Tensor, name: str = "", summands: Mapping[str, Tensor] | None = None
    ) -> LossOutput:
        output = super().__new__(cls, loss, cross_entropy)
        output.name, output.summands = name, summands
        return output

    def map(self, function: Callable[[Tensor], Tensor]) -> LossOutput:
        """The same with a function applied to each tensor."""
        of_summands = None if self.summands is None else {name: function(x) for name, x in self.summands.items()}
        return LossOutput(function(self.loss), function(self.cross_entropy), self.name, of_summands)

    @property
    def penalty(self) -> Tensor:
        return self.loss.detach() - self.cross_entropy

    @property
    def penalties(self) -> dict[str, Tensor]:
        """Name of each summand -> what it adds to the cross-entropy, reduced and detached; they add up to `penalty`."""
        if self.summands is None:
            return {self.name: self.penalty}
        rest = self.penalty - sum(self.summands.values())  # of the one summand whose target term is not the cross-entropy
        return {name: self.summands.get(name, rest) for name in (part.strip() for part in self.name.split("+"))}


class Loss(nn.Module):
    """A loss of the registry; made by `create_loss`. It has no parameters to learn and no buffers.

    Attributes:
        spec: what the registry knows of it.
        kwargs: every keyword argument of `create_loss`, defaults filled in.
        options: those that are words or switches.
        state: what the loss remembers from batch to batch (online label smoothing), or `None`. It belongs to the loss, not
            to a model's state_dict.
    """

    def __init__(self, spec: LossSpec, **kwargs: Any):
        super().__init__()
        self.spec = spec
        self.kwargs = spec.resolve(kwargs)
        self.options = {name: self.kwargs[name] for name in spec.options}
        self.state = spec.state() if spec.state else None
        self._constant: dict[str, float] | None = None
        values = self.values(0.0)  # a schedule that lacks what it needs says so here
        if not self.is_scheduled:
            self._constant = values

    def extra_repr(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.kwargs.items() if v is not None)
        return ", ".join(filter(None, (repr(self.spec.name), given)))

    def values(self, progress: float) -> dict[str, float]:
        """The numeric parameters at this point of training.

        Args:
            progress: share of training that is done, in [0, 1].

        Raises:
            ValueError: `progress` outside [0, 1], or an epoch-wise schedule without `epochs`.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], the share of training that is done, got {progress!r}")
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
        """Whether it must be given votes of the last feature map."""
        return any(option is None or self.options[option] for option in self.spec.votes)

    def check_row_numbers(self, what: str) -> None:
        """Refuse, for a way to compute losses that has no logits, a loss that needs them.

        Args:
            what: the way, for the message.

        Raises:
            ValueError: names the loss.
        """
        if self.spec.needs_logits:
            raise ValueError(
                f"{what} computes a loss from row statistics, but {self.spec.name!r} needs the logits themselves: take "
                f"another loss, or leave {what} out"
            )

    def end_epoch(self, epochs: int, all_reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Tell a loss with a state that so many epochs are done; others have nothing to do.

        Args:
            epochs: whole epochs done. What was learned from an epoch is used once, however often this is called.
            all_reduce: sums a tensor over ranks, where there are several. All ranks must call this alike.
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
                DTensor is gathered (`vocab_parallel_loss` does not).
            labels: (...) integer class indices, or (..., K) class probabilities.
            progress: share of training that is done, in [0, 1]; sets scheduled parameters.
            num_items_in_batch: what to divide the sum by, instead of the number of counted rows of this batch.
            reduction: `"mean"`, `"sum"`, or `"none"` for a tensor of the shape of one label per row.
            ignore_index: label of ignored rows.
            weight: (K,) class weights w. Cross-entropy and label smoothing are then those of
                `torch.nn.functional.cross_entropy(weight=w, label_smoothing=α)`: for integer labels the mean divides their
                sum by Σ w_label. Penalties are not weighted, except one that may be negative (`ls_error_amplification`).
            votes: (..., P) class indices that the P positions of the last feature map vote for; only for a loss that asks
                for them (`zipf_label_smoothing` with `dense=True`).
            kernel: `"auto"`, the fastest that serves, or what the environment variable MAXSUP_HF_KERNEL says; `"plain"`,
                the reference implementation; `"cpu"`, compiled by numba (in torch operations where numba is missing);
                `"triton"`, for tensors on an NVIDIA GPU. Under torch.compile `"auto"` is an operator in the graph.

        Returns:
            float32 (float64 for float64 logits); gradients to `logits` come in its dtype.

        Raises:
            TypeError, ValueError: shapes, dtypes or labels that do not fit, or a kernel that cannot serve; the message says
                what was expected.
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
        """As `forward`, with the parameters' values given (numbers, or 0-dim tensors so that a compiled graph serves a
        whole schedule), returning the cross-entropy beside the loss.

        Args:
            weight_in_batch: with `weight` and integer labels, what the weighted sum is divided by, while
                `num_items_in_batch` divides the sum of the penalties. Default: `num_items_in_batch` divides both.
        """
        check_reduction(reduction, num_items_in_batch, weight_in_batch)
        values = {**values, **self.options}
        if kernel == "auto" == backends.DEFAULT and weight is None and weight_in_batch is None:
            made = in_one_call(self.spec, values, logits, labels, num_items_in_batch, reduction, ignore_index)
            if made is not None:
                return LossOutput(*made, self.spec.name)
        logits, labels, weight, votes = (gathered(x) for x in (logits, labels, weight, votes))
        labels, weight = normalized(labels, weight, logits)
        all_count = check_inputs(logits, labels, ignore_index, weight)
        self._check_serves(labels, weight, weight_in_batch, kernel)
        spec, soft = self.spec, labels.is_floating_point()
        backend = backends.choose(kernel, logits)
        rows = in_layout(logits)
        if soft:
            target = labels.movedim(-1, 1).flatten(2) if rows.ndim == 3 else labels.reshape(rows.shape)
        else:
            target = labels.reshape(-1)
        valid = None if all_count else target != ignore_index
        inputs: dict[str, Any] = {}
        row_weight = None
        if weight is not None and not soft:
            row_weight = weight[target if valid is None else torch.where(valid, target, 0)]
        if spec.needs_logits:
            rows, target, inputs = self._with_logits(logits, target, ignore_index, votes)
            ignore_index = NONE_IGNORED
        if weight is not None and soft:
            target = target * (weight if rows.ndim == 2 else weight[:, None])
        reduced = Reduction(reduction, valid, row_weight, num_items_in_batch, weight_in_batch)
        given: Any = (values, rows, target, reduced)
        by: Any = {"inputs": inputs, "ignore_index": ignore_index, "backend": backend}
        formula = spec.formula if weight is None else spec.weighted
        loss, entropy, summands = evaluate(formula, spec.arguments, *given, summands=spec.summands(weight is not None), **by)
        if weight is not None and spec.spread is not None:
            loss = loss + self._spread(weight, *given, **by)
        shape = logits.shape[:-1]

        def shaped(term: Tensor) -> Tensor:
            return term.reshape(shape) if reduction == "none" else term

        named = {name: shaped(term) for name, term in summands.items()} if len(spec.parts) > 1 else None
        return LossOutput(shaped(loss), shaped(entropy), spec.name, named)

    def _check_serves(self, labels: Tensor, weight: Tensor | None, weight_in_batch: Any, kernel: str) -> None:
        """Refuse labels, class weights and kernels that this loss has no meaning for."""
        spec, soft = self.spec, labels.is_floating_point()
        if soft and "labels" in spec.arguments:
            raise ValueError(
                f"loss {spec.name!r} needs integer labels, got soft ones ({labels.dtype}): it asks which class is the "
                "true one. Leave out Mixup, CutMix and other soft labels, or take another loss"
            )
        if soft and weight is not None and not spec.weighs_soft_labels:
            raise ValueError(
                f"weight cannot be combined with soft labels in loss {spec.name!r}, of which class weights would scale a "
                "term that is not a sum over classes: leave class weights out, or use integer labels"
            )
        if weight_in_batch is not None and (soft or weight is None):
            raise ValueError(
                "weight_in_batch divides a sum that class weights scale, so it needs weight and integer labels, got "
                f"{'no weight' if weight is None else 'weight'} and labels of {labels.dtype}; leave it out"
            )
        if spec.needs_logits and kernel in ("cpu", "triton"):
            raise ValueError(
                f"kernel={kernel!r} cannot compute loss {spec.name!r} here: it serves losses on row statistics, and this "
                "one needs the logits themselves; use kernel='auto'"
            )

    def _with_logits(
        self, logits: Tensor, target: Tensor, ignore_index: int, votes: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Rows, target and inputs of a formula that takes the logits: upcast once, so that the parts of the gradient are
        added before they are rounded; masked classes hold −inf, ignored rows zeros."""
        rows = logits.reshape(-1, logits.shape[-1])
        target = target if target.ndim == 1 else target.movedim(1, -1).reshape(rows.shape)
        valid, target = split_ignored(target, ignore_index)
        z = torch.where(valid[:, None], upcast(rows), 0)
        masked = masked_classes(z)
        if not target.is_floating_point():  # a label that far below the top has a loss, however large
            masked = masked.scatter(1, target[:, None], False)
        z = z.masked_fill(masked, -torch.inf)
        if self.state is not None and self.training:
            self.state.add(z.detach(), target, valid)
        votes = None if votes is None else votes.reshape(-1, votes.shape[-1])
        return z, target, {"logits": z, "target": target, "labels": target, "votes": votes, "state": self.state}

    def _spread(self, weight: Tensor, values: Any, rows: Tensor, target: Tensor, reduced: Reduction, **by: Any) -> Tensor:
        """What a loss that smooths the label adds with class weights: cross-entropy against the weights."""
        flat = rows if rows.ndim == 2 else rows.movedim(1, -1).reshape(-1, rows.shape[1])
        if reduced.valid is not None:
            flat = torch.where(reduced.valid[:, None], flat, 0)
        kept = ~masked_classes(flat)
        uniform = torch.where(kept, weight, 0) / kept.sum(-1, keepdim=True).clamp_min(1)
        items = reduced.items if reduced.weight_in_batch is None else reduced.weight_in_batch
        if items is None and reduced.row_weight is not None and reduced.kind == "mean":
            items = summed_weight(reduced.row_weight, reduced.valid)
        reduced = Reduction(reduced.kind, reduced.valid, items=items)
        by |= {"inputs": {}, "summands": {}}
        assert self.spec.spread is not None
        return evaluate(self.spec.spread, ("cross_entropy", "classes"), values, flat, uniform, reduced, **by)[0]


def create_loss(name: str, **kwargs: Any) -> Loss:
    """Make a registered loss.

        loss = create_loss("maxsup", alpha=0.1, alpha_end=0.2)
        loss(logits, labels, progress=0.5).backward()

    Args:
        name: one of `list_losses()`, or a sum of them, as `"maxsup+z_loss"`.
        **kwargs: its parameters. Every numeric parameter `p` also has `p_end`, which it reaches at the end of training
            (`None` keeps it constant), by `schedule`: `"linear"`, `"cosine"`, `"warmup"` (linear in the first
            `warmup_ratio` of training, then the end), or epoch-wise `"epoch/T"` (also `"epoch"`) and `"epoch/(T-1)"`, for
            which `epochs` is T; `"constant"` keeps everything at its start. For a sum of losses, `"maxsup+z_loss"`, the
            arguments of each: `maxsup={"alpha": 0.1}, z_loss={"lam": 1e-4}`.

    Raises:
        ValueError: unknown name (the message names the nearest), or a value that is NaN, infinite or out of bounds.
        TypeError: a parameter that the loss does not have, or a value of a wrong type.
    """
    return Loss(get_spec(name), **kwargs)
