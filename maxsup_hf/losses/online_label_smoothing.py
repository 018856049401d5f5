"""Online label smoothing (Zhang et al., 2021): soft labels from the previous epoch's predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.losses._registry import register_loss
from maxsup_hf.ops.autograd import statistics
from maxsup_hf.ops.row_stats import masked_classes, upcast

CITATION = """@article{zhang2021delving,
  title={Delving Deep into Label Smoothing},
  author={Zhang, Chang-Bin and Jiang, Peng-Tao and Hou, Qibin and Wei, Yunchao and Han, Qi and Li, Zhen
    and Cheng, Ming-Ming},
  journal={IEEE Transactions on Image Processing},
  year={2021},
  note={arXiv:2011.12562}
}"""

LARGEST = 4 * 2**30  # the most bytes that the two K×K tables may take


class SoftLabels:
    """The state of online label smoothing: a soft label for each class, and sums over the current epoch.

    Attributes:
        epoch: the number of epochs that `table` has learned from.
        table: (K, K), row k the soft label of class k; zeros if the last epoch predicted no row of class k correctly.
        total: (K, K), row k the summed softmax of this epoch's correctly predicted rows of class k.
        count: (K,), the number of these rows.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.table = self.total = self.count = torch.empty(0)

    def add(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Learn from a batch: logits (N, K), labels (N,), valid (N,) bool."""
        z = upcast(logits)
        self._prepare(z.shape[-1], z)
        right = valid & (z.argmax(-1) == labels)
        q = torch.where(right[:, None], z.masked_fill(masked_classes(logits), -torch.inf).softmax(-1), 0)
        self.total.index_add_(0, labels, _on_grid(q, self.total.dtype))
        self.count.index_add_(0, labels, right.to(self.count.dtype))

    def _prepare(self, classes: int, like: Tensor) -> None:
        """Allocate the tables for the first batch, and move them to the device and dtype of each later one."""
        if len(self.count) not in (0, classes):
            raise ValueError(
                f"online_label_smoothing keeps one table for {len(self.count)} classes, but got logits with {classes}: it "
                "does not support heads with several cross-entropies or a changing number of classes; use another loss"
            )
        if not len(self.count):
            size = classes**2 * (like.element_size() + _exact(like).itemsize)
            if size > LARGEST:
                raise ValueError(
                    f"online_label_smoothing with {classes:,} classes needs two {classes:,} x {classes:,} tables, "
                    f"{size / 2**30:,.1f} GiB, more than {LARGEST / 2**30:g} GiB: use another loss for so many classes"
                )
            self.table = like.new_zeros(classes, classes)
            self.total, self.count = (like.new_zeros(shape, dtype=_exact(like)) for shape in ((classes, classes), classes))
        elif self.table.device != like.device or self.table.dtype != like.dtype:
            self.table = self.table.to(like)
            self.total, self.count = (x.to(like.device, _exact(like)) for x in (self.total, self.count))

    def soft_labels(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The soft label of each row, (N, K) and 0 for masked classes, and (N,) whether the table has one."""
        self._prepare(logits.shape[-1], logits)
        soft = self.table[labels].masked_fill(logits == -torch.inf, 0)
        mass = soft.sum(-1, keepdim=True)
        return soft / mass.where(mass > 0, 1), mass.squeeze(-1) > 0

    def end_epoch(
        self, epochs: int, values: Mapping[str, Any], all_reduce: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Turn the sums over this epoch into the next epoch's soft labels, once for each complete epoch."""
        if epochs <= self.epoch or not len(self.count):
            return
        seen = self.tensors(all_reduce)
        learned = seen["total"] / seen["count"].clamp_min(1)[:, None]
        if values["freeze_threshold"] < 1:
            frozen = self.table.amax(-1, keepdim=True) >= values["freeze_threshold"]
            learned = torch.where(frozen, self.table, learned)
        self.table = learned.to(self.table.dtype)
        self.total, self.count = torch.zeros_like(self.total), torch.zeros_like(self.count)
        self.epoch = epochs

    def tensors(self, all_reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors of a checkpoint: the table, and the sums of all ranks since."""
        total, count = self.total, self.count
        if all_reduce is not None:
            total, count = all_reduce(total), all_reduce(count)
        return {"epoch": torch.tensor(self.epoch), "table": self.table, "total": total, "count": count}

    def load(self, tensors: Mapping[str, Tensor], main: bool = True) -> None:
        """Resume from a checkpoint. Only the main process restores the sums, because they are those of all ranks."""
        self.epoch = int(tensors["epoch"])
        self.table, self.total, self.count = (tensors[name].clone() for name in ("table", "total", "count"))
        if not main:
            self.total.zero_()
            self.count.zero_()


def _exact(like: Tensor) -> torch.dtype:
    """float64, in which sums are exact (see `_on_grid`), if the device supports it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _on_grid(q: Tensor, dtype: torch.dtype) -> Tensor:
    """Probabilities rounded to multiples of a power of two, which is as fine as float32 at 1/2.

    float64 adds such values exactly, so the table depends neither on the order of rows, nor on how they are divided among
    ranks, nor on interruptions.
    """
    steps = 2.0**24 if q.dtype == torch.float32 else 2.0**40
    return (q.to(dtype) * steps).round() / steps


@register_loss(
    "online_label_smoothing",
    bounds={"alpha": (0, 1), "smoothing": (0, 1), "freeze_threshold": (0, 1)},
    choices={"start": ("smoothed", "uniform", "zeros"), "fallback": ("uniform", "zeros")},
    citation=CITATION,
    replaces_target=True,
    state=SoftLabels,
)
def online_label_smoothing(
    cross_entropy: Tensor,
    label: Tensor,
    mean: Tensor,
    classes: Tensor,
    logits: Tensor,
    labels: Tensor,
    state: SoftLabels,
    *,
    alpha: float = 0.5,
    smoothing: float = 0.1,
    freeze_threshold: float = 1.0,
    start: str = "smoothed",
    fallback: str = "uniform",
) -> tuple[Tensor, Tensor]:
    """Online label smoothing: (1 − α)·cross-entropy + α·cross-entropy against the class's soft label.

    The soft label of a class is the mean softmax of its rows that the last epoch predicted correctly. α is the weight of the
    soft label, 1 − a of the paper's a. In the first epoch the soft label is the target of label smoothing, with `smoothing`
    spread over the other K−1 classes (`start="smoothed"`), or uniform, or absent (`"zeros"`). A class that the last epoch
    never predicted correctly gets `fallback`. A soft label whose largest value reaches `freeze_threshold` is kept (with 1,
    none is).
    """
    without_table = {  # cross-entropy against each soft label that is not learned
        "smoothed": cross_entropy + smoothing * classes / (classes - 1).clamp_min(1) * (label - mean),
        "uniform": cross_entropy + label - mean,
        "zeros": torch.zeros_like(cross_entropy),
    }
    soft = without_table[fallback if state.epoch else start]
    if state.epoch:
        target, known = state.soft_labels(logits, labels)
        soft = torch.where(known, statistics(logits, target, ("cross_entropy",))["cross_entropy"], soft)
    return (1 - alpha) * cross_entropy + alpha * soft, torch.zeros_like(cross_entropy)
