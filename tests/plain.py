"""Reference implementations of every row statistic and every loss in plain Python, one float at a time."""

import math


def unmasked(z):
    """Indices of the classes that are not masked."""
    lowest = max(z) - 4096
    return [k for k in range(len(z)) if z[k] >= lowest]


def row_statistics(z, target):
    """The statistics of one row; `target` is a class index or a list of probabilities."""
    kept = unmasked(z)
    t = [float(k == target) for k in range(len(z))] if isinstance(target, int) else target
    top = max(z[k] for k in kept)
    lse = top + math.log(sum(math.exp(z[k] - top) for k in kept))
    label = sum(t[k] * z[k] for k in range(len(z)) if t[k])
    q = {k: math.exp(z[k] - lse) for k in kept}
    return {
        "cross_entropy": sum(t[k] * (lse - z[k]) for k in range(len(z)) if t[k]),
        "lse": lse,
        "top": top,
        "mean": sum(z[k] for k in kept) / len(kept),
        "label": label,
        "square": sum(z[k] ** 2 for k in kept),
        "expected": sum(q[k] * z[k] for k in kept),
        "entropy": sum(q[k] * (lse - z[k]) for k in kept),
        "classes": len(kept),
    }


def cross_entropy(z, target):
    return row_statistics(z, target)["cross_entropy"]


def of_statistics(formula):
    """The reference implementation of a loss, from its formula on (row statistics, parameters)."""
    return lambda z, y, p: formula(row_statistics(z, y), p)


def mean_gap(z, y, sign):
    """The mean of the positive (sign 1) or negative (sign −1) gaps z_y − z_k; 0 if there are none."""
    gaps = [z[y] - z[k] for k in unmasked(z) if sign * (z[y] - z[k]) > 0]
    return sum(gaps) / len(gaps) if gaps else 0.0


def logit_norm(z, y, p):
    kept = unmasked(z)
    norm = math.sqrt(sum(z[k] * z[k] for k in kept))
    scaled = [z[k] / ((norm + 1e-7) * p["tau"]) if k in kept else -math.inf for k in range(len(z))]
    return cross_entropy(scaled, y), 0.0


def zipf(z, y, p):
    others = [k for k in unmasked(z) if k != y]
    if not others:
        return 0.0, 0.0
    share = {k: (1 + sum(v > z[k] for v in z)) ** -p["power"] for k in others}
    top = max(z[k] for k in others)
    lse = top + math.log(sum(math.exp(z[k] - top) for k in others))
    total = sum(share.values())
    divergence = sum(s / total * (math.log(s / total) - z[k] + lse) for k, s in share.items())
    return cross_entropy(z, y), p["lam"] * divergence


def online(z, y, p):
    """The first epoch, whose target is that of label smoothing over the other classes."""
    ce, k = cross_entropy(z, y), row_statistics(z, y)["classes"]
    spread = [p["smoothing"] / max(k - 1, 1) if c in unmasked(z) else 0.0 for c in range(len(z))]
    spread[y] = 1 - p["smoothing"]
    return (1 - p["alpha"]) * ce + p["alpha"] * cross_entropy(z, spread), 0.0


# name -> (row, target, parameters) -> (target term, penalty)
REFERENCE = {
    "confidence_penalty": of_statistics(lambda s, p: (s["cross_entropy"], -p["beta"] * s["entropy"])),
    "cross_entropy": of_statistics(lambda s, p: (s["cross_entropy"], 0.0)),
    "focal": of_statistics(lambda s, p: ((1 - math.exp(-s["cross_entropy"])) ** p["gamma"] * s["cross_entropy"], 0.0)),
    "label_smoothing": of_statistics(lambda s, p: (s["cross_entropy"], p["alpha"] * (s["label"] - s["mean"]))),
    "logit_norm": logit_norm,
    "logit_penalty": of_statistics(lambda s, p: (s["cross_entropy"], p["beta"] / 2 * s["square"])),
    "ls_error_amplification": lambda z, y, p: (cross_entropy(z, y), p["alpha"] * mean_gap(z, y, -1)),
    "ls_regularization": lambda z, y, p: (cross_entropy(z, y), p["alpha"] * mean_gap(z, y, 1)),
    "maxsup": of_statistics(lambda s, p: (s["cross_entropy"], p["alpha"] * (s["top"] - s["mean"]))),
    "online_label_smoothing": online,
    "poly": of_statistics(lambda s, p: (s["cross_entropy"] + p["epsilon"] * (1 - math.exp(-s["cross_entropy"])), 0.0)),
    "z_loss": of_statistics(lambda s, p: (s["cross_entropy"], p["lam"] * s["lse"] ** 2)),
    "zipf_label_smoothing": zipf,
}


def smoothed(z, target, p, w):
    """Cross-entropy against the smoothed target, each class of it with its own weight."""
    kept = unmasked(z)
    t = [float(k == target) for k in range(len(z))] if isinstance(target, int) else target
    spread = [w[k] * ((1 - p["alpha"]) * t[k] + p["alpha"] / len(kept)) * (k in kept) for k in range(len(z))]
    return cross_entropy(z, spread), 0.0


# The losses whose weighted term is not simply the target term times the weight of the label:
# name -> (row, target, parameters, weights) -> (weighted term, penalty)
WEIGHTED = {
    "label_smoothing": smoothed,
    "ls_error_amplification": lambda z, y, p, w: (w[y] * sum(REFERENCE["ls_error_amplification"](z, y, p)), 0.0),
}


def loss(name, rows, targets, parameters, ignore_index=-100, weight=None, reduction="mean"):
    """What `create_loss(name, **parameters)` should return for a list of rows."""
    terms, penalties, weights = [], [], []
    for z, target in zip(rows, targets, strict=True):
        if target == ignore_index:
            terms.append(0.0), penalties.append(0.0), weights.append(0.0)
            continue
        term, penalty = REFERENCE[name](z, target, parameters)
        w = weight[target] if weight is not None and isinstance(target, int) else 1.0
        if weight is not None and name in WEIGHTED:
            term, penalty = WEIGHTED[name](z, target, parameters, weight)
        elif weight is not None and not isinstance(target, int):
            term = cross_entropy(z, [p * v for p, v in zip(target, weight, strict=True)])
        else:
            term *= w
        terms.append(term)
        penalties.append(penalty)
        weights.append(w)
    if reduction == "none":
        return [a + b for a, b in zip(terms, penalties, strict=True)]
    if reduction == "sum":
        return sum(terms) + sum(penalties)
    counted = sum(target != ignore_index for target in targets)
    return sum(terms) / (sum(weights) or 1) + sum(penalties) / (counted or 1)
