"""The oracle: every row statistic and every loss, one float at a time, in plain Python."""

import math


def unmasked(z):
    """The classes that are not masked."""
    lowest = max(z) - 4096
    return [k for k in range(len(z)) if z[k] >= lowest]


def numbers(z, target):
    """The statistics of one row; `target` a class index or a list of probabilities."""
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


def on_numbers(formula):
    """A twin of (row, target, parameters) from one of (numbers, parameters)."""
    return lambda z, y, p: formula(numbers(z, y), p)


def mean_gap(z, y, sign):
    """Mean of z_y − z_k over the classes that it is larger (sign 1) or smaller (sign −1) for; 0 without any."""
    gaps = [z[y] - z[k] for k in unmasked(z) if sign * (z[y] - z[k]) > 0]
    return sum(gaps) / len(gaps) if gaps else 0.0


def logit_norm(z, y, p):
    kept = unmasked(z)
    norm = math.sqrt(sum(z[k] * z[k] for k in kept))
    scaled = [z[k] / ((norm + 1e-7) * p["tau"]) if k in kept else -math.inf for k in range(len(z))]
    return numbers(scaled, y)["cross_entropy"], 0.0


def zipf(z, y, p):
    others = [k for k in unmasked(z) if k != y]
    if not others:
        return 0.0, 0.0
    share = {k: (1 + sum(v > z[k] for v in z)) ** -p["power"] for k in others}
    top = max(z[k] for k in others)
    lse = top + math.log(sum(math.exp(z[k] - top) for k in others))
    total = sum(share.values())
    divergence = sum(s / total * (math.log(s / total) - z[k] + lse) for k, s in share.items())
    return numbers(z, y)["cross_entropy"], p["lam"] * divergence


def online(z, y, p):
    """In the first epoch: against the target of label smoothing over the other classes."""
    ce, k = numbers(z, y)["cross_entropy"], numbers(z, y)["classes"]
    spread = [p["smoothing"] / max(k - 1, 1) if c in unmasked(z) else 0.0 for c in range(len(z))]
    spread[y] = 1 - p["smoothing"]
    return (1 - p["alpha"]) * ce + p["alpha"] * numbers(z, spread)["cross_entropy"], 0.0


# name -> (row, target, parameters) -> (target term, penalty)
TWINS = {
    "confidence_penalty": on_numbers(lambda n, p: (n["cross_entropy"], -p["beta"] * n["entropy"])),
    "cross_entropy": on_numbers(lambda n, p: (n["cross_entropy"], 0.0)),
    "focal": on_numbers(lambda n, p: ((1 - math.exp(-n["cross_entropy"])) ** p["gamma"] * n["cross_entropy"], 0.0)),
    "label_smoothing": on_numbers(lambda n, p: (n["cross_entropy"], p["alpha"] * (n["label"] - n["mean"]))),
    "logit_norm": logit_norm,
    "logit_penalty": on_numbers(lambda n, p: (n["cross_entropy"], p["beta"] / 2 * n["square"])),
    "ls_error_amplification": lambda z, y, p: (numbers(z, y)["cross_entropy"], p["alpha"] * mean_gap(z, y, -1)),
    "ls_regularization": lambda z, y, p: (numbers(z, y)["cross_entropy"], p["alpha"] * mean_gap(z, y, 1)),
    "maxsup": on_numbers(lambda n, p: (n["cross_entropy"], p["alpha"] * (n["top"] - n["mean"]))),
    "online_label_smoothing": online,
    "poly": on_numbers(lambda n, p: (n["cross_entropy"] + p["epsilon"] * (1 - math.exp(-n["cross_entropy"])), 0.0)),
    "z_loss": on_numbers(lambda n, p: (n["cross_entropy"], p["lam"] * n["lse"] ** 2)),
    "zipf_label_smoothing": zipf,
}


def smoothed(z, target, p, w):
    """Cross-entropy against the smoothed target, each class of it with its own weight."""
    kept = unmasked(z)
    t = [float(k == target) for k in range(len(z))] if isinstance(target, int) else target
    spread = [w[k] * ((1 - p["alpha"]) * t[k] + p["alpha"] / len(kept)) * (k in kept) for k in range(len(z))]
    return numbers(z, spread)["cross_entropy"], 0.0


# With class weights, where the weighted term is not the twin's first one times the weight of the label:
# name -> (row, target, parameters, weights) -> (weighted term, penalty)
WEIGHTED = {
    "label_smoothing": smoothed,
    "ls_error_amplification": lambda z, y, p, w: (w[y] * sum(TWINS["ls_error_amplification"](z, y, p)), 0.0),
}


def loss(name, rows, targets, parameters, ignore_index=-100, weight=None, reduction="mean"):
    """What `create_loss(name, **parameters)` gives on a list of rows."""
    terms, penalties, weights = [], [], []
    for z, target in zip(rows, targets, strict=True):
        if target == ignore_index:
            terms.append(0.0), penalties.append(0.0), weights.append(0.0)
            continue
        term, penalty = TWINS[name](z, target, parameters)
        w = weight[target] if weight is not None and isinstance(target, int) else 1.0
        if weight is not None and name in WEIGHTED:
            term, penalty = WEIGHTED[name](z, target, parameters, weight)
        elif weight is not None and not isinstance(target, int):
            term = numbers(z, [p * v for p, v in zip(target, weight, strict=True)])["cross_entropy"]
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
