"""The time of a loss on logits, forward and backward, compared with similar losses.

Whatever computes the measured loss is first compared with the reference implementation in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from maxsup_hf.bench.timing import interleaved, peak_bytes, ratio, stopwatch
from maxsup_hf.losses import Loss
from maxsup_hf.output.tables import Table, markdown

SMOOTHING = 0.1

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Candidate(NamedTuple):
    """A function to time.

    Attributes:
        function: (logits, labels) -> loss, or any tensor if there is no backward.
        ours: whether it computes the measured loss, and so must agree with the reference implementation.
        backward: whether to time its backward too.
    """

    function: LossFunction
    ours: bool = False
    backward: bool = True


class Case:
    """Logits and labels of one shape and dtype, and how to run a candidate on them."""

    def __init__(self, rows: int, classes: int, dtype: torch.dtype, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        self.source = torch.randn(rows, classes, generator=generator).to(device, dtype)
        self.labels = torch.randint(classes, (rows,), generator=generator).to(device)
        self.logits = self.source.detach().requires_grad_()
        self.device = device

    def run(self, candidate: Candidate) -> tuple[float, Tensor]:
        """The seconds that it took, and the loss."""
        self.logits.grad = None

        def work() -> Tensor:
            loss = candidate.function(self.logits, self.labels)
            if candidate.backward:
                loss.backward()
            return loss.detach()

        return stopwatch(work, self.device)

    def gradient(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """The loss and its gradient."""
        _, loss = self.run(candidate)
        gradient = self.logits.grad
        assert gradient is not None
        return loss, gradient

    def peak(self, candidate: Candidate) -> int:
        """The peak of allocated bytes, besides those allocated before."""
        self.run(candidate)
        self.logits.grad = None
        return peak_bytes(partial(self.run, candidate), self.device)


def candidates(loss: Loss, device: torch.device, compiled: bool) -> dict[str, Candidate]:
    """name -> what is timed; first the measured loss with its default kernel."""
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in loss.values(0.0).items()}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return loss.compute(logits, labels, values).loss

    def plain(logits: Tensor, labels: Tensor) -> Tensor:
        return loss.compute(logits, labels, values, kernel="plain").loss

    def naive_maxsup(logits: Tensor, labels: Tensor) -> Tensor:
        penalty = logits.max(-1).values.mean() - logits.mean()
        return cross_entropy(logits, labels) + values["alpha"] * penalty

    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, label_smoothing=SMOOTHING)

    from transformers.trainer_pt_utils import LabelSmoother

    smoother = LabelSmoother(epsilon=SMOOTHING)
    found = {"loss": Candidate(ours, ours=True)}
    found["plain path"] = Candidate(plain, ours=True)
    found["label smoothing"] = Candidate(smoothed)
    found["LabelSmoother"] = Candidate(lambda logits, labels: smoother({"logits": logits}, labels))
    if loss.spec.name == "maxsup":
        found["naive"] = Candidate(naive_maxsup, ours=True)
    if compiled:
        torch._dynamo.reset()
        found["compiled loss"] = Candidate(torch.compile(ours, fullgraph=True, dynamic=False), ours=True)
        found["compiled label smoothing"] = Candidate(torch.compile(smoothed, fullgraph=True, dynamic=False))
    if device.type == "cuda" and find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        found["Liger"] = Candidate(LigerCrossEntropyLoss(label_smoothing=SMOOTHING))
    found["copy"] = Candidate(lambda logits, labels: logits.detach().clone(), backward=False)
    return found


def reference(loss: Loss, case: Case) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the reference implementation in float64, a few rows at a time."""
    rows, classes = case.source.shape
    step = max(1, 2**24 // classes)
    total, gradient = torch.zeros((), dtype=torch.float64), torch.empty(rows, classes, dtype=torch.float64)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        logits = case.source[part].double().cpu().requires_grad_()
        value = loss(logits, case.labels[part].cpu(), num_items_in_batch=rows, kernel="plain")
        value.backward()
        total += value.detach()
        assert logits.grad is not None
        gradient[part] = logits.grad
    return total, gradient


def error(case: Case, name: str, candidate: Candidate, expected: tuple[Tensor, Tensor]) -> float:
    """The largest error of the gradient, in units of the contribution of one row's label (1/N).

    Raises:
        ArithmeticError: an error is larger than the precision of the dtype allows.
    """
    loss, gradient = (x.cpu() for x in case.gradient(candidate))
    rows, step = len(gradient), torch.finfo(gradient.dtype).eps
    worst = max(
        ((g.double() - e).abs().max() for g, e in zip(gradient, expected[1], strict=True)), default=torch.tensor(0.0)
    )
    found = rows * float(worst)
    right, allowed = float(expected[0]), max(1e-5, 4 * step)
    if not (found < allowed and abs(float(loss) - right) < allowed * abs(right)):
        raise ArithmeticError(
            f"{name} is wrong: loss {float(loss):.9g} where {right:.9g} is right, gradient off by {found:.3g}/N"
        )
    return found


def measure(
    loss: Loss, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rounds: int, compiled: bool
) -> dict:
    """Measure one row of the table.

    Args:
        loss: the loss to measure, with its parameters as at the start of training.
        shape: (N, K).
        dtype, device: of the logits.
        rounds: how often each candidate is timed.
        compiled: whether to time torch.compile too, which needs a C++ compiler on the CPU.
    """
    case = Case(*shape, dtype, device)
    every = candidates(loss, device, compiled)
    expected = reference(loss, case)
    errors = {name: error(case, name, candidate, expected) for name, candidate in every.items() if candidate.ours}
    del expected
    size = case.source.numel() * case.source.element_size()
    memory = {name: case.peak(candidate) / size for name, candidate in every.items()}
    seconds = interleaved({name: partial(case.run, candidate) for name, candidate in every.items()}, rounds)
    breaks = None
    if compiled:
        breaks = torch._dynamo.explain(every["loss"].function)(case.logits, case.labels).graph_break_count
    ours = [name for name, candidate in every.items() if candidate.ours and name not in ("plain path", "naive")]
    ratios: dict[str, dict[str, float]] = {name: {} for name in ours}
    for name in ours:
        for other in every:  # every candidate that is not ours; the compiled loss also with the one that is not compiled
            if other not in ours or (other == "loss" and name != "loss"):
                ratios[name][other] = ratio(seconds[name], seconds[other])
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: 1e3 * median(times) for name, times in seconds.items()},
        "ratios": ratios,
        # of the least possible traffic: reading the logits, and writing the gradient
        "gigabytes_per_second": {name: 2 * size / median(seconds[name]) / 1e9 for name in ours},
        "peak_memory_over_logits": memory,
        "gradient_error_times_rows": errors,
        "graph_breaks": breaks,
    }


def table(results: Sequence[dict]) -> str:
    """The results as a Markdown table; ratios below 1 mean that the measured loss is faster."""
    columns = ["label smoothing", "LabelSmoother", "naive", "plain path", "compiled label smoothing", "Liger", "copy"]
    columns = [column for column in columns if any(column in row["ratios"]["loss"] for row in results)]
    ratio_columns = [f"/ {column}" for column in columns]
    lines = [["N×K", "dtype", "", "ms", *ratio_columns, "GB/s", "memory / logits", "error·N", "graph breaks"]]
    for row in results:
        for name, ratios in row["ratios"].items():
            lines.append(
                [
                    "×".join(map(str, row["shape"])), row["dtype"], name, f"{row['milliseconds'][name]:.4g}",
                    *(f"{ratios[column]:.2f}" if column in ratios else "" for column in columns),
                    f"{row['gigabytes_per_second'][name]:.3g}", f"{row['peak_memory_over_logits'][name]:.3f}",
                    f"{row['gradient_error_times_rows'][name]:.1e}",
                    str(row["graph_breaks"]) if name == "compiled loss" else "",
                ]
            )  # fmt: skip
    return markdown(Table(lines[0], lines[1:]))
