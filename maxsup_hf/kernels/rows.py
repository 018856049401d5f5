"""Row statistics and gradients for what makes its own logits: block after block, each while it is in cache.

What `row_sums` returns of shards of a vocabulary adds up to the statistics of whole rows (`combine`). Class indices only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from maxsup_hf.ops.row_stats import MASK_DISTANCE

BLOCK = 2**18  # numbers in a block: 1 MiB of float32, which stays in a level-2 cache
STRETCH = 256
MASKABLE = ("mean", "square", "expected", "classes")  # the numbers that a masked class would spoil


def blocks(z: Tensor) -> Iterator[slice]:
    """Slices of the rows of `z` (N, K); on a GPU, which gains nothing from them, as few as memory likes."""
    size = BLOCK * (torch.get_num_threads() if z.device.type == "cpu" else 256)
    step = max(1, size // max(1, z.shape[1]))
    return (slice(start, start + step) for start in range(0, len(z), step))


def row_sums(z: Tensor, names: Sequence[str], overwrite: bool = False) -> dict[str, Tensor]:
    """What the numbers of rows are made of.

    Args:
        z: (N, K) logits, or a shard of them: any float dtype.
        names: numbers of `maxsup_hf.ops.row_stats.STATISTICS` that will be asked for.
        overwrite: let `z`, float32 or float64, hold exp(z − top) afterwards, which saves the gradient the work.

    Returns:
        name -> (N,): `top`, `index` of the first maximum, `exp` = Σ exp(z − top), and as needed `total` = Σ z, `count` of
        classes that are not masked, `square` = Σ z², `product` = Σ exp(z − top)·z. float32, or float64 for float64.
    """
    found = [_sums_of_block(z[part], names, overwrite) for part in blocks(z)] or [_sums_of_block(z, names, overwrite)]
    return {name: torch.cat([sums[name] for sums in found]) for name in found[0]}


def _sums_of_block(z: Tensor, names: Sequence[str], overwrite: bool) -> dict[str, Tensor]:
    z = z if z.dtype == torch.float64 else z.float()
    top, index = first_maximum(z)
    # A shard may hold masked classes alone, and −inf − (−inf) would be NaN.
    e = torch.sub(z, top.clamp_min(torch.finfo(z.dtype).min)[:, None], out=z if overwrite else None).exp_()
    sums = {"top": top, "index": index, "exp": e.sum(1)}
    if any(name in MASKABLE for name in names):
        taken = z >= top[:, None] - MASK_DISTANCE
        z = torch.where(taken, z, 0)
        sums |= {"total": z.sum(1), "count": taken.sum(1).to(z.dtype)}
    if "expected" in names:
        sums["product"] = e.mul_(z).sum(1)
    if "square" in names:
        sums["square"] = z.square_().sum(1)
    return sums


def combine(sums: Mapping[str, Tensor], label: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The numbers of rows.

    Args:
        sums: of whole rows, as `row_sums` returns them.
        label: (N,) the logit of each row's class.
        names: which numbers.
    """
    log_sum = sums["exp"].log()
    made = {
        "cross_entropy": lambda: log_sum - (label - sums["top"]),
        "lse": lambda: log_sum + sums["top"],
        "top": lambda: sums["top"],
        "mean": lambda: sums["total"] / sums["count"].clamp_min(1),
        "label": lambda: label,
        "square": lambda: sums["square"],
        "expected": lambda: sums["product"] / sums["exp"],
        "classes": lambda: sums["count"],
    }
    return {name: made[name]() for name in names}


