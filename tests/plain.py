"""Plain-loop twins: every loss and its gradient, one number at a time, in Python floats."""

import math


def numbers(z, target):
    """The numbers of one row; `target` a class index or a list of probabilities; masked classes hold -inf."""
    kept = [k for k in range(len(z)) if z[k] != -math.inf]
    t = [float(k == target) for k in range(len(z))] if isinstance(target, int) else target
    top = max(z[k] for k in kept)
    lse = top + math.log(sum(math.exp(z[k] - top) for k in kept))
    label = sum(t[k] * z[k] for k in kept)
    q = {k: math.exp(z[k] - lse) for k in kept}
    return {
        "cross_entropy": sum(t[k] * (lse - z[k]) for k in kept),
        "lse": lse,
        "top": top,
        "mean": sum(z[k] for k in kept) / len(kept),
        "label": label,
        "square": sum(z[k] ** 2 for k in kept),
        "expected": sum(q[k] * z[k] for k in kept),
    }


PENALTIES = {
    "cross_entropy": lambda n, alpha: 0.0,
    "label_smoothing": lambda n, alpha: alpha * (n["label"] - n["mean"]),
    "maxsup": lambda n, alpha: alpha * (n["top"] - n["mean"]),
}


def loss(name, rows, targets, alpha=0.1, ignore_index=-100, weight=None, reduction="mean"):
    """What `create_loss(name, alpha=alpha)` gives on a list of rows."""
    terms, penalties, weights = [], [], []
    for z, target in zip(rows, targets, strict=True):
        if target == ignore_index:
            terms.append(0.0), penalties.append(0.0), weights.append(0.0)
            continue
        w = 1.0
        if weight is not None and isinstance(target, int):
            w = weight[target]
        weighted = target
        if weight is not None and not isinstance(target, int):
            weighted = [p * v for p, v in zip(target, weight, strict=True)]
        terms.append(w * numbers(z, weighted)["cross_entropy"])
        penalties.append(PENALTIES[name](numbers(z, target), alpha))
        weights.append(w)
    if reduction == "none":
        return [a + b for a, b in zip(terms, penalties, strict=True)]
    if reduction == "sum":
        return sum(terms) + sum(penalties)
    counted = sum(target != ignore_index for target in targets)
    return sum(terms) / (sum(weights) or 1) + sum(penalties) / (counted or 1)
