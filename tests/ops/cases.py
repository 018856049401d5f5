"""Backends, batches of all kinds, and the comparison of a loss on them with its reference implementation."""

import contextlib
import math
import os

import pytest
import torch
from torch.testing import assert_close

from maxsup_hf import create_loss, list_losses
from maxsup_hf.losses import get_spec
from maxsup_hf.ops import backends, rows_torch
from tests import plain

TRITON = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if TRITON else ["reference", "numba", "torch"]
FAST = [name for name in BACKENDS if name != "reference"]
LOSSES = list_losses()
SUMS = ["maxsup+z_loss", "label_smoothing+logit_penalty"]
N, K = (5, 7) if TRITON else (12, 7)
IGNORED = -100


@contextlib.contextmanager
def use_backend(name):
    """Make this backend the one that computes; gives the value of `kernel` that selects it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_torch, "BLOCK", 4 * K)  # small batches are divided into blocks like large ones
        if name in ("numba", "torch"):
            patch.setattr(backends, "has_numba", lambda: name == "numba")
        yield {"reference": "plain", "triton": "triton"}.get(name, "auto")


def batch(n=N, k=K, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=generator)


def soft(n=N, k=K, zeros=0.0):
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(n, k, generator=generator, dtype=torch.float64)
    target = torch.where(torch.rand(n, k, generator=generator) < zeros, 0, target)
    return target if zeros else target / target.sum(1, keepdim=True)


def masked(value):
    logits, labels = batch()
    logits[1::2, 2] = value
    logits[0] = value
    logits[0, 3] = 1.0  # one unmasked class
    return logits, labels.masked_fill(labels == 2, 3).index_fill(0, torch.tensor([0]), 3)


def transformed(function):
    logits, labels = batch()
    return function(logits), labels


def ignored(rows):
    logits, labels = batch()
    logits[rows] = math.nan
    labels[rows] = IGNORED
    return logits, labels


WEIGHT = torch.linspace(0.2, 2.0, K, dtype=torch.float64)

# name -> (logits, labels, keyword arguments of the loss)
CASES = {
    "hard": (*batch(), {}),
    "soft": (batch()[0], soft(), {}),
    "zeros in the target": (batch()[0], soft(zeros=0.5), {}),
    "class weights": (*ignored([0]), {"weight": WEIGHT}),
    "class weights of soft labels": (batch()[0], soft(), {"weight": WEIGHT}),
    "class weights, summed": (*batch(), {"weight": WEIGHT, "reduction": "sum"}),
    "ignored": (*ignored([0, 3]), {}),
    "all ignored": (*ignored(slice(None)), {}),
    "a class is ignored": (*batch(), {"ignore_index": 2}),
    "sum": (*ignored([1]), {"reduction": "sum"}),
    "each row": (*ignored([1]), {"reduction": "none"}),
    "items": (*ignored([1]), {"num_items_in_batch": torch.tensor(31.0)}),
    "masked": (*masked(-math.inf), {}),
    "masked by -1e30": (*masked(-1e30), {}),
    "masked by -1e4": (*masked(-1e4), {}),
    "ties": (*transformed(lambda z: z.round().clamp(-1, 1)), {}),
    "far from zero": (*transformed(lambda z: z + 1000), {}),
    "extreme": (*transformed(lambda z: 100 * z), {}),
    "uint8 labels": (batch()[0], batch()[1].to(torch.uint8), {}),
    "int16 labels": (batch()[0], batch()[1].short(), {}),
    "columns": (*transformed(lambda z: z.T.contiguous().T), {}),
    "strided": (batch(N, 2 * K)[0][:, ::2], batch()[1], {}),
    "empty": (*batch(0), {}),
    "two classes": (*batch(N, 2), {}),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def results(name, logits, labels, kernel, **options):
    """The loss, its cross-entropy, and the gradient; for `reduction="none"`, the gradient of a weighted sum of the rows."""
    loss = create_loss(name)
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = loss.compute(logits, labels, loss.values(0), kernel=kernel, **options)
    total = (output.loss * torch.arange(1.0, output.loss.numel() + 1, device=logits.device).view_as(output.loss)).sum()
    total.backward()
    return output.loss.detach(), output.cross_entropy, logits.grad


def oracle(name, logits, labels, weight=None, num_items_in_batch=None, reduction="mean", ignore_index=IGNORED):
    """The value by the reference implementation in plain Python, of a single loss or a sum of losses."""
    rows, targets = logits.double().tolist(), labels.tolist()
    weights = None if weight is None else weight.tolist()
    by = {"weight": weights, "ignore_index": ignore_index}

    def of(name, reduction):
        value = plain.loss(name, rows, targets, create_loss(name).values(0), reduction=reduction, **by)
        return torch.tensor(value, dtype=torch.float64)

    def total(reduction):  # of a sum of losses: each part contains the cross-entropy, which counts once
        parts = name.split("+")
        return sum(of(part, reduction) for part in parts) - (len(parts) - 1) * of("cross_entropy", reduction)

    return total("sum") / num_items_in_batch if num_items_in_batch is not None else total(reduction)


def is_supported(name, labels, weight=None, **_):
    """Whether the loss is defined for these labels and weights; tests/losses tests that others are rejected."""
    spec = get_spec(name)
    if not labels.is_floating_point():
        return True
    return "labels" not in spec.arguments and (weight is None or spec.weighs_soft_labels)


def check(name, kernel, case, dtype, logits, labels, **options):
    """Compare the value with plain Python, and cross-entropy and gradient with the reference implementation in float64."""
    logits = logits.to(dtype)
    narrow = dtype in (torch.bfloat16, torch.float16)
    exact = results(name, logits.double(), labels, "plain", **options)
    found = results(name, logits, labels, kernel, **options)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in found] == [wide, wide, dtype], case
    rtol, atol = (1e-10, 1e-11) if wide == torch.float64 else (2e-5, 1e-5 * max(1.0, exact[0].abs().max().item() / 100))
    assert_close(
        found[0].double(), oracle(name, logits, labels, **options), rtol=rtol, atol=atol, msg=lambda m: f"{case}: {m}"
    )
    assert_close(found[1].double(), exact[1], rtol=rtol, atol=atol, msg=lambda m: f"{case}: {m}")
    # Label smoothing with class weights rounds twice; Triton's interpreter truncates instead of rounding.
    roundings = 3 if kernel == "triton" else 1.5
    step = roundings * torch.finfo(dtype).eps if narrow else rtol
    assert_close(found[2].double(), exact[2], rtol=step, atol=max(atol, 1e-7), msg=lambda m: f"{case}, gradient: {m}")


def dtypes_of(backend):
    return [torch.float32, torch.float16] if backend == "triton" else DTYPES