def write_gradient(
    z: Tensor,
    out: Tensor,
    slopes: Mapping[str, Tensor],
    top: Tensor,
    exp: Tensor,
    label_at: Tensor,
    top_at: Tensor,
    *,
    expected: Tensor | None = None,
    count: Tensor | None = None,
    label_here: Tensor | None = None,
    top_here: Tensor | None = None,
    valid: Tensor | None = None,
    softcap: float | None = None,
) -> None:
    """Write Σ slope·∂number/∂z; see the table of `maxsup_hf.ops.row_stats`.

    Args:
        z: (N, K) logits or a shard of them.
        out: (N, K), may be `z` itself.
        slopes: name of a number -> (N,) what its derivative is multiplied by.
        top, exp, expected, count: (N,) of whole rows, as in `row_sums`; the latter two where they have a slope.
        label_at, top_at: (N,) columns of the label and of the top, any valid ones where these are in another shard.
        label_here, top_here: (N,) bool, whether they are in this one; `None` is everywhere.
        valid: (N,) bool; other rows get zeros, whatever they hold.
        softcap: c where `z` is c·tanh(x/c) and the derivative is wanted with respect to x.
    """
    by_softmax, at_label, at_top = _by_place(slopes, exp)
    share = exp.reciprocal()
    at_label = at_label if label_here is None else torch.where(label_here, at_label, 0)
    at_top = at_top if top_here is None else torch.where(top_here, at_top, 0)
    masks = any(name in slopes for name in MASKABLE)
    for part in blocks(z):
        x = z[part] if z.dtype == torch.float64 else z[part].float()
        into = out[part]
        in_place = into.data_ptr() == x.data_ptr()
        bend = None if softcap is None else 1 - (x / softcap).square_()
        taken = x >= top[part, None] - MASK_DISTANCE if masks else None
        inside = torch.where(taken, x, 0) if taken is not None else x
        # not exp(z − lse): of large logits the difference has lost the digits that the softmax is made of
        g = torch.sub(x, top[part, None], out=x if in_place else None).exp_().mul_(share[part, None])
        if "expected" in slopes:
            assert expected is not None
            by = slopes["expected"][part, None]
            g.mul_(by_softmax[part, None] + by * (1 - expected[part, None]) + by * inside)
        else:
            g.mul_(by_softmax[part, None])
        if "mean" in slopes:
            assert count is not None and taken is not None
            g.add_(taken * (slopes["mean"][part] / count[part].clamp_min(1))[:, None])
        if "square" in slopes:
            g.addcmul_(inside, slopes["square"][part, None], value=2)
        g.scatter_add_(1, label_at[part, None], at_label[part, None])
        g.scatter_add_(1, top_at[part, None], at_top[part, None])
        if bend is not None:
            g.mul_(bend)
        if valid is not None:
            g.masked_fill_(~valid[part, None], 0)
        if not in_place:
            into.copy_(g)


def finish_gradient(
    e: Tensor, sums: Mapping[str, Tensor], slopes: Mapping[str, Tensor], label_at: Tensor, top_at: Tensor
) -> None:
    """`write_gradient` in place where `row_sums` has left exp(z − top) in `e`, for slopes of numbers that no class is in
    but through softmax, or as the label or the top."""
    by_softmax, at_label, at_top = _by_place(slopes, sums["exp"])
    factor = by_softmax / sums["exp"]
    for part in blocks(e):
        g = e[part].mul_(factor[part, None])
        g.scatter_add_(1, label_at[part, None], at_label[part, None])
        g.scatter_add_(1, top_at[part, None], at_top[part, None])


def _by_place(slopes: Mapping[str, Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What multiplies softmax, what falls on the label, what on the top; each (N,)."""
    none = torch.zeros_like(like)
    entropy = slopes.get("cross_entropy", none)
    return entropy + slopes.get("lse", none), slopes.get("label", none) - entropy, slopes.get("top", none)


def first_maximum(z: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each row of `z` (N, K) and its first index.

    `max` with indices and `argmax` look at one number at a time on a CPU. So first the maximum of each stretch of classes,
    then the first best stretch, then the place in it.
    """
    classes = z.shape[1]
    if z.device.type != "cpu" or classes < 8 * STRETCH:
        return z.max(1)
    whole = classes // STRETCH * STRETCH
    best = [z[:, :whole].unflatten(1, (-1, STRETCH)).amax(2)]
    if whole < classes:
        best.append(z[:, whole:].amax(1, keepdim=True))
    top, stretch = torch.cat(best, 1).max(1)
    # the last stretch reaches back into numbers that are smaller
    start = (stretch * STRETCH).clamp_max_(classes - STRETCH)[:, None]
    place = z.gather(1, start + torch.arange(STRETCH)).max(1).indices
    return top, start.squeeze(1) + place
