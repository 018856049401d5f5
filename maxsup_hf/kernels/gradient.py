"""A loss with its gradient made beside it, differentiable by autograd, whatever computes the two.

The gradient is made in the forward, while the logits are at hand, and waits for the backward; but in the backward where that
would not do: in float16, in which α/(K·N) is 0 before a gradient scaler has multiplied it, for a loss of each row, and for a
second backward. A second derivative is that of the plain twin, `maxsup_hf.kernels.problem.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maxsup_hf.kernels.problem import ALL, Problem, Rows, plain


class Engine(NamedTuple):
    """What computes a loss and its gradient on a kind of device.

    Attributes:
        walk: (logits (..., K), target, problem, rows, grad) -> loss and cross-entropy. The gradient is written into `grad`,
            of the logits' shape, which may be the logits themselves; `None`, none is made.
        factor: 0-dim tensor -> what gradients are multiplied by: a number, where asking for it makes nobody wait.
        multiply: (grad, factor) -> their product, which may take the gradient's place.
    """

    walk: Callable[[Tensor, Tensor, Problem, Rows, Tensor | None], tuple[Tensor, Tensor]]
    factor: Callable[[Tensor], Any]
    multiply: Callable[[Tensor, Any], Tensor]


def loss_of_rows(
    engine: Engine, logits: Tensor, target: Tensor, problem: Problem, rows: Rows = ALL
) -> tuple[Tensor, Tensor]:
    """A loss on logits.

    Args:
        engine: for the logits' device.
        logits: (..., K), floating, in any layout.
        target: (...) class indices in [0, K), also in rows that take no part; or (..., K) class probabilities.
        problem, rows: see there.

    Returns:
        The loss, 0-dim or (...), and the plain cross-entropy in it, which has no gradient. float32, or float64 for float64
        logits. Gradients arrive in the logits' dtype.
    """
    # As numbers: a schedule may have filled its tensors anew when a backward comes back to the formula.
    values = {name: _number(value) for name, value in problem.values.items()}
    problem = problem._replace(values=values)
    wanted = logits.requires_grad and torch.is_grad_enabled()
    loss, cross_entropy = _Loss.apply(engine, logits, target, problem, rows, wanted)
    return loss, cross_entropy


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.device.type == "cpu" else value


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, engine: Engine, logits: Tensor, target: Tensor, problem: Problem, rows: Rows, wanted: bool
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.engine, ctx.problem, ctx.rows = engine, problem, rows
        ctx.save_for_backward(logits, target)
        # The gradient is there to be used up: the first backward takes it, a second one computes it again.
        ctx.gradient = None
        at_once = wanted and not problem.per_row and logits.dtype != torch.float16
        if at_once:
            ctx.gradient = torch.empty_like(logits)
        loss, cross_entropy = engine.walk(logits, target, problem, rows, ctx.gradient)
        ctx.mark_non_differentiable(cross_entropy)
        return loss, cross_entropy

    @staticmethod
    def backward(ctx, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return None, None, None, None, None, None
        logits, target = ctx.saved_tensors
        engine: Engine = ctx.engine
        problem: Problem = ctx.problem
        if torch.is_grad_enabled():  # create_graph=True: the twin is differentiated again
            return None, _plain_gradient(logits, target, problem, ctx.rows, upstream), None, None, None, None
        grad, ctx.gradient = ctx.gradient, None
        if grad is not None:
            return None, engine.multiply(grad, engine.factor(upstream)), None, None, None, None
        grad = torch.empty_like(logits)
        engine.walk(logits.detach(), target, *_times(engine, problem, ctx.rows, upstream), grad)
        return None, grad, None, None, None, None


def _times(engine: Engine, problem: Problem, rows: Rows, upstream: Tensor) -> tuple[Problem, Rows]:
    """The same loss, multiplied by what comes from above: one number, or one for each row."""
    if not problem.per_row:
        factor = engine.factor(upstream)
        scales = problem.label_scale * factor, problem.penalty_scale * factor
        return problem._replace(label_scale=scales[0], penalty_scale=scales[1]), rows
    counts = upstream != 0  # a row that nothing depends on gives zeros even where its logits are NaN
    return problem, Rows(
        valid=counts if rows.valid is None else rows.valid & counts,
        label_weight=upstream if rows.label_weight is None else rows.label_weight * upstream,
        penalty_weight=upstream if rows.penalty_weight is None else rows.penalty_weight * upstream,
    )


def _plain_gradient(logits: Tensor, target: Tensor, problem: Problem, rows: Rows, upstream: Tensor) -> Tensor:
    return torch.autograd.grad(plain(logits, target, problem, rows)[0], logits, upstream, create_graph=True)[0]
