"""The time of a loss on hidden states and an output embedding, forward and backward: fused, and by way of the logits.

The fused loss is first compared with the reference implementation in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from maxsup_hf.bench.logits import SMOOTHING
from maxsup_hf.bench.timing import interleaved, peak_bytes, ratio, stopwatch
from maxsup_hf.losses import Loss
from maxsup_hf.losses._fused_linear import fused_output
from maxsup_hf.ops.linear import Head
from maxsup_hf.output.tables import Table, markdown

IGNORED = 0.6  # the fraction of ignored rows in one of the candidates
NEIGHBOURS = ("unfused", "unfused label smoothing", "three products")


class Case:
    """Hidden states, weight and labels of one shape and dtype."""

    def __init__(self, rows: int, width: int, classes: int, dtype: torch.dtype, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(rows, width, generator=generator).to(device, dtype).requires_grad_()
        self.weight = (torch.randn(classes, width, generator=generator) / width**0.5).to(device, dtype).requires_grad_()
        self.labels = torch.randint(classes, (rows,), generator=generator).to(device)
        self.sparse = self.labels.masked_fill(torch.rand(rows, generator=generator).to(device) < IGNORED, -100)
        self.device = device

    def run(self, function: Callable[[], Tensor]) -> tuple[float, Tensor]:
        """The seconds of forward and backward, and the loss."""
        self.hidden.grad = self.weight.grad = None

        def work() -> Tensor:
            loss = function()
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

        return stopwatch(work, self.device)


def candidates(loss: Loss, case: Case) -> dict[str, Callable[[], Tensor]]:
    """name -> what is timed."""
    hidden, weight, values = case.hidden, case.weight, loss.values(0.0)

    def fused(labels: Tensor) -> Tensor:
        return fused_output(loss, values, hidden, labels, Head(weight, None, 1.0, None)).loss

    def products() -> Tensor:
        with torch.no_grad():  # the products that logits and the gradients of hidden states and weight need at least
            z = hidden @ weight.t()
            return (z @ weight).sum() + (z.t() @ hidden).sum()

    return {
        "fused": lambda: fused(case.labels),
        "fused, 60 % of rows ignored": lambda: fused(case.sparse),
        "unfused": lambda: loss.compute(linear(hidden, weight), case.labels, values).loss,
        "unfused label smoothing": lambda: cross_entropy(linear(hidden, weight), case.labels, label_smoothing=SMOOTHING),
        "three products": products,
    }


def error(loss: Loss, case: Case, fused: Callable[[], Tensor]) -> float:
    """The largest relative error of a gradient, ‖found − right‖ / ‖right‖: where bfloat16 rounds two logits to the same
    value, another of them may be the top, so that single elements differ by more.

    Raises:
        ArithmeticError: the error is larger than the precision of the dtype allows.
    """
    _, found = case.run(fused)
    step = max(1, 2**26 // len(case.weight))  # rows at a time, to limit the memory of their logits
    weight = case.weight.detach().double().requires_grad_()
    total, by_hidden = 0.0, []
    for start in range(0, len(case.labels), step):
        hidden = case.hidden[start : start + step].detach().double().requires_grad_()
        labels = case.labels[start : start + step]
        value = loss(linear(hidden, weight), labels, num_items_in_batch=len(case.labels), kernel="plain")
        value.backward()
        total += float(value.detach())
        assert hidden.grad is not None
        by_hidden.append(hidden.grad)
    worst = 0.0
    for name, ours, right in (("hidden", case.hidden, torch.cat(by_hidden)), ("weight", case.weight, weight.grad)):
        assert ours.grad is not None and right is not None
        off = float((ours.grad.double() - right).norm() / right.norm())
        worst = max(worst, off)
        allowed = max(1e-5, 8 * torch.finfo(ours.dtype).eps)
        if not (off < allowed and abs(float(found) - total) < allowed * abs(total)):
            raise ArithmeticError(
                f"fused loss is wrong: {float(found):.9g} where {total:.9g} is right, gradient of {name} off by {off:.3g}"
            )
    return worst


def measure(
    loss: Loss, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Measure one row of the table.

    Args:
        loss: the loss to measure, with its parameters as at the start of training.
        shape: rows, width of the hidden states, classes.
        dtype, device: of hidden states and weight.
        rounds: how often each candidate is timed.
    """
    case = Case(*shape, dtype, device)
    every = candidates(loss, case)
    off = error(loss, case, every["fused"])
    memory = {}
    for name, function in every.items():
        case.hidden.grad = case.weight.grad = None
        memory[name] = peak_bytes(partial(case.run, function), device)
    seconds = interleaved({name: partial(case.run, function) for name, function in every.items()}, rounds)
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: 1e3 * median(times) for name, times in seconds.items()},
        "ratios": {name: ratio(seconds["fused"], seconds[name]) for name in NEIGHBOURS},
        "ignored_to_full": ratio(seconds["fused, 60 % of rows ignored"], seconds["fused"]),
        "logits_bytes": shape[0] * shape[2] * case.hidden.element_size(),
        "peak_bytes": memory,
        "gradient_error": off,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table; ratios below 1 mean that the fused loss is faster, or takes less memory."""
    lines = [
        ["N×D×V", "dtype", "fused ms", *(f"/ {name}" for name in NEIGHBOURS), "60 % ignored / full",
         "memory / unfused label smoothing", "memory / logits", "error"]
    ]  # fmt: skip
    for row in results:
        peak, ratios = row["peak_bytes"], row["ratios"]
        lines.append(
            ["×".join(map(str, row["shape"])), row["dtype"], f"{row['milliseconds']['fused']:.4g}",
             *(f"{ratios[name]:.2f}" for name in NEIGHBOURS),
             f"{row['ignored_to_full']:.2f}", f"{peak['fused'] / peak['unfused label smoothing']:.3f}",
             f"{peak['fused'] / row['logits_bytes']:.3f}", f"{row['gradient_error']:.1e}"]
        )  # fmt: skip
    return markdown(Table(lines[0], lines[1:]))
