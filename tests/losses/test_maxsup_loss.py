"""`maxsup_loss` as a replacement of `torch.nn.functional.cross_entropy`."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from maxsup_hf import maxsup_loss

LAYOUTS = [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 2), (0, 5)]


def target_of(shape, kind):
    if kind == "soft":
        return torch.rand(shape, dtype=torch.float64).softmax(1 if len(shape) > 1 else 0)
    target = torch.randint(5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if kind == "ignored" and target.numel() > 1:
        target.view(-1)[0] = 255
    return target


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["hard", "ignored", "soft"])
@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_layouts(shape, kind, weighted, reduction):
    logits, target = torch.randn(shape, dtype=torch.float64), target_of(shape, kind)
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    ignore_index = 255 if kind == "ignored" else -100
    dim = 1 if len(shape) > 1 else 0
    penalty = logits.amax(dim) - logits.mean(dim)
    if kind != "soft":
        penalty = penalty * (target != ignore_index)
    counted = (target != ignore_index).sum() if kind != "soft" else penalty.numel()
    expected = cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction=reduction)
    if reduction == "mean":
        penalty = penalty.sum() / counted
        expected, penalty = torch.nan_to_num(expected), torch.nan_to_num(penalty)  # torch's mean of nothing is NaN
    elif reduction == "sum":
        penalty = penalty.sum()
    value = maxsup_loss(logits, target, weight, alpha=0.3, ignore_index=ignore_index, reduction=reduction)
    torch.testing.assert_close(value, expected + 0.3 * penalty)


def test_all_correct_equals_label_smoothing():
    logits = torch.randn(6, 8)
    target = logits.argmax(-1)
    torch.testing.assert_close(maxsup_loss(logits, target, alpha=0.1), cross_entropy(logits, target, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("logits", "target", "kwargs", "error", "message"),
    [
        (torch.randn(2, 3), torch.tensor([0, 3]), {}, ValueError, r"labels must lie in \[0, 3\).*from 0 to 3"),
        (torch.randn(2, 3), torch.tensor([0, -1]), {}, ValueError, "from -1 to 0"),
        (torch.randn(2, 1), torch.tensor([0, 0]), {}, ValueError, "at least 2 classes"),
        (torch.randn(2, 3), torch.tensor([0, 1, 2]), {}, ValueError, r"labels must have shape \(2,\).*got \(3,\)"),
        (torch.randn(2, 3), torch.rand(2), {}, ValueError, r"logits' shape \(2, 3\), got \(2,\)"),
        (torch.randn(2, 3), torch.tensor([True, False]), {}, TypeError, "bool"),
        (torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1]), {}, TypeError, "floating point"),
        (torch.tensor(1.0), torch.tensor(0), {}, ValueError, "class dimension"),
        (torch.randn(2, 3), torch.tensor([0, 1]), {"weight": torch.ones(2)}, ValueError, r"weight must have shape \(3,\)"),
        (torch.randn(2, 3), torch.tensor([0, 1]), {"alpha": -0.1}, ValueError, "alpha.*at least 0.*-0.1"),
        (torch.randn(2, 3), torch.tensor([0, 1]), {"alpha": float("nan")}, ValueError, "alpha.*finite.*nan"),
        (torch.randn(2, 3), torch.tensor([0, 1]), {"alpha": "0.1"}, TypeError, "alpha.*must be a number, got str '0.1'"),
        (torch.randn(2, 3), torch.tensor([0, 1]), {"reduction": "avg"}, ValueError, "reduction must be one of.*'avg'"),
    ],
)
def test_misuse(logits, target, kwargs, error, message):
    with pytest.raises(error, match=message):
        maxsup_loss(logits, target, **kwargs)
    if logits.is_floating_point():  # with a gradient the loss is computed in another way
        with pytest.raises(error, match=message):
            maxsup_loss(logits.clone().requires_grad_(), target, **kwargs)
